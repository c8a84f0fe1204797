"""A run: its folder, the order of its stages, and the evaluation after each.

Only `Run` writes the folder; the stages are functions (`stages`) of a `State`. A finished stage is loaded, so every
command requests the stages it needs, and the same command resumes a killed run.

A run's folder:
    config.yaml            the resolved settings
    quarantine.csv         rows and files that cannot be used, with reasons
    pretrain/<modality>/   checkpoints, final weights, log of pre-training
    align/                 likewise for text-space alignment
    distill/a, distill/b   likewise for distillation
    results.json           all metrics, before and after each stage
    provenance.json        versions, hashes of settings and data
    sums.json              hashes of the files above, which detect later changes
    report.html            the results with plots and thumbnails
    space/                 the bundle that m3bind.load opens
"""

import contextlib
import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.utils import set_seed

from m3bind.config import PostConfig, RunConfig, validate
from m3bind.core import sums
from m3bind.core.device import release_memory
from m3bind.core.files import only_one, sha256_file, write_json, write_text
from m3bind.core.provenance import provenance
from m3bind.core.stored import MAX_JSON, parse_json, read_text, read_yaml
from m3bind.data.cache import FeatureCache, Share
from m3bind.data.records import BadRow, Record, Records, format_bad_rows
from m3bind.errors import ConfigError, ResultError
from m3bind.evaluate.own_prompts import check_prompts
from m3bind.evaluate.results import ResultTable, Row
from m3bind.evaluate.stage_results import Matrix, View, measure
from m3bind.pipeline import dataset, stages
from m3bind.pipeline.dataset import Dataset
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.stages import Setup, State
from m3bind.privacy import redact_path
from m3bind.training.parallel import agree, join, main_first, wait, world

log = logging.getLogger(__name__)
SETTINGS = "config.yaml"
STAGES = ("pretrain", "closed_form", "align", "distill")


class Run:
    """One run: its settings, its folder, and the result of its stages so far (`state`)."""

    def __init__(
        self, config: RunConfig, folder: Path, cache: Path | None = None, pretrain_folder: Path | None = None
    ) -> None:
        """`cache` and `pretrain_folder` may be shared with other runs (ablations), `folder` may not.

        Raises:
            ConfigError: the folder contains a run with other settings.
        """
        self.config, self.folder = config, folder
        self.cache_folder = cache or folder.parent / "cache"
        self.pretrain_folder = pretrain_folder or folder / "pretrain"
        self.compute = config.compute.pick()
        join(self.compute.device)
        with main_first():
            _pin_settings(config, folder)
        self.extractor = FeatureExtractor(
            FeatureCache(self.cache_folder), workers=self.compute.workers, inputs_gb=config.data.inputs_gb
        )
        set_seed(config.seed)
        self.table = ResultTable()
        self.on_stage: Callable[[str], None] = lambda stage: None  # called after each stage, before it is measured
        self._setup: Setup | None = None
        self._state: State | None = None
        self._manifest: Path | None = None

    # ---- data

    def find_manifest(self) -> Path:
        """The manifest of the settings, or that of virtual patients, generated at the first call.

        Raises:
            ConfigError: neither is set.
        """
        if self._manifest is None:
            with main_first():
                self._manifest = dataset.find_manifest(self.config.data, self.cache_folder)
        return self._manifest

    def read_records(self) -> tuple[Records, list[BadRow]]:
        """Valid rows of the manifest with their final splits, and the invalid ones with reasons."""
        return dataset.read_records(self.config, self.find_manifest())

    def make_assets(self, records: Sequence[Record]) -> Path:
        """Folder for the tokenizer of untrained models, if there are any: trained once on the texts of `records`."""
        folder = self.pretrain_folder / "assets"
        if dataset.needs_assets(self.config):
            with main_first():
                dataset.make_assets(folder, records, dataset.extra_texts(self.config.data))
        return folder

    def prepare(self) -> Setup:
        """Read the data and build the models, once; unusable rows and files are listed in quarantine.csv.

        Raises:
            ConfigError: no modality has enough usable training pairs, or own prompts do not fit the manifest.
        """
        if self._setup is None:
            records, bad = self.read_records()
            if not len(records.where(split="train")):
                self._quarantine(bad)
                raise self._too_few_pairs()
            for note in check_prompts(self.config.evaluate.tasks, records):
                log.warning("%s", note)
            models = dataset.build_models(self.config, self.make_assets(records))
            for model in models.values():
                model.to(self.compute.device)
            extra = dataset.extra_texts(self.config.data)
            data = dataset.open_dataset(self.config, records, bad, models, self.extractor, extra)
            self._quarantine(data.bad)
            agree(
                f"{self.find_manifest()} and the files that can be read", partial(_digest, self.find_manifest(), data)
            )
            if not data.modalities:
                raise self._too_few_pairs()
            self._setup = Setup(self.config, data, self.extractor, self.compute)
            self._state = State({m: models[m] for m in data.modalities})
        return self._setup

    @property
    def setup(self) -> Setup:
        """The common input of the stages, after `prepare`."""
        assert self._setup is not None, "prepare() comes first"
        return self._setup

    @property
    def dataset(self) -> Dataset:
        """The run's data, after `prepare`."""
        return self.setup.dataset

    @property
    def state(self) -> State:
        """The current models, bridges and student, after `prepare`."""
        assert self._state is not None, "prepare() comes first"
        return self._state

    def _too_few_pairs(self) -> ConfigError:
        return ConfigError(
            f"{self.find_manifest()}: no modality has {self.config.data.minimum} usable training pairs; "
            f"the reasons are in {self.folder / 'quarantine.csv'}"
        )

    def _quarantine(self, bad: Sequence[BadRow]) -> None:
        if world()[0]:
            return
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(["row", "path", "reason"])
        writer.writerows([b.row, redact_path(b.path) if b.path else "", b.reason] for b in bad)
        write_text(self.folder / "quarantine.csv", buffer.getvalue())
        if bad:
            log.warning("%s", format_bad_rows(bad))

    # ---- stages

    def pretrain(self) -> None:
        """Stage 0, and bridges without binding."""
        setup = self.prepare()
        self._state = stages.unbound(stages.pretrain(self.state, setup, self.pretrain_folder), setup)

    def fit(self, until: str = "distill", evaluate: bool = True) -> ResultTable:
        """All stages up to `until` (pretrain, closed_form, align, distill), measured after each.

        Without `evaluate`, results and provenance in the folder do not change.

        Raises:
            ConfigError: `until` is not a stage.
            BusyError: another process trains in this folder.
            ResultError: stored results are missing or were changed.
        """
        if until not in STAGES:
            raise ConfigError(f"unknown stage {until!r}; choose one of {', '.join(STAGES)}")
        # without evaluation, several processes may read a run
        alone = only_one(self.folder, "run") if evaluate and world()[0] == 0 else contextlib.nullcontext()
        with alone, self.extractor.cache.shared(Share(*world(), wait)):
            return self._fit(STAGES.index(until), evaluate)

    def _fit(self, last: int, measuring: bool) -> ResultTable:
        setup, assets = self.prepare(), self.pretrain_folder / "assets"
        names = ["unbound", "closed_form", "aligned", "distilled"][: last + 1 if len(setup.modalities) > 1 else 1]
        for stage in names:
            if stage == "unbound":
                self.pretrain()
            elif stage == "closed_form":
                self._state = stages.closed_form(self.state, setup, self.folder / "closed_form")
            elif stage == "aligned":
                self._state = stages.align(self.state, setup, self.folder / "align")
            else:
                self._state = stages.distill(self.state, setup, self.folder / "distill", assets)
            self.extractor.invalidate_hashes()
            release_memory()
            self.on_stage(stage)
            if measuring:
                self.evaluate(stage)
        if measuring and world()[0] == 0:
            self.table.save(self.folder / "results.json")
            files = {"manifest": self.find_manifest(), "extra_texts": self.config.data.extra_texts}
            with sums.writing(self.folder, "provenance.json"):
                write_json(self.folder / "provenance.json", provenance(self.config.of_result(), files))
        wait()
        return self.table

    # ---- results

    def embed_images(self, modality: str, split: str) -> Matrix:
        """(N, d) unit rows of a split's images in the current space."""
        return stages.embed_images(self.state, self.setup, modality, split)

    def embed_text(self, texts: Sequence[str], encoder: str) -> Matrix:
        """(K, d) unit rows of texts by a modality's own text tower, or by "student"."""
        return stages.embed_text(self.state, self.setup, texts, encoder)

    def view(self, stage: str) -> View:
        """The current state for evaluation, on the test split."""
        names, state, records = self.dataset.modalities, self.state, self.dataset.records
        posted: dict[str, dict[str, Matrix]] = {}
        for gap in self.config.evaluate.post:
            after = stages.with_post(state, self.setup, PostConfig(gap=gap))
            posted[gap] = {m: stages.embed_images(after, self.setup, m, "test") for m in names}
        return View(
            stage,
            {m: self.embed_images(m, "test") for m in names},
            {m: records[m]["test"] for m in names},
            {m: self.embed_images(m, "train") for m in names},
            {m: records[m]["train"] for m in names},
            partial(stages.embed_text, state, self.setup),
            student=state.student is not None,
            scales={m: float(state.models[m].logit_scale.detach()) for m in names},
            posted=posted,
        )

    def evaluate(self, stage: str) -> list[Row]:
        """Metrics of the current state, computed once and stored in results/<stage>.json.

        Several processes share the embedding; the first measures, however long that takes, and the others wait.
        """
        path = self.folder / "results" / f"{stage}.json"
        done = path.exists()
        wait()  # all have looked before the first process writes
        view = None if done else self.view(stage)
        if view is not None and world()[0] == 0:
            held_out = self.dataset.table.take(self.dataset.held_out)
            split = "valid" if self.config.data.tune else "test"
            with self.extractor.cache.shared(Share()):
                ResultTable(measure(view, held_out, self.config.evaluate, split, self.config.seed)).save(path)
        wait()
        rows = ResultTable.load(path).rows
        self.table.extend(rows)
        return rows

    def history(self) -> list[dict[str, Any]]:
        """Log rows of all stages, in order; also written to log.jsonl."""
        folders = [self.pretrain_folder / m for m in self.dataset.modalities]
        folders += [self.folder / name for name in ("align", "distill/a", "distill/b")]
        rows: list[dict[str, Any]] = []
        for folder in folders:
            path = folder / "log.jsonl"
            if path.exists():
                rows += [parse_json(line, path) for line in read_text(path, MAX_JSON).splitlines()]
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def _digest(manifest: Path, data: Dataset) -> str:
    """Of what all processes of a run must find in their data."""
    digest = hashlib.sha256(sha256_file(manifest).encode() + data.table.digests.tobytes())
    for splits in data.records.values():
        for records in splits.values():
            digest.update(len(records).to_bytes(8, "little") + records.rows.astype(np.int64).tobytes())
    return digest.hexdigest()


def _pin_settings(config: RunConfig, folder: Path) -> None:
    """Save the settings in the run's folder, or check that the saved ones are the same.

    Raises:
        ConfigError: they differ; names the first differences.
        ResultError: the saved settings were changed.
    """
    path = folder / SETTINGS
    if world()[0] and not path.exists():
        raise ConfigError(
            f"{path} does not exist, although the first process has written it: all processes need the same --out and "
            "--name, in a folder that all of them see"
        )
    recorded = sums.recorded(folder).get(SETTINGS)
    if path.exists():
        sums.check(folder, [SETTINGS])
        now = yaml.safe_load(yaml.safe_dump(config.of_result()))
        changed = differences(_of_result(read_yaml(path)), now)
        if changed:
            raise ConfigError(
                f"{folder} holds a run with other settings ({'; '.join(changed[:4])}{' ...' * (len(changed) > 4)}); "
                "give this one another --name, or delete the folder"
            )
        return
    config.save(path)
    if recorded not in (None, sha256_file(path)):
        path.unlink()
        raise ResultError(
            f"{folder}: {SETTINGS} is missing, and the run was started with other settings; restore the file, "
            "give this run another --name, or delete the folder"
        )
    sums.record(folder, SETTINGS)


def _of_result(tree: object) -> object:
    """Settings saved by this or an older version, completed by defaults; unchanged if they are not valid."""
    try:
        return dict(yaml.safe_load(yaml.safe_dump(validate(tree).of_result())))
    except ConfigError:
        return tree


def differences(before: object, now: object, where: str = "") -> list[str]:
    """The differences between two trees of values, e.g. "align.mse_weight: 1.0 then, 10.0 now"."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [f"{where}: {before!r} then, {now!r} now"]
    lines = []
    for key in dict.fromkeys([*before, *now]):
        lines += differences(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    return lines
