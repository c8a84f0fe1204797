"""The stages of a run as functions from a `State` and the common input of all stages (`Setup`) to a new `State`.

* `pretrain` (stage 0), `unbound`, `closed_form`, `align` (stage 1), `distill` (stage 2).
* `with_post`: bridges followed by post steps. * `embed_images`, `embed_text`: files and texts in the current space.
* `training_pairs`, `finished_pairs`, `training_embeddings`: the training data of stages and post steps.

A stage trains in its `folder`, where it resumes or loads a finished result. Stages change the towers that they train in
place; the references of a `State` never change.

Shapes: N images, K texts, d_m joint dimension of modality m, d dimension of the bound space.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.align import methods, post
from m3bind.align.methods.base import BindingInputs
from m3bind.align.procrustes import BaseBridge, Bridge, identity_map
from m3bind.config import AlignConfig, PostConfig, RunConfig
from m3bind.core.device import Compute, device_of
from m3bind.core.files import sha256_text
from m3bind.data.batching import IntArray, distinct_ids
from m3bind.data.text_table import TextTable
from m3bind.distill.stage import DistillSampler, DistillStage, Teachers
from m3bind.distill.student import StudentTexts
from m3bind.distill.terms import TERMS
from m3bind.evaluate.stage_results import Matrix
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.dataset import Dataset
from m3bind.pipeline.features import FeatureExtractor, levels
from m3bind.pretrain.stage import PretrainStage
from m3bind.training.loop import seed_torch, train
from m3bind.training.pairs import Pairs

Sides = dict[str, tuple[Tensor, Tensor]]
PART = 65536  # rows that are projected together


@dataclass(frozen=True)
class Setup:
    """The common input of all stages."""

    config: RunConfig
    dataset: Dataset
    extractor: FeatureExtractor
    compute: Compute

    @property
    def modalities(self) -> list[str]:
        """Names in the order of the settings."""
        return self.dataset.modalities


@dataclass(frozen=True)
class State:
    """The result of the stages so far."""

    models: Mapping[str, DualEncoder]
    bridges: Mapping[str, BaseBridge] = field(default_factory=dict)
    student: TextEncoder | None = None

    def fingerprint(self) -> str:
        """Hash of all weights, for comparing runs."""
        parts = [hash_state(self.models[m].state_dict()) for m in self.bridges]
        parts += [hash_state(bridge.state_dict()) for bridge in self.bridges.values()]
        if self.student is not None:
            parts.append(hash_state(self.student.state_dict()))
        return sha256_text(*parts)


# ---- pairs


def training_pairs(state: State, setup: Setup, stage: str) -> dict[str, Pairs]:
    """Training pairs of every modality, each side computed up to the parts that the stage trains."""
    return {m: _pairs(m, state, setup, stage) for m in setup.modalities}


def _pairs(m: str, state: State, setup: Setup, stage: str) -> Pairs:
    config, data, model = setup.config, setup.dataset, state.models[m]
    image, text = levels(config, model, stage)
    settings = config.pretrain_for(m)
    copies = image == "features" if stage == "pretrain" else image != "input" and config.align.consistency > 0
    views = settings.views if copies else 1
    train = data.records[m]["train"]
    pairs = setup.extractor.pairs(m, model, train, data.table, image, text, views, settings.degrade)
    _ = pairs.images.rows  # computed now, in eval mode
    shared = data.pool.values() if stage == "align" else ()
    pairs.texts.need(distinct_ids(pairs.described_by(), *shared))  # all that batches draw
    return pairs


def finished_pairs(state: State, setup: Setup) -> dict[str, Pairs]:
    """Training pairs of every modality, both sides embedded."""
    data, extractor = setup.dataset, setup.extractor
    return {
        m: extractor.pairs(m, state.models[m], data.records[m]["train"], data.table, "embedding", "embedding")
        for m in setup.modalities
    }


def training_embeddings(state: State, setup: Setup) -> Sides:
    """Per modality, embeddings (N, d_m) of the training images and of their canonical captions, unbound."""
    sides: Sides = {}
    for m, pairs in finished_pairs(state, setup).items():
        captions = pairs.captions.values[pairs.captions.offsets[:-1]]
        sides[m] = pairs.images.embed(np.arange(len(pairs))), pairs.texts.embed(captions)
    return sides


# ---- stages


def pretrain(state: State, setup: Setup, folder: Path) -> State:
    """Stage 0 of every modality with `pretrain` set, in `folder`/<modality>."""
    config = setup.config
    for m in setup.modalities:
        if not config.modalities[m].pretrain:
            continue
        settings, model = config.pretrain_for(m), state.models[m]
        pairs = _pairs(m, state, setup, "pretrain")
        calibrate = getattr(model.image_head, "calibrate", None)
        if calibrate is not None and pairs.images.level == "features":
            array = np.asarray(pairs.images.rows.array)
            calibrate(torch.from_numpy(array.reshape(-1, array.shape[-1])).to(device_of(model)))
        train(PretrainStage(pairs, settings, config.seed), settings, folder / m, config.seed, setup.compute)
        model.requires_grad_(False)
        model.eval()
    setup.extractor.invalidate_hashes()
    return state


def unbound(state: State, setup: Setup) -> State:
    """Bridges that only resize every space to the common dimension: no binding."""
    dim = setup.config.align.dim
    bridges = {m: Bridge(identity_map(state.models[m].joint_dim, dim)) for m in setup.modalities}
    return replace(state, bridges=_placed(bridges, setup))


def closed_form(state: State, setup: Setup, folder: Path) -> State:
    """Binding without training: Procrustes."""
    inputs = _inputs(finished_pairs(state, setup), setup, folder)
    settings = setup.config.align.model_copy(update={"options": {}})
    return replace(state, bridges=_placed(methods.get("procrustes").bind(inputs, settings), setup))


def align(
    state: State,
    setup: Setup,
    folder: Path,
    settings: AlignConfig | None = None,
    pairs: Mapping[str, Pairs] | None = None,
) -> State:
    """Stage 1 and post steps, by default with the settings of the run; `pairs` if already computed."""
    settings = settings or setup.config.align
    method = methods.get(settings.method)
    method.options(settings)
    if pairs is None:
        pairs = training_pairs(state, setup, "align") if method.towers else finished_pairs(state, setup)
    bound = replace(state, bridges=_placed(method.bind(_inputs(pairs, setup, folder), settings), setup))
    setup.extractor.invalidate_hashes()
    return with_post(bound, setup, settings.post)


def with_post(state: State, setup: Setup, settings: PostConfig, sides: Sides | None = None) -> State:
    """Bridges followed by post steps, fitted on `sides` (default: computed here)."""
    if settings == PostConfig():
        return state
    sides = training_embeddings(state, setup) if sides is None else sides
    bridges = {m: post.after(state.bridges[m], settings, *sides[m], state.models[m]) for m in sides}
    return replace(state, bridges=_placed(bridges, setup))


def _placed(bridges: Mapping[str, BaseBridge], setup: Setup) -> dict[str, BaseBridge]:
    """The bridges on the run's device."""
    return {m: bridge.to(setup.compute.device) for m, bridge in bridges.items()}


def distill(state: State, setup: Setup, folder: Path, assets: Path) -> State:
    """Stage 2: the shared student, phases A and B in `folder`/a and `folder`/b."""
    config, data = setup.config, setup.dataset
    settings = config.distill
    seed_torch(config.seed, "student")
    student = make_text_encoder(settings.student.text, dim=config.align.dim, assets=assets, **settings.student.settings)
    student.to(setup.compute.device)
    features = setup.extractor.text_features(data.table, student) if settings.student.train == "head" else None
    wrapped = StudentTexts(student, setup.extractor.texts.tokens(student, data.table), features)
    pairs = finished_pairs(state, setup)
    shares = _inputs(pairs, setup, folder).pool_probabilities(settings.balance)
    phases = [
        (phase, DistillSampler(phase, pairs, data.pool, shares, settings, config.seed), steps)
        for phase, steps in (("a", settings.steps), ("b", settings.steps_b))
    ]
    drawn = [sampler.shared_texts(steps) for _, sampler, steps in phases]
    if any(getattr(settings, name) for name in TERMS):
        drawn += [pair.described_by() for pair in pairs.values()]
    teachers = _teachers(state, setup, distinct_ids(*drawn))
    for phase, sampler, steps in phases:
        phase_settings = settings.model_copy(update={"steps": steps})
        stage = DistillStage(sampler, wrapped, teachers, phase_settings)
        train(stage, phase_settings, folder / phase, config.seed, setup.compute)
    setup.extractor.invalidate_hashes()
    return replace(state, student=student.requires_grad_(False).eval())


def _inputs(pairs: Mapping[str, Pairs], setup: Setup, folder: Path) -> BindingInputs:
    pool = {m: setup.dataset.pool[m] for m in pairs}
    return BindingInputs(dict(pairs), pool, folder, setup.config.seed, setup.compute)


def _teachers(state: State, setup: Setup, ids: IntArray) -> Teachers:
    """Bridged embeddings of the texts `ids` by all towers and of all training images by their towers."""
    names, table = setup.modalities, setup.dataset.table
    text = {m: embed_text(state, setup, table, m, ids) for m in names}
    images = {m: embed_images(state, setup, m, "train") for m in names}
    scales = {m: float(state.models[m].logit_scale.detach()) for m in names}
    return Teachers(text, images, scales, ids)


# ---- embeddings


def embed_images(state: State, setup: Setup, modality: str, split: str) -> Matrix:
    """(N, d) unit rows of a split's images."""
    model, bridge = state.models[modality], state.bridges[modality]
    rows = setup.extractor.image_embeddings(setup.dataset.records[modality][split], model)
    return _apply(bridge.image, rows, bridge)


def embed_text(
    state: State, setup: Setup, texts: Sequence[str] | TextTable, encoder: str, ids: IntArray | None = None
) -> Matrix:
    """(K, d) unit rows of texts, or of the texts `ids` of a table, by a modality's text tower or by "student"."""
    if encoder == "student":
        assert state.student is not None
        features = setup.extractor.text_features(texts, state.student, ids)
        project = state.student.project
        return _apply(lambda rows: torch.nn.functional.normalize(project(rows), dim=-1), features, state.student)
    model, bridge = state.models[encoder], state.bridges[encoder]
    features = setup.extractor.text_features(texts, model, ids)
    return _apply(
        lambda rows: bridge.text(torch.nn.functional.normalize(model.project_text(rows), dim=-1)), features, model
    )


@torch.inference_mode()
def _apply(compute: Callable[[Tensor], Tensor], rows: NDArray[np.float32], module: nn.Module) -> Matrix:
    """`compute` of rows (n, f), in parts on the device of `module`: (n, d) on the host."""
    device = device_of(module)
    parts = [compute(torch.from_numpy(np.array(rows[at : at + PART])).to(device)) for at in range(0, len(rows), PART)]
    if not parts:
        return np.zeros((0, 1), np.float32)
    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float32)
