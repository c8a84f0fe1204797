"""Models under evaluation: published models or bound spaces. Embeddings of frozen towers are cached.

* `ModelSource`: where a model is stored; `source_hash`: hash of its files.
* `EvaluatedModel`: embeddings of images and texts, features, scores of labels.
* `open_evaluated`, `ablated_runs`, `of_space`: models from a source, runs of an ablation, a model from a space.

Shapes: n files, p texts, d joint dimension, f width of the image trunk's features, k labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator

from m3bind.config import validate
from m3bind.core.device import Compute, device_of, pick
from m3bind.core.files import sha256_file, sha256_text
from m3bind.core.stored import Strict, read_yaml
from m3bind.data.cache import FeatureCache
from m3bind.data.records import BadRow, Record
from m3bind.errors import ConfigError
from m3bind.experiments.lora_finetune import LoraFinetune, finetune_of
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.features import WIDE, FeatureExtractor
from m3bind.pipeline.outputs import computing_on, open_run, see_finished, space_of
from m3bind.pipeline.run import Run
from m3bind.space.bundle import STUDENT, Space, load

Array = NDArray[np.float32]
Stage = Literal["unbound", "closed_form", "aligned", "distilled"]


class ModelSource(Strict, frozen=True):
    """A model with its weights, a space, a run at one of its stages, or a variant of an ablation."""

    model: str = ""
    checkpoint: str | None = None
    untrained: bool = False  # use the model without weights
    settings: dict[str, Any] = {}
    space: str = ""  # folder or hub id
    run: str = ""  # folder that m3bind fit wrote
    ablation: str = ""  # folder that m3bind ablate wrote; one model per seed
    variant: str = "base"  # of the ablation
    seeds: tuple[int, ...] = ()  # of the ablation; empty: all
    stage: Stage = "distilled"  # of the run or variant
    missing: str = ""  # the reason if no model is available

    @model_validator(mode="after")
    def _one(self) -> "ModelSource":
        if sum(map(bool, (self.model, self.space, self.run, self.ablation, self.missing))) != 1:
            raise ValueError("a model is one of model, space, run, ablation (or states why it is missing)")
        return self


@dataclass
class EvaluatedModel:
    """Models by modality, and their space if they are bound. `fingerprint` is the hash of all weights."""

    name: str
    models: dict[str, DualEncoder]
    fingerprint: str
    encoder: FeatureExtractor
    space: Space | None = None
    any_modality: bool = False  # the model accepts images of every modality
    seed: int = 0  # of its run

    def model(self, modality: str) -> DualEncoder:
        """The model that embeds `modality`.

        Raises:
            ConfigError: the model does not support it.
        """
        if self.any_modality:
            return next(iter(self.models.values()))
        if modality not in self.models:
            raise ConfigError(f"{self.name} does not know {modality}, only {', '.join(self.models)}")
        return self.models[modality]

    def readable(self, records: Sequence[Record]) -> tuple[list[Record], list[BadRow]]:
        """Records of one modality whose files can be read, and the others with reasons."""
        if not records:
            return [], []
        good, bad = self.encoder.readable(records, self.model(records[0].modality))
        return list(good), bad

    @torch.inference_mode()
    def images(self, records: Sequence[Record]) -> Array:
        """(n, d) unit rows of files of one modality."""
        modality = records[0].modality
        own = self.encoder.image_embeddings(records, self.model(modality))
        return own if self.space is None else self.space.project(own, modality)

    def features(self, records: Sequence[Record]) -> Array:
        """(n, f): features of the image trunk before the projection, or embeddings if these are too wide to cache."""
        model = self.model(records[0].modality)
        if getattr(model.image_head, "in_features", 0) > WIDE:
            return self.images(records)
        return self.encoder.image_features(records, model)

    @property
    def has_student(self) -> bool:
        """Whether the space has a shared text encoder."""
        return self.space is not None and STUDENT in self.space.text_encoders

    def text_encoder(self, modality: str, requested: str = "") -> str:
        """The text encoder to use: "student" if the space has one, unless "teacher" is `requested`."""
        if requested == "student" and not self.has_student:
            raise ConfigError(f"{self.name} has no student")
        return STUDENT if self.has_student and requested != "teacher" else modality

    def texts(self, texts: Sequence[str], path: str) -> Array:
        """(p, d) unit rows of texts by "student" or the text tower of a modality."""
        if path == STUDENT:
            assert self.space is not None
            return self.space.encode_text(texts, encoder=STUDENT)
        model = self.model(path)
        features = torch.from_numpy(self.encoder.text_features(texts, model)).to(device_of(model))
        with torch.inference_mode():
            own = torch.nn.functional.normalize(model.project_text(features), dim=-1).float().cpu().numpy()
        return own if self.space is None else self.space.project(own, path, side="text")

    def scale(self, modality: str) -> float:
        """Factor on cosines before a softmax."""
        return float(self.model(modality).logit_scale.detach())

    @torch.inference_mode()
    def label_scores(self, records: Sequence[Record]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Label names and (n, k) logits of a model trained on labels.

        Raises:
            ConfigError: the model has no classification layer.
        """
        model = self.model(records[0].modality)
        logits = getattr(model, "label_logits", None)
        if logits is None:
            raise ConfigError(f"{self.name} has no classification layer; it cannot be evaluated as a classifier")
        wide = getattr(model.image_head, "in_features", 0) > WIDE
        rows = self.encoder.image_embeddings(records, model) if wide else self.encoder.image_features(records, model)
        names: tuple[str, ...] = model.labels  # type: ignore[assignment]
        return names, np.asarray(logits(torch.from_numpy(rows).to(device_of(model))).cpu().double().numpy())

    def finetune(self, records: Sequence[Record]) -> LoraFinetune:
        """The few-shot method that adapts the image tower, for files of `records`, all of one modality."""
        folder = self.encoder.cache.folder / "finetune" / self.fingerprint[:16]
        return finetune_of(self.model(records[0].modality), records, self.encoder, folder)

    def training_data(self, modality: str) -> tuple[str, ...]:
        """Names of the data sets that the model was trained on, from its card."""
        return tuple(self.model(modality).card.training_data)


def source_hash(source: ModelSource) -> str:
    """Hash of the source and of its files, without opening them as models.

    Raises:
        ConfigError: the source is missing, or its files do not exist.
    """
    _check_available(source)
    parts = [source.model_dump_json()]
    for place in filter(None, (source.checkpoint, source.space, source.run, source.ablation)):
        path = Path(place)
        if not path.exists():
            if place in (source.run, source.ablation):
                raise ConfigError(f"{place}: no such folder; create it with m3bind fit or m3bind ablate")
            if "/" not in place or path.suffix or place.count("/") > 1:  # not a hub id
                raise ConfigError(f"{place}: no such file or folder; see m3bind models for how to get the weights")
            continue
        parts += [f"{file.relative_to(path)} {_file_hash(file)}" for file in _files(source, path)]
    return sha256_text(*parts)


def _check_available(source: ModelSource) -> None:
    """Raise ConfigError if the source is missing, or names a model without weights."""
    if source.missing:
        raise ConfigError(source.missing)
    if source.model and source.checkpoint is None and not source.untrained:
        raise ConfigError(f"no weights of {source.model}: set its checkpoint=FILE in the suite (see m3bind models)")


def _files(source: ModelSource, path: Path) -> list[Path]:
    """The files that determine the model: all files of a checkpoint or space; settings and weights of runs."""
    if path.is_file():
        return [path]
    if source.checkpoint or source.space:
        return sorted(file for file in path.rglob("*") if file.is_file())
    folders = [path] if source.run else [*path.glob(f"seed*/{source.variant}"), *path.glob("seed*/pretrain*")]
    return sorted(f for at in folders for kind in ("config.yaml", "*final.safetensors") for f in at.rglob(kind))


def _file_hash(path: Path) -> str:
    facts = path.stat()
    return _content_hash(str(path), facts.st_size, facts.st_mtime_ns)


@cache
def _content_hash(path: str, size: int, modified: int) -> str:
    return sha256_file(path)


def open_evaluated(
    name: str, source: ModelSource, modality: str, cache: Path, compute: Compute | None = None
) -> list[EvaluatedModel]:
    """The model, or one per seed of an ablation; `modality` is that of a single dual encoder.

    On the device and with the workers of `compute`; default: chosen for this machine.

    Raises:
        ConfigError: the source is missing, or has no weights.
        CheckpointError: weights that cannot be read or do not fit.
    """
    _check_available(source)
    compute = compute or pick()
    encoder = FeatureExtractor(FeatureCache(cache), workers=compute.workers)
    if source.model:
        model = registry.load(source.model, source.checkpoint, **source.settings).to(compute.device)
        return [EvaluatedModel(name, {modality: model}, hash_state(model.state_dict()), encoder, any_modality=True)]
    if source.space:
        return [of_space(name, load(source.space, compute.device), encoder)]
    if source.run:
        return [_of_run(name, open_run(Path(source.run), compute), source.stage)]
    runs = ablated_runs(Path(source.ablation), source.variant, compute)
    return [_of_run(name, r, source.stage) for r in runs if not source.seeds or r.config.seed in source.seeds]


def ablated_runs(folder: Path, variant: str, compute: Compute | None = None) -> list[Run]:
    """The runs of one variant in a `folder` of `m3bind ablate`, one per seed; `compute` as in `open_evaluated`.

    Raises:
        ConfigError: there are no such runs.
    """
    places = sorted(folder.glob(f"seed*/{variant}/config.yaml"))
    if not places:
        raise ConfigError(f"{folder}: no runs of {variant}; create them with m3bind ablate --only {variant}")
    runs = []
    for place in places:
        settings = computing_on(validate(read_yaml(place), str(place)), compute)
        own = place.parent.parent / f"pretrain-{variant}"
        pretrain_folder = own if own.is_dir() else own.with_name("pretrain")
        runs.append(Run(settings, place.parent, cache=folder.parent / "cache", pretrain_folder=pretrain_folder))
    return runs


def of_space(
    name: str, space: Space, encoder: FeatureExtractor, fingerprint: str = "", seed: int = 0
) -> EvaluatedModel:
    """A space as a model under evaluation."""
    models = {m: space.model(m) for m in space.modalities}
    return EvaluatedModel(name, models, fingerprint or space.fingerprint, encoder, space, seed=seed)


def _of_run(name: str, run: Run, stage: Stage) -> EvaluatedModel:
    see_finished(run, stage)
    until = {"unbound": "pretrain", "closed_form": "closed_form", "aligned": "align", "distilled": "distill"}[stage]
    run.fit(until, evaluate=False)
    return of_space(name, space_of(run), run.extractor, sha256_text(stage, run.state.fingerprint()), run.config.seed)
