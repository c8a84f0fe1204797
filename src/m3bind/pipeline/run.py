"""All stages in order, each resumable: data, stage 0, closed form, stage 1, stage 2, evaluation, bundle.

`Run` holds one run's settings, folder and state. A stage that is already done is loaded, so every command simply asks
for what it needs, and the same command after a kill goes on where it stopped.

A run's folder:
    config.yaml            the resolved settings
    quarantine.csv         rows and files set aside, with reasons
    stage0/<modality>/     checkpoints, final weights, log of pre-training
    stage1/                the same of text-space alignment
    stage2/a, stage2/b     the same of distillation
    results.json           every figure, before and after each stage
    provenance.json        versions, hashes of settings and data
    sums.json              hashes of the files above, by which a later reader knows that they are as they were written
    report.html            the same with plots and pictures
    space/                 the bundle m3bind.load opens
"""

import contextlib
import csv
import ctypes
import gc
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from m3bind.align import methods, post
from m3bind.align.methods.base import BindingInputs
from m3bind.align.procrustes import BaseBridge, Bridge, identity_map
from m3bind.config import AlignConfig, PostConfig, RunConfig, validate
from m3bind.core import sums
from m3bind.core.files import only_one, sha256_file, sha256_text, write_json, write_text
from m3bind.core.progress import progress
from m3bind.core.provenance import provenance
from m3bind.core.stored import MOST_JSON, parse_json, read_text, read_yaml
from m3bind.data import manifest as manifests
from m3bind.data import splits, texts
from m3bind.data.batching import rng
from m3bind.data.cache import FeatureCache
from m3bind.data.records import BadRow, Record, format_bad_rows
from m3bind.distill.stage import DistillStage, Teachers
from m3bind.distill.student import StudentTexts
from m3bind.errors import ConfigError, ResultError
from m3bind.evaluate.results import ResultTable, Row
from m3bind.evaluate.suite import Matrix, View, measure
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder, train_wordpiece
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.features import Corpus, FeatureExtractor, build_model, levels, make_corpus
from m3bind.pretrain.stage import PretrainStage
from m3bind.privacy import shown
from m3bind.training.loop import train
from m3bind.training.pairs import Pairs
from m3bind.training.parallel import world

log = logging.getLogger(__name__)
SETTINGS = "config.yaml"
STAGES = ("pretrain", "closed_form", "align", "distill")


class Run:
    """One run: its settings, its folder, and what its stages have produced so far."""

    def __init__(self, config: RunConfig, folder: Path, cache: Path | None = None, stage0: Path | None = None) -> None:
        """`folder` is the run's own; `cache` and `stage0` may be shared with other runs (ablations).

        Raises:
            ConfigError: the folder holds a run with other settings.
        """
        self.config, self.folder = config, folder
        self.cache_folder = cache or folder.parent / "cache"
        self.stage0 = stage0 or folder / "stage0"
        _pin_settings(config, folder)
        self.encoder = FeatureExtractor(FeatureCache(self.cache_folder), inputs_gb=config.data.inputs_gb)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        set_seed(config.seed)
        self.bridges: dict[str, BaseBridge] = {}
        self.student: TextEncoder | None = None
        self.table = ResultTable()
        self.on_stage: Callable[[str], None] = lambda stage: None  # called after each stage, before it is measured

    # ---- data ----------------------------------------------------------------------------------------------------

    @cached_property
    def manifest_path(self) -> Path:
        """The manifest: one's own, or that of virtual patients made now.

        Raises:
            ConfigError: neither is set.
        """
        data = self.config.data
        if data.phantom is not None:
            from m3bind.data.phantom import cohort_hash, generate

            settings = data.phantom
            name = cohort_hash(settings.patients, settings.seed, settings.counts)
            folder = self.cache_folder / "phantom" / name
            with progress("virtual patients", total=settings.patients) as bar:
                done = generate(
                    folder,
                    patients=settings.patients,
                    seed=settings.seed,
                    counts=settings.counts,
                    progress=lambda count, total: bar.advance(count - bar.done),
                )
            return Path(done)
        if not data.manifest:
            raise ConfigError(
                "no data: set data.manifest=FILE (CSV, Parquet or JSONL), or use the preset demo (virtual patients)"
            )
        return Path(data.manifest)

    @cached_property
    def records(self) -> tuple[list[Record], list[BadRow]]:
        """Valid rows of the manifest with their final splits, and the others with reasons."""
        data = self.config.data
        wanted = list(self.config.modalities)
        if not wanted:
            raise ConfigError("no modalities: the settings need a section modalities, e.g. xray: {model: compact_2d}")
        found = manifests.read_manifest(self.manifest_path, root=data.root, sets=data.sets or None, modalities=wanted)
        records = list(found.records)
        if data.valid_fraction and not data.phantom:
            lacking = {m for m in wanted if not any(r.modality == m and r.split == "valid" for r in records)}
            carved = splits.carve_valid(
                [r for r in records if r.modality in lacking], data.valid_fraction, self.config.seed
            )
            records = [r for r in records if r.modality not in lacking] + carved
        if data.tune:  # choosing settings: the valid split stands in for test, which is not looked at
            records = [replace(r, split="test") if r.split == "valid" else r for r in records if r.split != "test"]
        if data.limit:
            records = _limited(records, data.limit)
        return records, list(found.bad)

    @cached_property
    def assets(self) -> Path:
        """Folder with the WordPiece tokenizer trained on this run's texts, for models that start from nothing."""
        folder = self.stage0 / "assets"
        if not (folder / "tokenizer.json").exists():
            records, _ = self.records
            further = [text for rows in self._further_texts.values() for text in rows]
            captions = [c for r in records if r.split == "train" for c in (*r.captions, *r.concepts)]
            tokenizer = train_wordpiece([*captions, *further])
            write_text(folder / "tokenizer.json", tokenizer.to_str())
        return folder

    @cached_property
    def _further_texts(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for entry in texts.load_corpus(self.config.data.corpus) if self.config.data.corpus else ():
            found.setdefault(entry.modality, []).append(entry.text)
        limit = self.config.data.corpus_limit
        return {m: [rows[i] for i in _some(len(rows), limit, m)] for m, rows in found.items()}

    @cached_property
    def models(self) -> dict[str, DualEncoder]:
        """The dual encoder of every modality of the settings, before stage 0."""
        built = {}
        for m, settings in self.config.modalities.items():
            torch.manual_seed(int(sha256_text(str(self.config.seed), "init", m)[:15], 16))
            built[m] = build_model(m, settings, self.assets)
        return built

    @cached_property
    def corpus(self) -> Corpus:
        """Records of all splits and every text; unusable rows and files are in quarantine.csv with their reasons."""
        records, bad = self.records
        minimum = self.config.data.minimum
        good: list[Record] = []
        names: list[str] = []
        for m, model in self.models.items():
            kept, unread = self.encoder.readable([r for r in records if r.modality == m], model)
            bad += unread
            size = sum(r.split == "train" for r in kept)
            if size < minimum:
                bad.append(
                    BadRow(
                        row=0,
                        reason=f"modality {m}: {size} usable training pairs, data.minimum is {minimum}; left out",
                        path="",
                    )
                )
                continue
            names.append(m)
            good += kept
        self._quarantine(bad)
        if not names:
            raise ConfigError(
                f"{self.manifest_path}: no modality has {minimum} usable training pairs; "
                f"the reasons are in {self.folder / 'quarantine.csv'}"
            )
        return make_corpus(
            good, names, self._further_texts, self.config.seed, self.config.evaluate.agreement_texts, bad
        )

    def _quarantine(self, bad: Sequence[BadRow]) -> None:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["row", "path", "reason"])
        writer.writerows([b.row, shown(b.path) if b.path else "", b.reason] for b in bad)
        write_text(self.folder / "quarantine.csv", buffer.getvalue())
        if bad:
            log.warning("%s", format_bad_rows(bad))

    def pairs(self, stage: str) -> dict[str, Pairs]:
        """Training pairs of every modality, each side computed as far as the stage leaves it frozen."""
        corpus = self.corpus
        pairs = {}
        for m in corpus.modalities:
            model = self.models[m]
            image, text = levels(self.config, model, stage)
            views = self.config.pretrain_for(m).views if stage == "pretrain" and image == "features" else 1
            pairs[m] = self.encoder.pairs(m, model, corpus.records[m]["train"], corpus.table, image, text, views)
            _ = pairs[m].images.array  # computed now, in eval mode
        return pairs

    # ---- stages --------------------------------------------------------------------------------------------------

    def pretrain(self, only: Sequence[str] = ()) -> None:
        """Stage 0 for every modality whose settings ask for it."""
        corpus = self.corpus
        for m in corpus.modalities:
            if not self.config.modalities[m].pretrain or (only and m not in only):
                continue
            settings, model = self.config.pretrain_for(m), self.models[m]
            image, text = levels(self.config, model, "pretrain")
            views = settings.views if image == "features" else 1
            pairs = self.encoder.pairs(m, model, corpus.records[m]["train"], corpus.table, image, text, views)
            _ = pairs.images.array  # computed now, in eval mode
            calibrate = getattr(model.image_head, "calibrate", None)
            if calibrate is not None and image == "features":
                array = pairs.images.array
                calibrate(torch.from_numpy(array.reshape(-1, array.shape[-1])))
            train(
                PretrainStage(pairs, settings, self.config.seed),
                settings,
                self.stage0 / m,
                self.config.seed,
                self.accelerator,
            )
            model.requires_grad_(False)
            model.eval()
        self.encoder.weights_changed()

    def _inputs(self, pairs: dict[str, Pairs], folder: Path) -> BindingInputs:
        pool = {m: self.corpus.pool[m] for m in pairs}
        return BindingInputs(pairs, pool, folder, self.config.seed)

    def unbound(self) -> None:
        """Bridges that only bring every space to the common dimension: no binding."""
        dim = self.config.align.dim
        self.bridges = {m: Bridge(identity_map(self.models[m].joint_dim, dim)) for m in self.corpus.modalities}

    def closed_form(self) -> None:
        """Binding without training: Procrustes."""
        pairs = self.finished_pairs()
        settings = self.config.align.model_copy(update={"options": {}})
        self.bridges = methods.get("procrustes").bind(self._inputs(pairs, self.folder / "closed_form"), settings)

    def align(self) -> None:
        """Stage 1 by the method of the settings."""
        self.bind(self.config.align, self.folder / "stage1")

    def bind(self, settings: AlignConfig, folder: Path, pairs: dict[str, Pairs] | None = None) -> None:
        """Stage 1 and post steps by any settings, checkpoints in `folder`; `pairs` where they are there already."""
        method = methods.get(settings.method)
        method.options(settings)
        if pairs is None:
            pairs = self.pairs("align") if method.towers else self.finished_pairs()
        self.bridges = method.bind(self._inputs(pairs, folder), settings)
        self.encoder.weights_changed()
        self.bridges = self.with_post(settings.post)

    def sides(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality, embeddings (n, d_m) of the training images and of their canonical captions, not yet bound."""
        return {
            m: (
                pairs.images.encode(torch.arange(len(pairs))),
                pairs.texts.encode(torch.tensor([int(ids[0]) for ids in pairs.captions])),
            )
            for m, pairs in self.finished_pairs().items()
        }

    def with_post(
        self, settings: PostConfig, sides: Mapping[str, tuple[Tensor, Tensor]] | None = None
    ) -> dict[str, BaseBridge]:
        """The present bridges followed by post steps, fitted on `sides` (default: computed here)."""
        if settings == PostConfig():
            return self.bridges
        sides = self.sides() if sides is None else sides
        return {m: post.after(self.bridges[m], settings, *sides[m], self.models[m]) for m in sides}

    def posted_images(self, settings: PostConfig, split: str) -> dict[str, Matrix]:
        """(n, d) unit rows of every modality as they would be after post steps."""
        bridges, self.bridges = self.bridges, self.with_post(settings)
        try:
            return {m: self.embed_images(m, split) for m in self.corpus.modalities}
        finally:
            self.bridges = bridges

    def distill(self) -> None:
        """Stage 2: the shared student, phases A and B."""
        settings, corpus = self.config.distill, self.corpus
        torch.manual_seed(int(sha256_text(str(self.config.seed), "student")[:15], 16))
        student = make_text_encoder(
            settings.student.text, dim=self.config.align.dim, assets=self.assets, **settings.student.settings
        )
        features = self.encoder.text_features(corpus.table.texts, student) if settings.student.train == "head" else None
        wrapped = StudentTexts(student, corpus.table, features)
        pairs = self.finished_pairs()
        teachers = self._teachers()
        inputs = self._inputs(pairs, self.folder / "stage2")
        shares = inputs.pool_probabilities(settings.balance)
        for phase, steps in (("a", settings.steps), ("b", settings.steps_b)):
            phase_settings = settings.model_copy(update={"steps": steps})
            stage = DistillStage(phase, wrapped, teachers, pairs, corpus.pool, shares, phase_settings, self.config.seed)
            train(stage, phase_settings, self.folder / "stage2" / phase, self.config.seed, self.accelerator)
        self.student = student.requires_grad_(False).eval()
        self.encoder.weights_changed()

    def finished_pairs(self) -> dict[str, Pairs]:
        """Training pairs of every modality with both sides already embedded."""
        corpus = self.corpus
        return {
            m: self.encoder.pairs(m, self.models[m], corpus.records[m]["train"], corpus.table, "embedding", "embedding")
            for m in corpus.modalities
        }

    def _teachers(self) -> Teachers:
        """Bridged embeddings of all texts by all towers and of all training images by their own."""
        corpus = self.corpus
        text = {m: self.embed_text(corpus.table.texts, m) for m in corpus.modalities}
        images = {m: self.embed_images(m, "train") for m in corpus.modalities}
        scales = {m: float(self.models[m].logit_scale.detach()) for m in corpus.modalities}
        return Teachers(text, images, scales)

    # ---- embeddings ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def embed_images(self, modality: str, split: str) -> Matrix:
        """(N, d) unit rows of a split's images in the bound space as it is now."""
        model = self.models[modality]
        side = self.encoder.image_side(model, self.corpus.records[modality][split], "embedding")
        return np.asarray(
            self.bridges[modality].image(torch.from_numpy(np.array(side.array))).numpy(), dtype=np.float32
        )

    @torch.inference_mode()
    def embed_text(self, sentences: Sequence[str], path: str) -> Matrix:
        """(K, d) unit rows of texts by a modality's teacher or by the student."""
        if path == "student":
            assert self.student is not None
            features = torch.from_numpy(self.encoder.text_features(sentences, self.student))
            return torch.nn.functional.normalize(self.student.project(features), dim=-1).numpy()
        model = self.models[path]
        features = torch.from_numpy(self.encoder.text_features(sentences, model))
        own = torch.nn.functional.normalize(model.project_text(features), dim=-1)
        return np.asarray(self.bridges[path].text(own).numpy(), dtype=np.float32)

    def view(self, stage: str) -> View:
        """The present state for evaluation, on the test split."""
        names = self.corpus.modalities
        return View(
            stage,
            {m: self.embed_images(m, "test") for m in names},
            {m: self.corpus.records[m]["test"] for m in names},
            {m: self.embed_images(m, "train") for m in names},
            {m: self.corpus.records[m]["train"] for m in names},
            self.embed_text,
            student=self.student is not None,
            scales={m: float(self.models[m].logit_scale.detach()) for m in names},
            posted={gap: self.posted_images(PostConfig(gap=gap), "test") for gap in self.config.evaluate.post},
        )

    def evaluate(self, stage: str) -> list[Row]:
        """Figures of the present state, measured once and kept in results/<stage>.json."""
        path = self.folder / "results" / f"{stage}.json"
        if not path.exists():
            held_out = [self.corpus.table.texts[i] for i in self.corpus.held_out]
            split = "valid" if self.config.data.tune else "test"
            ResultTable(measure(self.view(stage), held_out, self.config.evaluate, split, self.config.seed)).save(path)
        rows = ResultTable.load(path).rows
        self.table.extend(rows)
        return rows

    # ---- all together --------------------------------------------------------------------------------------------

    def fit(self, until: str = "distill", evaluate: bool = True) -> ResultTable:
        """All stages up to `until` (pretrain, closed_form, align, distill), with figures after each.

        Without `evaluate`, the figures and the provenance that the folder holds stay as they are.

        Raises:
            ConfigError: `until` is no stage.
            BusyError: another process trains in this folder.
            ResultError: stored results are missing or not as they were written.
        """
        if until not in STAGES:
            raise ConfigError(f"unknown stage {until!r}; choose one of {', '.join(STAGES)}")
        alone = evaluate and world()[0] == 0  # opened to be measured by others, a run may be read by several
        with only_one(self.folder, "run") if alone else contextlib.nullcontext():
            return self._fit(STAGES.index(until), alone)

    def _fit(self, last: int, measuring: bool) -> ResultTable:
        steps: list[tuple[Callable[[], None], str]] = [(self._unbound_after_pretraining, "unbound")]
        if len(self.corpus.modalities) > 1:
            steps += [(self.closed_form, "closed_form"), (self.align, "bound"), (self.distill, "distilled")][:last]
        for do, stage in steps:
            do()
            self.encoder.weights_changed()
            _release()
            self.on_stage(stage)
            if measuring:
                self.evaluate(stage)
        if measuring:
            self.table.save(self.folder / "results.json")
            files = {"manifest": self.manifest_path, "corpus": self.config.data.corpus}
            with sums.writing(self.folder, "provenance.json"):
                write_json(self.folder / "provenance.json", provenance(self.config.model_dump(mode="json"), files))
        return self.table

    def _unbound_after_pretraining(self) -> None:
        self.pretrain()
        self.unbound()

    def history(self) -> list[dict[str, Any]]:
        """Log rows of all stages, in order."""
        rows: list[dict[str, Any]] = []
        logs = [*(self.stage0 / m / "log.jsonl" for m in self.corpus.modalities), self.folder / "stage1" / "log.jsonl"]
        for path in [*logs, self.folder / "stage2" / "a" / "log.jsonl", self.folder / "stage2" / "b" / "log.jsonl"]:
            if path.exists():
                rows += [parse_json(line, path) for line in read_text(path, MOST_JSON).splitlines()]
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def fingerprint(self) -> str:
        """Hash of all weights of the present state, for comparing runs."""
        parts = [hash_state(self.models[m].state_dict()) for m in self.corpus.modalities]
        parts += [hash_state(self.bridges[m].state_dict()) for m in self.bridges]
        if self.student is not None:
            parts.append(hash_state(self.student.state_dict()))
        return sha256_text(*parts)


def _release() -> None:
    """Give freed memory back to the system, which glibc otherwise keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _pin_settings(config: RunConfig, folder: Path) -> None:
    """Save the settings in the run's folder, or make sure that those it was begun with are the same.

    Raises:
        ConfigError: they differ; names the first settings that do.
        ResultError: the saved settings are not as they were written.
    """
    path = folder / SETTINGS
    stated = sums.recorded(folder).get(SETTINGS)
    if path.exists():
        sums.check(folder, [SETTINGS])
    now = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    if path.exists():
        changed = differences(_with_defaults(read_yaml(path)), now)
        if changed:
            raise ConfigError(
                f"{folder} holds a run with other settings ({'; '.join(changed[:4])}{' ...' * (len(changed) > 4)}); "
                "give this one another --name, or delete the folder"
            )
        return
    config.save(path)
    if stated not in (None, sha256_file(path)):
        path.unlink()
        raise ResultError(
            f"{folder}: {SETTINGS} is missing, and the run was begun with other settings than these; restore the file, "
            "give this run another --name, or delete the folder"
        )
    sums.record(folder, SETTINGS)


def _with_defaults(tree: Any) -> Any:
    """Settings an older version saved, with defaults of those that came since; as they are where they do not fit."""
    try:
        return dict(yaml.safe_load(yaml.safe_dump(validate(tree).model_dump(mode="json"))))
    except ConfigError:
        return tree


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two trees of values: "align.lam: 1.0 then, 10.0 now"."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if before == now else [f"{where}: {before!r} then, {now!r} now"]


def _some(count: int, limit: int | None, name: str) -> list[int]:
    """Positions of at most `limit` of `count` items, drawn by lot once and for all seeds."""
    if limit is None or count <= limit:
        return list(range(count))
    return sorted(rng(0, "corpus", name).permutation(count)[:limit].tolist())


def _limited(records: Sequence[Record], limit: int) -> list[Record]:
    """At most `limit` records of each modality and split, the first ones."""
    counts: dict[tuple[str, str], int] = {}
    kept = []
    for record in records:
        key = (record.modality, record.split)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= limit:
            kept.append(record)
    return kept
