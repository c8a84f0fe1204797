"""Whom a protocol measures: a published model alone, or a bound space. Frozen towers run over a file or text once.

* `ModelSource`: where it is; `source_hash`.
* `EvaluatedModel`: images, features, texts, scores of labels. * `open_evaluated`.

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
from m3bind.pipeline.outputs import open_run, see_finished, space_of
from m3bind.pipeline.run import Run
from m3bind.space.bundle import STUDENT, Space, load

Array = NDArray[np.float32]
Stage = Literal["unbound", "closed_form", "aligned", "distilled"]


class ModelSource(Strict, frozen=True):
    """Where a model is: a model and its weights, a space, a run at one of its stages, or a variant of an ablation."""

    model: str = ""
    checkpoint: str | None = None
    untrained: bool = False  # take the model as it is built, without weights
    settings: dict[str, Any] = {}
    space: str = ""  # folder or hub id
    run: str = ""  # folder that m3bind fit wrote
    ablation: str = ""  # folder that m3bind ablate wrote; one model per seed
    variant: str = "base"  # of the ablation
    seeds: tuple[int, ...] = ()  # of the ablation; empty: all
    stage: Stage = "distilled"  # of the run or variant
    missing: str = ""  # why there is none, where none can be had

    @model_validator(mode="after")
    def _one(self) -> "ModelSource":
        if sum(map(bool, (self.model, self.space, self.run, self.ablation, self.missing))) != 1:
            raise ValueError("a model is one of model, space, run, ablation (or states why it is missing)")
        return self


@dataclass
class EvaluatedModel:
    """Models by modality, and for a space the way into it. `fingerprint` is the hash of all weights."""

    name: str
    models: dict[str, DualEncoder]
    fingerprint: str
    encoder: FeatureExtractor
    space: Space | None = None
    any_modality: bool = False  # a model that takes pictures of every modality
    seed: int = 0  # of the run it comes from

    def model(self, modality: str) -> DualEncoder:
        """The model that embeds `modality`.

        Raises:
            ConfigError: the model does not know it.
        """
        if self.any_modality:
            return next(iter(self.models.values()))
        if modality not in self.models:
            raise ConfigError(f"{self.name} does not know {modality}, only {', '.join(self.models)}")
        return self.models[modality]

    def readable(self, records: Sequence[Record]) -> tuple[list[Record], list[BadRow]]:
        """Records of one modality whose files can be read, and the others with reasons."""
        return self.encoder.readable(records, self.model(records[0].modality)) if records else ([], [])

    @torch.inference_mode()
    def images(self, records: Sequence[Record]) -> Array:
        """(n, d) unit rows of files of one modality."""
        modality = records[0].modality
        own = self.encoder.image_embeddings(records, self.model(modality))
        return own if self.space is None else self.space.project(own, modality)

    def features(self, records: Sequence[Record]) -> Array:
        """(n, f): what the image trunk gives before the projection, or the embedding where that is too wide to keep."""
        model = self.model(records[0].modality)
        if getattr(model.image_head, "in_features", 0) > WIDE:
            return self.images(records)
        return self.encoder.image_features(records, model)

    @property
    def has_student(self) -> bool:
        """Whether there is a shared text encoder."""
        return self.space is not None and STUDENT in self.space.text_encoders

    def text_encoder(self, modality: str, asked: str = "") -> str:
        """The text tower that is meant: "student" where there is one and "teacher" was not asked for."""
        if asked == "student" and not self.has_student:
            raise ConfigError(f"{self.name} has no student")
        return STUDENT if self.has_student and asked != "teacher" else modality

    def texts(self, texts: Sequence[str], path: str) -> Array:
        """(p, d) unit rows of texts by "student" or the text tower of a modality."""
        if path == STUDENT:
            assert self.space is not None
            return self.space.encode_text(texts, encoder=STUDENT)
        model = self.model(path)
        features = torch.from_numpy(self.encoder.text_features(texts, model))
        with torch.inference_mode():
            own = torch.nn.functional.normalize(model.project_text(features), dim=-1).float().numpy()
        return own if self.space is None else self.space.project(own, path, side="text")

    def scale(self, modality: str) -> float:
        """Factor on cosines before a softmax."""
        return float(self.model(modality).logit_scale.detach())

    @torch.inference_mode()
    def label_scores(self, records: Sequence[Record]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        """Label names and (n, k) logits of a model that was trained on labels.

        Raises:
            ConfigError: it has no layer for labels.
        """
        model = self.model(records[0].modality)
        logits = getattr(model, "label_logits", None)
        if logits is None:
            raise ConfigError(f"{self.name} has no layer for labels; it cannot be measured as a classifier")
        wide = getattr(model.image_head, "in_features", 0) > WIDE
        rows = self.encoder.image_embeddings(records, model) if wide else self.encoder.image_features(records, model)
        names: tuple[str, ...] = model.labels  # type: ignore[assignment]
        return names, np.asarray(logits(torch.from_numpy(rows)).double().numpy())

    def finetune(self, records: Sequence[Record]) -> LoraFinetune:
        """The few-shot method that adapts the image tower, for files of `records`, all of one modality."""
        folder = self.encoder.cache.folder / "finetune" / self.fingerprint[:16]
        return finetune_of(self.model(records[0].modality), records, self.encoder, folder)

    def training_data(self, modality: str) -> tuple[str, ...]:
        """Names of the data sets its model has seen, from its card."""
        return tuple(self.model(modality).card.training_data)


def source_hash(source: ModelSource) -> str:
    """Hash of the source and of the files behind it, without opening them as models.

    Raises:
        ConfigError: it states that it is missing, or its files are not there.
    """
    _there(source)
    parts = [source.model_dump_json()]
    for place in filter(None, (source.checkpoint, source.space, source.run, source.ablation)):
        path = Path(place)
        if not path.exists():
            if place in (source.run, source.ablation):
                raise ConfigError(f"{place}: no such folder; make it with m3bind fit or m3bind ablate")
            if "/" not in place or path.suffix or place.count("/") > 1:  # no id of a hub
                raise ConfigError(f"{place}: no such file or folder; see m3bind models for how to get the weights")
            continue
        parts += [f"{file.relative_to(path)} {_file_hash(file)}" for file in _files(source, path)]
    return sha256_text(*parts)


def _there(source: ModelSource) -> None:
    """Raise ConfigError where the source states that it is missing, or names a model without weights."""
    if source.missing:
        raise ConfigError(source.missing)
    if source.model and source.checkpoint is None and not source.untrained:
        raise ConfigError(f"no weights of {source.model}: set its checkpoint=FILE in the suite (see m3bind models)")


def _files(source: ModelSource, path: Path) -> list[Path]:
    """The files that decide what the model is: all of a checkpoint or space; settings and weights of runs."""
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


def open_evaluated(name: str, source: ModelSource, modality: str, cache: Path) -> list[EvaluatedModel]:
    """The model, or one per seed of an ablation; `modality` is what a lone model is asked about.

    Raises:
        ConfigError: it states that it is missing, or there are no weights.
        CheckpointError: weights that cannot be read or do not fit.
    """
    _there(source)
    encoder = FeatureExtractor(FeatureCache(cache))
    if source.model:
        model = registry.load(source.model, source.checkpoint, **source.settings)
        return [EvaluatedModel(name, {modality: model}, hash_state(model.state_dict()), encoder, any_modality=True)]
    if source.space:
        return [of_space(name, load(source.space), encoder)]
    if source.run:
        return [_of_run(name, open_run(Path(source.run)), source.stage)]
    runs = ablated_runs(Path(source.ablation), source.variant)
    return [_of_run(name, r, source.stage) for r in runs if not source.seeds or r.config.seed in source.seeds]


def ablated_runs(folder: Path, variant: str) -> list[Run]:
    """The runs of one variant that `m3bind ablate` left in `folder`, one per seed.

    Raises:
        ConfigError: there are none.
    """
    places = sorted(folder.glob(f"seed*/{variant}/config.yaml"))
    if not places:
        raise ConfigError(f"{folder}: no runs of {variant}; make them with m3bind ablate --only {variant}")
    runs = []
    for place in places:
        settings = validate(read_yaml(place), str(place))
        own = place.parent.parent / f"pretrain-{variant}"
        pretrain_folder = own if own.is_dir() else own.with_name("pretrain")
        runs.append(Run(settings, place.parent, cache=folder.parent / "cache", pretrain_folder=pretrain_folder))
    return runs


def of_space(
    name: str, space: Space, encoder: FeatureExtractor, fingerprint: str = "", seed: int = 0
) -> EvaluatedModel:
    """A space as a model."""
    models = {m: space.model(m) for m in space.modalities}
    return EvaluatedModel(name, models, fingerprint or space.fingerprint, encoder, space, seed=seed)


def _of_run(name: str, run: Run, stage: Stage) -> EvaluatedModel:
    see_finished(run, stage)
    until = {"unbound": "pretrain", "closed_form": "closed_form", "aligned": "align", "distilled": "distill"}[stage]
    run.fit(until, evaluate=False)
    return of_space(name, space_of(run), run.extractor, sha256_text(stage, run.state.fingerprint()), run.config.seed)
