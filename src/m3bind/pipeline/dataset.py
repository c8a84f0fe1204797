"""The data of a run: manifest -> records -> readable files, and texts.

* `find_manifest`: the manifest, generated for virtual patients. * `read_records`: its rows with their final splits.
* `extra_texts`: additional texts of each modality. * `needs_assets`, `make_assets`: a tokenizer trained on all texts.
* `build_models`, `build_model`: the dual encoders of the settings, before stage 0.
* `open_dataset`, `make_dataset`: a `Dataset`: records, distinct texts, shared text pool, held-out texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m3bind.config import DataConfig, ModelConfig, RunConfig
from m3bind.core.files import write_text
from m3bind.core.progress import progress
from m3bind.data import manifest as manifests
from m3bind.data import splits, texts
from m3bind.data.batching import IntArray, distinct_ids, rng
from m3bind.data.records import SPLITS, BadRow, Record, Records
from m3bind.data.text_table import TextTable
from m3bind.data.texts import concept_phrases
from m3bind.errors import CheckpointError, ConfigError
from m3bind.models import registry
from m3bind.models.base import DualEncoder, constructor_parameters
from m3bind.models.layers.text_encoder import train_wordpiece
from m3bind.pipeline.features import FeatureExtractor
from m3bind.training.loop import seed_torch


@dataclass(frozen=True)
class Dataset:
    """Records by modality and split, and every text of a run."""

    records: dict[str, dict[str, Records]]  # modality -> split -> records
    table: TextTable
    pool: dict[str, IntArray]  # modality -> ids of training texts (captions, additional texts)
    held_out: IntArray  # ids of texts that no stage trains on, for text agreement
    bad: list[BadRow] = field(default_factory=list)

    @property
    def modalities(self) -> list[str]:
        """Names in the order of the settings."""
        return list(self.records)


def make_dataset(
    records: Sequence[Record],
    names: Sequence[str],
    texts: dict[str, list[str]],
    seed: int,
    held_out: int,
    bad: list[BadRow],
) -> Dataset:
    """Group records, index texts, and hold out `held_out` texts.

    Args:
        records: of all splits.
        names: modalities in order.
        texts: additional texts per modality for the shared pool.
        seed: of the choice of held-out texts.
        held_out: how many (fewer if there are not enough; at most a quarter of the additional texts).
        bad: rows and files quarantined so far.
    """
    records = Records.of(records)
    grouped = {m: {split: records.where(m, split) for split in SPLITS} for m in names}
    source = records.texts  # its indices until the table is made
    training = {m: training_texts(grouped[m]["train"]) for m in names}
    seen = distinct_ids(*training.values())
    pool: dict[str, IntArray] = {}
    candidates: list[IntArray] = []
    added: list[IntArray] = []
    for m in names:
        further = source.sorted(_without(distinct_ids(source.ids(texts.get(m, ()))), seen))
        held = [grouped[m][split].captions.values for split in ("valid", "test")]
        unseen = source.sorted(_without(distinct_ids(*held), seen))
        random = rng(seed, "held out", m)
        order = further[random.permutation(len(further))]
        spare = order[: len(order) // 4]
        candidates.append(np.concatenate([unseen[random.permutation(len(unseen))], spare]))
        rest = _without(order[len(spare) :], unseen)
        pool[m] = np.concatenate([source.sorted(training[m]), source.sorted(rest)])
        added.append(pool[m])
    chosen = _in_turn(candidates, held_out)
    order = np.concatenate([*added, chosen])
    listed = order[np.sort(np.unique(order, return_index=True)[1])]
    table, number = source.subset(listed), np.full(len(source), -1)
    number[listed] = np.arange(len(listed))
    # a text held out through one modality must not be in the pool of another
    pools = {m: number[_without(ids, chosen)] for m, ids in pool.items()}
    return Dataset(grouped, table, pools, number[chosen], bad)


def training_texts(records: Records) -> IntArray:
    """Distinct captions and phrases of concepts, as indices in `records.texts`."""
    names = records.columns.concept_names
    concepts = distinct_ids(records.concepts.values).tolist()
    phrases = records.texts.ids(phrase for concept in concepts for phrase in concept_phrases(names[concept]))
    return distinct_ids(records.captions.values, phrases)


def _without(ids: IntArray, others: IntArray) -> IntArray:
    return ids[~np.isin(ids, others)]


def _in_turn(queues: Sequence[IntArray], most: int) -> IntArray:
    """At most `most` distinct entries, evenly from all queues."""
    chosen: dict[int, None] = {}
    for row in range(max(map(len, queues), default=0)):
        for queue in queues:
            if row < len(queue) and len(chosen) < most:
                chosen[int(queue[row])] = None
        if len(chosen) >= most:
            break
    return np.array(list(chosen), np.int64)


def find_manifest(data: DataConfig, cache: Path) -> Path:
    """The manifest of the settings, or that of virtual patients, generated below `cache`.

    Raises:
        ConfigError: neither is set.
    """
    if data.phantom is not None:
        from m3bind.data.phantom import cohort_hash, generate

        settings = data.phantom
        folder = cache / "phantom" / cohort_hash(settings.patients, settings.seed, settings.counts)
        with progress("virtual patients", total=settings.patients) as bar:
            return generate(
                folder,
                patients=settings.patients,
                seed=settings.seed,
                counts=settings.counts,
                progress=lambda count, total: bar.advance(count - bar.done),
            )
    if not data.manifest:
        raise ConfigError(
            "no data: set data.manifest=FILE (CSV, Parquet or JSONL), or use the preset demo (virtual patients)"
        )
    return Path(data.manifest)


def read_records(config: RunConfig, manifest: Path) -> tuple[Records, list[BadRow]]:
    """Valid rows of the manifest with their final splits, and the invalid ones with reasons.

    Raises:
        ConfigError: the settings name no modality.
    """
    data = config.data
    names = list(config.modalities)
    if not names:
        raise ConfigError("no modalities: the settings need a section modalities, e.g. xray: {model: compact_2d}")
    content = manifests.read_manifest(manifest, root=data.root, sets=data.sets or None, modalities=names)
    records = content.records
    if data.valid_fraction and not data.phantom:
        complete = [m for m in names if len(records.where(m, "valid"))]
        lacking = ~np.logical_or.reduce([np.zeros(len(records), bool), *map(records.modality.equals, complete)])
        carved = splits.carve_valid(records.take(lacking), data.valid_fraction, config.seed)
        records = Records.concatenate([records.take(~lacking), carved])
    if data.tune:  # choosing settings: the valid split replaces test, which is not used
        records = records.take(records.splits != SPLITS.index("test"))
        valid = records.splits == SPLITS.index("valid")
        records = records.with_splits(np.where(valid, SPLITS.index("test"), records.splits).astype(np.int8))
    return _limited(records, data.limit) if data.limit else records, list(content.bad)


def extra_texts(data: DataConfig) -> dict[str, list[str]]:
    """Texts without images, by modality, for the shared text pool."""
    rows: dict[str, list[str]] = {}
    for entry in texts.load_extra_texts(data.extra_texts) if data.extra_texts else ():
        rows.setdefault(entry.modality, []).append(entry.text)
    return {m: _some(entries, data.extra_texts_limit, m) for m, entries in rows.items()}


def make_assets(folder: Path, records: Sequence[Record], extra: Mapping[str, Sequence[str]]) -> Path:
    """`folder` with a WordPiece tokenizer trained once on a run's texts, for untrained models."""
    if not (folder / "tokenizer.json").exists():
        train = Records.of(records).where(split="train")
        captions = [
            *train.texts.at(train.captions.values),
            *map(train.columns.concept_names.__getitem__, train.concepts.values),
        ]
        tokenizer = train_wordpiece([*captions, *(text for rows in extra.values() for text in rows)])
        write_text(folder / "tokenizer.json", tokenizer.to_str())
    return folder


def needs_assets(config: RunConfig) -> bool:
    """Whether a text tower of the run has no published tokenizer, so that one is trained on its texts."""
    kinds = [registry.get(settings.model) for settings in config.modalities.values()]
    return config.distill.student.text == "bert" or not all(kind.own_tokenizer for kind in kinds)


def build_models(config: RunConfig, assets: Path) -> dict[str, DualEncoder]:
    """The dual encoder of every modality of the settings, before stage 0."""
    models = {}
    for m, settings in config.modalities.items():
        seed_torch(config.seed, "init", m)
        models[m] = build_model(m, settings, assets)
    return models


def build_model(modality: str, settings: ModelConfig, assets: Path) -> DualEncoder:
    """The dual encoder of `modality`, built by name, with the weights of the checkpoint if one is set.

    Raises:
        UnknownNameError: no such model.
        CheckpointError: the weights do not fit.
        ConfigError: a setting is missing, or a space could not build the model again from what it states of itself.
    """
    try:
        model = _built(modality, settings, assets)
        registry.stored_settings(model)  # refused now, not after training
    except (CheckpointError, ConfigError) as error:
        if type(error) not in (CheckpointError, ConfigError):
            raise
        raise type(error)(f"modality {modality}: {error}") from error
    return model


def _built(modality: str, settings: ModelConfig, assets: Path) -> DualEncoder:
    kind, given = registry.get(settings.model), dict(settings.settings)
    if kind.own_tokenizer:
        return registry.load(settings.model, settings.checkpoint, **given)
    if "modality" in constructor_parameters(kind):
        given = {"modality": modality, **given}
    model = registry.build(settings.model, assets=assets, **given)
    if settings.checkpoint:
        model.load_checkpoint(settings.checkpoint)
    return model.eval()


def open_dataset(
    config: RunConfig,
    records: Sequence[Record],
    bad: Sequence[BadRow],
    models: Mapping[str, DualEncoder],
    extractor: FeatureExtractor,
    extra: dict[str, list[str]],
) -> Dataset:
    """The data set of records whose files can be read; a modality with too few training pairs is excluded."""
    minimum = config.data.minimum
    records, bad, names = Records.of(records), list(bad), []
    good: list[Records] = []
    for m, model in models.items():
        own, unreadable = extractor.readable(records.where(m), model)
        bad += unreadable
        size = len(own.where(split="train"))
        if size < minimum:
            reason = f"modality {m}: {size} usable training pairs, data.minimum is {minimum}; excluded"
            bad.append(BadRow(row=0, reason=reason, path=""))
            continue
        names.append(m)
        good.append(own)
    return make_dataset(
        Records.concatenate(good) if good else [], names, extra, config.seed, config.evaluate.agreement_texts, bad
    )


def _some(entries: list[str], limit: int | None, name: str) -> list[str]:
    """At most `limit` of `entries`, in order, chosen at random independently of the run's seed."""
    if limit is None or len(entries) <= limit:
        return entries
    return [entries[i] for i in sorted(rng(0, "corpus", name).permutation(len(entries))[:limit])]


def _limited(records: Records, limit: int) -> Records:
    """The first `limit` records of each modality and split."""
    kinds = records.modality.codes * len(SPLITS) + records.splits
    first = [np.flatnonzero(kinds == kind)[:limit] for kind in np.unique(kinds)]
    return records.take(distinct_ids(*first))
