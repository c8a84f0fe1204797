"""The dual encoders of a run and its student, built and timed one at a time.

* `measure_tower`: parameters, sizes and times of a dual encoder (`TowerPlan`) and its heads. * `measure_student`.
* `update_seconds`: time of an optimiser step.

What is timed and how: see `cost`. A side whose trunk is frozen in a stage is embedded once before it; the stage itself
trains its head, which `step_cost` measures.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from m3bind.align.stage import set_trainable
from m3bind.config import RunConfig, TrainConfig
from m3bind.core.device import Compute
from m3bind.errors import M3BindError
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.features import levels
from m3bind.pipeline.plan.cost import DEEP, Side, median_seconds, time_side, time_volumes
from m3bind.pipeline.plan.decode_cost import DecodeCost, measure_decoding
from m3bind.pipeline.plan.stand_ins import model_of, student_of
from m3bind.pipeline.plan.workload import Work, expected_captions
from m3bind.training.loop import autocast
from m3bind.training.pairs import Level

TEXTS = 32  # texts per timed batch
ROWS = 8  # images per timed batch, of a tower that takes longer than `QUICK` for them
QUICK = 0.1  # seconds
WORD = 3  # a token id that every vocabulary has


@dataclass
class StagedSides:
    """What a stage trains of a tower and what that costs per item."""

    image_level: Level
    text_level: Level
    batch: int  # pairs of a step
    captions: float  # distinct captions of them
    image: Side = field(default_factory=Side)
    text: Side = field(default_factory=Side)
    augmenting: float = 0.0  # seconds of an image
    trained: int = 0  # parameters


@dataclass
class TowerPlan:
    """The dual encoder of one modality."""

    modality: str
    model: str
    pairs: int
    files: int  # of all splits
    distinct: float  # distinct captions of the training pairs as a fraction of the pairs
    weights_present: bool
    recomputes: bool  # its image trunk recomputes activations itself
    parameters: int
    joint_dim: int
    input_shape: tuple[int, ...]
    stored_bytes: int  # of an input in its stored type
    tokens: int  # mean of a caption
    shared: float  # mean length of a text of the shared pool, as a fraction of that
    micro: int
    decode: DecodeCost
    align: StagedSides
    pretrain: StagedSides | None  # None: not trained in stage 0
    widths: tuple[int, int]  # of the trunks' features: image, text
    text_trunk: str  # hash of its weights: equal ones are applied once

    @property
    def trained(self) -> int:
        """Parameters trained in stage 1."""
        return self.align.trained

    @property
    def image(self) -> Side:
        """An image in stage 1."""
        return self.align.image

    @property
    def text(self) -> Side:
        """A text in stage 1."""
        return self.align.text

    @property
    def input_bytes(self) -> int:
        """Size of one model input, float32."""
        return 4 * math.prod(self.input_shape)

    def viewed(self, config: RunConfig) -> int:
        """Images whose features are computed, in several views for training a head in stage 0."""
        frozen = self.pretrain is not None and self.pretrain.image_level != "input"
        views = config.pretrain_for(self.modality).views if frozen else 1
        return self.files + (views - 1) * self.pairs


@dataclass
class StudentPlan:
    """The shared text encoder."""

    parameters: int
    trained: int
    tokens: int  # mean of a caption, over modalities
    shared: float  # mean length of a text of the shared pool, as a fraction of that
    text: Side
    full: bool  # all of it is trained, not the head alone
    text_trunk: str


def host(config: RunConfig) -> Compute:
    """How this CPU computes under the settings."""
    return config.compute.model_copy(update={"device": "cpu"}).pick(warn=False)


def measure_tower(
    m: str, config: RunConfig, assets: Path, work: Work, notes: list[str]
) -> tuple[TowerPlan, DualEncoder]:
    """Time the dual encoder of modality `m`; `notes` receives the assumptions. Also returns it."""
    model, present = model_of(m, config, assets, notes)
    captions = _thinned(work.sample.get(m, []))
    tokens, shared = _lengths(model, work.sample.get(m, []), work.pool, config)
    parameters, texts = sum(p.numel() for p in model.parameters()), _tokens(model, captions, tokens)
    shape = _input_shape(model, m)
    decode = measure_decoding(m, model, work.records.get(m, []), notes)
    text_trunk = hash_state(model.text_trunk.state_dict())
    pretrain = _pretraining(m, model, config, shape, texts, work) if config.modalities[m].pretrain else None
    align = config.align
    batch = min(align.batches.get(m, align.batch), work.pairs[m])
    staged = StagedSides(*levels(config, model, "align"), batch, expected_captions(batch, work, m))
    micro = min(align.micro(m) or batch, batch)
    set_trainable(model, align)
    staged.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _time_sides(staged, model, align, host(config), m, shape, texts)
    tower = TowerPlan(
        modality=m,
        model=config.modalities[m].model,
        pairs=work.pairs[m],
        files=work.files[m],
        distinct=work.captions[m] / max(work.pairs[m], 1),
        weights_present=present,
        recomputes=bool(getattr(model.image_trunk, "recomputes", False)),
        parameters=parameters,
        joint_dim=model.joint_dim,
        input_shape=shape,
        stored_bytes=decode.stored_bytes or 4 * math.prod(shape),
        tokens=tokens,
        shared=shared,
        micro=micro,
        decode=decode,
        align=staged,
        pretrain=pretrain,
        widths=(_width(model.image_head, model.joint_dim), _width(model.text_head, model.joint_dim)),
        text_trunk=text_trunk,
    )
    return tower, model


def _pretraining(
    m: str, model: DualEncoder, config: RunConfig, shape: tuple[int, ...], texts: Tokens, work: Work
) -> StagedSides:
    settings = config.pretrain_for(m)
    batch = min(settings.batches.get(m, settings.batch), work.pairs[m])
    staged = StagedSides(*levels(config, model, "pretrain"), batch, expected_captions(batch, work, m))
    model.requires_grad_(True)
    model.image_trunk.requires_grad_(staged.image_level == "input")
    model.text_trunk.requires_grad_(staged.text_level == "input")
    staged.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    _time_sides(staged, model, settings, host(config), m, shape, texts)
    if settings.augment and staged.image_level == "input":
        images, random = torch.zeros(min(batch, ROWS), *shape), ItemRandom(0, range(min(batch, ROWS)))
        staged.augmenting = median_seconds(lambda: model.augment(images, random), 1.0) / len(images)
    model.requires_grad_(False)
    return staged


def _time_sides(
    staged: StagedSides,
    model: DualEncoder,
    settings: TrainConfig,
    compute: Compute,
    m: str,
    shape: tuple[int, ...],
    texts: Tokens,
) -> None:
    """Fill in the costs of both sides; those of frozen trunks are of a forward pass alone."""
    micro = settings.micro(m)
    again = micro > 0 and not getattr(model.image_trunk, "recomputes", False)
    trains, rows = staged.image_level == "input", max(min(micro or staged.batch, staged.batch), 1)
    with autocast(settings, compute):
        if len(shape) == 4 and shape[1] > DEEP[1]:
            staged.image = time_volumes(model, model.encode_image, shape, trains=trains, again=again)
        else:
            staged.image = _time_images(model, shape, rows, trains, again)
        count, trains = len(texts["input_ids"]), staged.text_level == "input"
        staged.text = time_side(model, model.encode_text, texts, count, trains, settings.micro_tokens > 0)


def _time_images(model: DualEncoder, shape: tuple[int, ...], rows: int, trains: bool, again: bool) -> Side:
    few = min(rows, ROWS)
    side = time_side(model, model.encode_image, torch.zeros(few, *shape), few, trains, again)
    if few < rows and side.forward * few < QUICK:
        return time_side(model, model.encode_image, torch.zeros(rows, *shape), rows, trains, again)
    return side


def _thinned(texts: Sequence[str]) -> Sequence[str]:
    """At most `TEXTS` of them, at equal distances."""
    return texts[:: max(1, -(-len(texts) // TEXTS))]


def _lengths(
    model: DualEncoder | TextEncoder, captions: Sequence[str], pool: Sequence[str], config: RunConfig
) -> tuple[int, float]:
    """Mean tokens of a caption, and those of a text of the shared pool as a fraction of that, without padding."""
    own, shared = (_length(model, texts, config) for texts in (captions, pool))
    return round(own), shared / own


def _length(model: DualEncoder | TextEncoder, texts: Sequence[str], config: RunConfig) -> float:
    with contextlib.suppress(M3BindError):
        if texts:
            return max(2.0, float(model.tokenize(texts)["attention_mask"].sum(1).float().mean()))
    return float(min(config.plan.tokens, int(model.max_tokens)))


def _input_shape(model: DualEncoder, modality: str) -> tuple[int, ...]:
    """Shape of one model input, by preprocessing a blank sample, first one of the modality itself."""
    blanks = [
        Sample("ct", np.zeros((8, 64, 64), np.float32), spacing=(3.0, 1.5, 1.5)),
        Sample("ecg", np.zeros((12, 5000), np.float32), rate=500.0),
        Sample("retina", np.zeros((64, 64, 3), np.float32)),
        Sample("xray", np.zeros((64, 64), np.float32)),
    ]
    for sample in sorted(blanks, key=lambda s: s.modality != modality):
        with contextlib.suppress(M3BindError):
            return tuple(model.preprocess(sample).shape)
    raise M3BindError(f"{model.registered_name}: takes none of the known kinds of data")


def _tokens(model: DualEncoder | TextEncoder, texts: Sequence[str], length: int) -> Tokens:
    """Tokens of `texts`; if they or the tokenizer are missing, `TEXTS` texts of `length` equal tokens.

    CLIP finds the end of a text by its token.
    """
    with contextlib.suppress(M3BindError):
        if texts:
            return model.tokenize(texts)
    ids = torch.full((TEXTS, min(length, int(model.max_tokens))), WORD)
    ids[:, -1] = getattr(model, "end_of_text", WORD)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _width(head: nn.Module, otherwise: int) -> int:
    """Input width of a head: that of its first linear layer."""
    linear = next((part for part in head.modules() if isinstance(part, nn.Linear)), None)
    return otherwise if linear is None else linear.in_features


def measure_student(config: RunConfig, assets: Path, work: Work, notes: list[str]) -> tuple[StudentPlan, TextEncoder]:
    """Time the student; `notes` receives the assumptions. Also returns it."""
    distill, settings = config.distill, config.distill.student
    student = student_of(config, assets, notes)
    full = settings.train == "full"
    student.requires_grad_(full)
    student.head.requires_grad_(True)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    captions = [text for texts in work.sample.values() for text in texts]
    length, shared = _lengths(student, captions, work.pool, config)
    tokens = _tokens(student, _thinned(captions), length)
    count = len(tokens["input_ids"])
    with autocast(distill, host(config)):
        side = time_side(student, student.encode, tokens, count, full, distill.micro_tokens > 0)
    parameters = sum(p.numel() for p in student.parameters())
    trunk = hash_state(student.trunk.state_dict())
    return StudentPlan(parameters, trained, length, shared, side, full, trunk), student


def update_seconds(parameters: int = 10_000_000) -> float:
    """Seconds of AdamW and gradient clipping per trained parameter."""
    weights = nn.Parameter(torch.zeros(parameters))
    weights.grad = torch.ones(parameters)
    optimizer = torch.optim.AdamW([weights])

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimizer.step()

    update()
    return median_seconds(update) / parameters
