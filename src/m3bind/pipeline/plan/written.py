"""Bytes that a run writes: shards of inputs, features, token ids, checkpoints, the space. `written_of`: by content."""

from collections.abc import Sequence

from m3bind.config import RunConfig
from m3bind.pipeline.features import WIDE
from m3bind.pipeline.plan.stage_plans import STATE, is_live, texts_of_stage2
from m3bind.pipeline.plan.tower_cost import StudentPlan, TowerPlan
from m3bind.pipeline.plan.workload import Work

CHECKPOINTS = 2  # of a stage that are stored at a time


def written_of(
    config: RunConfig, towers: Sequence[TowerPlan], student: StudentPlan, work: Work, tokenizers: int
) -> dict[str, float]:
    """Bytes by content; `tokenizers`: number of different ones."""
    sizes: dict[str, float] = {}
    trained = student.trained
    for t in towers:
        m, (image, text) = t.modality, t.widths
        if not is_live(config, t):
            sizes[f"{m} inputs"] = float(t.files * t.stored_bytes)
        sizes[f"{m} image features"] = 4.0 * (image * t.viewed(config) if image <= WIDE else t.joint_dim * t.files)
        own = t.align.text_level == "input"  # two passes over the texts that are drawn: before stage 1 and after it
        texts = min(config.align.pool, work.kinds) + texts_of_stage2(config, work) if own else work.texts
        sizes[f"{m} text features"] = 4.0 * texts * text
        trained += t.align.trained + (t.pretrain.trained if t.pretrain else 0)
    sizes["token ids"] = 4.0 * work.texts * tokenizers * student.tokens
    sizes["checkpoints"] = CHECKPOINTS * STATE * trained
    sizes["space"] = 4.0 * (sum(t.parameters for t in towers) + student.parameters)
    return sizes
