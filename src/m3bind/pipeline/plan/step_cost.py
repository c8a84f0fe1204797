"""Seconds of a training step without the towers: heads, bridges, losses, optimiser, loop. The stages themselves run a
few steps on random embeddings of the run's batch sizes.

* `strip`: a dual encoder without the parts whose cost is measured per item. * `pretrain_step`, `align_step`,
  `distill_step`: seconds per step.

Shapes: N pairs, K texts, f feature width, d dimension of the bound space.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from m3bind.align import methods
from m3bind.align.methods.base import BindingInputs
from m3bind.config import AlignConfig, RunConfig
from m3bind.data.batching import IntArray
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.data.tokens import TokenStore
from m3bind.distill.stage import DistillSampler, DistillStage, Teachers
from m3bind.distill.student import StudentTexts
from m3bind.errors import M3BindError
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.pipeline.features import levels
from m3bind.pipeline.plan.tower_cost import TowerPlan, host
from m3bind.pretrain.stage import PretrainStage
from m3bind.training.loop import train
from m3bind.training.pairs import Images, Level, Pairs, Texts

FEW, SOME, MANY = 2, 6, 60  # steps of the runs whose difference is timed
ENOUGH = 2.0  # seconds that the difference should be
EPOCH = 4  # batches of pairs

Towers = Sequence[tuple[TowerPlan, DualEncoder]]


def strip(model: DualEncoder, image: Level, text: Level) -> None:
    """Free the trunks, and the heads of sides that are trained from their input."""
    model.image_trunk = model.text_trunk = nn.Identity()
    if image == "input":
        model.image_head = nn.Identity()
    if text == "input":
        model.text_head = nn.Identity()


def pretrain_step(tower: TowerPlan, model: DualEncoder, config: RunConfig) -> float:
    """Of stage 0 of one modality."""
    assert tower.pretrain is not None
    settings = config.pretrain_for(tower.modality)
    image, text = (_precomputed(level) for level in (tower.pretrain.image_level, tower.pretrain.text_level))
    pairs, _ = _random_pairs([(tower, model)], {tower.modality: tower.pretrain.batch}, image, text)

    def run(steps: int, folder: Path) -> None:
        stage = PretrainStage(pairs[tower.modality], settings, config.seed)
        train(stage, settings.model_copy(update={"steps": steps}), folder, config.seed, host(config))

    seconds = _per_step(run)
    model.requires_grad_(False)
    return seconds


def align_step(towers: Towers, config: RunConfig, notes: list[str]) -> float:
    """Of stage 1; a method that random pairs do not suit is timed as m3bind."""
    settings = config.align
    frozen = {"text": "frozen" if settings.text == "lora" else settings.text,
              "image": "bridge" if settings.image == "lora" else settings.image}  # fmt: skip
    try:
        method = methods.get(settings.method)
        return _per_step(_binding(towers, config, settings.model_copy(update={**frozen, "pool": 16}), method))
    except M3BindError as error:
        notes.append(f"align: a step of {settings.method} could not be timed ({error}); one of m3bind was")
        plain = settings.model_copy(update={**frozen, "pool": 16, "method": "m3bind", "options": {}})
        return _per_step(_binding(towers, config, plain, methods.get("m3bind")))


def _binding(
    towers: Towers, config: RunConfig, settings: AlignConfig, method: methods.BindingMethod
) -> Callable[[int, Path], None]:
    image, text = levels(config, towers[0][1], "align") if method.towers else ("embedding", "embedding")
    sizes = {tower.modality: tower.align.batch for tower, _ in towers}
    pairs, pool = _random_pairs(towers, sizes, _precomputed(image), _precomputed(text))

    def run(steps: int, folder: Path) -> None:
        inputs = BindingInputs(pairs, pool, folder, config.seed, host(config))
        method.bind(inputs, settings.model_copy(update={"steps": steps}))

    return run


def distill_step(phase: str, towers: Towers, student: TextEncoder, config: RunConfig) -> float:
    """Of stage 2, phase "a" or "b", without the student's trunk."""
    distill, dim = config.distill, config.align.dim
    settings = distill.model_copy(update={"student": distill.student.model_copy(update={"train": "head"})})
    sizes = {t.modality: min(distill.batches.get(t.modality, distill.batch), t.pairs) for t, _ in towers}
    pairs, pool = _random_pairs(towers, sizes, "embedding", "embedding")
    count = sum(map(len, pool.values()))
    width = next((part.in_features for part in student.head.modules() if isinstance(part, nn.Linear)), dim)
    tokens = TokenStore(Path(), student.tokenize).table(TextTable())  # not read: the features are given
    wrapped = StudentTexts(student, tokens, _unit_rows(count, width))
    rows = {m: _unit_rows(count, dim) for m in pairs}
    images = {m: _unit_rows(len(part), dim) for m, part in pairs.items()}
    teachers = Teachers(rows, images, dict.fromkeys(pairs, 14.0))
    shares = BindingInputs(pairs, pool, Path(), config.seed).pool_probabilities(distill.balance)

    def run(steps: int, folder: Path) -> None:
        sampler = DistillSampler(phase, pairs, pool, shares, settings, config.seed)
        stage = DistillStage(sampler, wrapped, teachers, settings)
        train(stage, settings.model_copy(update={"steps": steps}), folder, config.seed, host(config))

    return _per_step(run)


def _precomputed(level: Level) -> Level:
    """The cost of a tower trained from its input is measured per item; here its embeddings are given."""
    return "embedding" if level == "input" else level


def _random_pairs(
    towers: Towers, sizes: Mapping[str, int], image: Level, text: Level
) -> tuple[dict[str, Pairs], dict[str, IntArray]]:
    """Pairs of every modality whose texts share one table, and each modality's text ids."""
    numbers = {t.modality: min(t.pairs, EPOCH * sizes[t.modality]) for t, _ in towers}
    kinds = {t.modality: max(2, round(numbers[t.modality] * t.distinct)) for t, _ in towers}
    table = TextTable(f"text {i}" for i in range(sum(kinds.values())))
    pairs: dict[str, Pairs] = {}
    pool: dict[str, IntArray] = {}
    start = 0
    for tower, model in towers:
        m, count = tower.modality, numbers[tower.modality]
        pool[m] = np.arange(start, start + kinds[m], dtype=np.int64)
        start += kinds[m]
        wide = [width if level == "features" else model.joint_dim for level, width in zip((image, text), tower.widths)]
        pairs[m] = Pairs(
            m,
            model,
            Images(model, image, _unit_rows(count, wide[0])),
            Texts(model, text, table, compute=partial(_rows_of, wide[1])),
            Ragged.of([pool[m][i % kinds[m]]] for i in range(count)),
            Ragged.by_lengths(np.zeros(count, np.int64), np.zeros(0, np.int64)),
            np.arange(count, dtype=np.int64) % 5,
            [str(i) for i in range(count)],
        )
    return pairs, pool


def _rows_of(width: int, ids: IntArray) -> NDArray[np.float32]:
    return _unit_rows(len(ids), width)


def _unit_rows(count: int, width: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((count, width), np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _per_step(run: Callable[[int, Path], None]) -> float:
    """Seconds of a step, without what happens before the first and after the last."""

    def timed(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            run(steps, Path(folder))
            return time.perf_counter() - start

    with _silent():
        timed(FEW)  # loads libraries
        few = min(timed(FEW), timed(FEW))
        step = max(timed(FEW + SOME) - few, 1e-6) / SOME
        if step * SOME < ENOUGH / 2:
            many = min(MANY, round(ENOUGH / step))
            step = max(timed(FEW + many) - few, 1e-6) / many
    return step


@contextmanager
def _silent() -> Iterator[None]:
    """No progress lines."""
    before = os.environ.get("M3BIND_PROGRESS")
    os.environ["M3BIND_PROGRESS"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["M3BIND_PROGRESS"]
        else:
            os.environ["M3BIND_PROGRESS"] = before
