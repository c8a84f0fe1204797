"""The amount of work of a run: pairs, files and texts, from the manifest or, if it is missing, from the settings.

* `work_of`: the `Work` of a run, and a folder with a tokenizer for models that have none of their own.
* `expected_captions`, `distinct_draws`: expected numbers of distinct captions of a batch, and of texts drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m3bind.align.balance import sampling_probabilities
from m3bind.config import DataConfig, RunConfig
from m3bind.core.files import write_text
from m3bind.data.batching import IntArray, distinct_ids
from m3bind.data.records import Record
from m3bind.errors import ConfigError, ManifestError
from m3bind.models.layers.text_encoder import train_wordpiece
from m3bind.pipeline import dataset

ASSUMED_PAIRS = 10_000  # per modality, if neither a manifest nor plan.sizes states their number
SHOWN = 48  # files per modality that may be read to measure decoding


@dataclass
class Work:
    """Numbers of pairs, files and texts of a run."""

    pairs: dict[str, int]  # training pairs per modality
    files: dict[str, int]  # of all splits
    valid: dict[str, int]  # samples of the valid split
    captions: dict[str, int]  # number of distinct texts of the training pairs
    kinds: int  # number of distinct texts of the shared pool
    texts: int  # and of all texts that are encoded before training: also those held out
    known: bool  # from a manifest, not from the settings
    sample: dict[str, list[str]] = field(default_factory=dict)  # some captions of each modality
    pool: list[str] = field(default_factory=list)  # some texts of the shared pool, including short phrases
    records: dict[str, Sequence[Record]] = field(default_factory=dict)  # some files of each modality


def work_of(config: RunConfig, folder: Path, cache: Path, notes: list[str]) -> tuple[Work, Path]:
    """The work of the run, and the folder with the tokenizer of untrained models.

    Args:
        config: the run.
        folder: for intermediate files; may be temporary.
        cache: the runs' shared cache (virtual patients are generated there).
        notes: receives what is missing and what is assumed instead.

    Raises:
        ConfigError: the settings name no modality.
    """
    if not config.modalities:
        raise ConfigError("no modalities: the settings need a section modalities, e.g. xray: {model: compact_2d}")
    data = _present(config.data, notes)
    extra = dataset.extra_texts(data)
    try:
        if data.phantom is None and not (data.manifest and Path(data.manifest).exists()):
            raise ManifestError("the manifest does not exist yet")
        records, _ = dataset.read_records(config, dataset.find_manifest(data, cache))
    except ManifestError as error:
        notes.append(f"{error}: sizes are those of plan.sizes, lengths that of plan.tokens")
        write_text(folder / "tokenizer.json", train_wordpiece(["a text"], minimum=1).to_str())
        return _assumed(config, notes), folder
    names, source = list(config.modalities), records.texts
    found = dataset.make_dataset(records, names, extra, config.seed, config.evaluate.agreement_texts, [])
    work = Work({}, {}, {}, {}, len(distinct_ids(*found.pool.values())), len(found.table), True)
    for m in names:
        own, every = found.records[m]["train"], records.where(m)
        captions = source.sorted(distinct_ids(own.captions.values))
        work.pairs[m], work.files[m], work.captions[m] = len(own), len(every), len(captions)
        work.valid[m] = len(found.records[m]["valid"])
        work.sample[m] = source.take(some(captions, 60))
        work.records[m] = every.take(some(np.arange(len(every)), min(SHOWN, len(every))))
    shares = sampling_probabilities({m: max(work.pairs[m], 1) for m in names}, config.align.balance.beta)
    for m in names:  # as sampled by Eq. 3
        work.pool += found.table.take(some(found.pool[m], round(200 * shares[m])))
    return work, dataset.make_assets(folder, records, extra)


def _present(data: DataConfig, notes: list[str]) -> DataConfig:
    """The settings without a file of additional texts that does not exist."""
    if data.extra_texts is None or Path(data.extra_texts).exists():
        return data
    notes.append(f"{data.extra_texts} does not exist yet: no additional texts are assumed")
    return data.model_copy(update={"extra_texts": None})


def _assumed(config: RunConfig, notes: list[str]) -> Work:
    unknown = [m for m in config.modalities if not config.plan.sizes.get(m)]
    if unknown:
        notes.append(f"{', '.join(unknown)}: plan.sizes states no size, {ASSUMED_PAIRS:,} training pairs are assumed")
    sizes = {m: config.plan.sizes.get(m) or ASSUMED_PAIRS for m in config.modalities}
    valid = {m: round(size * config.data.valid_fraction) for m, size in sizes.items()}
    total = sum(sizes.values())
    return Work(sizes, dict(sizes), valid, dict(sizes), total, total, False)


def some(ids: IntArray, count: int) -> IntArray:
    """`count` entries at equal distances, repeated if there are fewer."""
    return ids[np.arange(count) * len(ids) // count] if len(ids) else ids


def expected_captions(batch: float, work: Work, m: str) -> float:
    """Expected number of distinct captions of `batch` pairs, drawn without replacement."""
    pairs, kinds = work.pairs[m], work.captions[m]
    if not pairs or not kinds:
        return batch
    return float(kinds * (1 - (1 - min(batch / pairs, 1.0)) ** (pairs / kinds)))


def distinct_draws(draws: float, kinds: int) -> float:
    """Expected number of distinct texts among `draws` of `kinds`, with replacement."""
    return kinds * (1 - (1 - 1 / kinds) ** draws) if kinds else draws
