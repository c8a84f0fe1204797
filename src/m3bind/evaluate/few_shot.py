"""Few-shot classification: sampled lists of training files, a method fitted on them, rows on the test files.

* `ShotList`, `draw_shots`: the training files; the same on every machine, saved with a hash.
* `fold`: a training and a test part of data sets that were published as one test set.
* `few_shot_rows`, `FewShotSettings`: rows of a method per metric, amount and list; `shot_variant`: their variant.

A list depends on the files' ids, labels and patients and on the seed only, never on the order of the manifest or on a
library's random numbers. Rows differ in `seed` from list to list, so tables (`pivot.pivot`) show mean and deviation
over the lists; `shots` is the list's hash.

Shapes: n samples, c classes or labels, d joint dimension.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3bind.core.files import sha256_text, write_json
from m3bind.core.stored import read_json
from m3bind.data.splits import patient_position
from m3bind.errors import ConfigError, ManifestError
from m3bind.evaluate import adapters
from m3bind.evaluate.adapters import Adapter, FewShotProblem, Samples
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.results import Context, Row
from m3bind.evaluate.scoring import score_rows

Unit = Literal["shot", "percent"]
SEEDS = tuple(range(5))
HELD_OUT = 20  # per cent of a data set without training files that are used for testing, as FLAIR does


@dataclass(frozen=True)
class ShotList:
    """Training files: `amount` per class, or `amount` per cent of all."""

    unit: Unit
    amount: int
    seed: int
    ids: tuple[str, ...]  # sorted

    @property
    def hash(self) -> str:
        """16 hex digits of all fields."""
        return sha256_text(self.unit, str(self.amount), str(self.seed), *self.ids)[:16]

    def save(self, path: Path) -> None:
        """Write as JSON with the hash; the ids are those of the manifest."""
        write_json(path, {"unit": self.unit, "amount": self.amount, "seed": self.seed, "hash": self.hash,
                          "ids": list(self.ids)})  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> "ShotList":
        """Read the file that `save` wrote.

        Raises:
            ManifestError: the file is unreadable or was changed.
        """
        try:
            data = read_json(path)
            shots = cls(data["unit"], int(data["amount"]), int(data["seed"]), tuple(data["ids"]))
            stated = data["hash"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ManifestError(f"{path} is not a shot list ({error}); delete it to draw a new one.") from error
        if shots.hash != stated:
            raise ManifestError(f"{path} was changed since it was drawn; restore it, or delete it to draw a new one.")
        return shots

    def of(self, train: Samples) -> Samples:
        """The listed samples.

        Raises:
            ManifestError: `train` lacks some of them.
        """
        place = {identity: i for i, identity in enumerate(train.ids)}
        absent = sum(identity not in place for identity in self.ids)
        if absent:
            raise ManifestError(
                f"shot list {self.unit} {self.amount}, seed {self.seed}: {absent} of {len(self.ids)} files are not "
                "among the training files. Delete the list, or give the manifest it was drawn from."
            )
        return train.take(np.array([place[identity] for identity in self.ids], dtype=np.int64))


def draw_shots(train: Samples, amount: int, unit: Unit, seed: int) -> ShotList:
    """A list of files selected by hash.

    "shot": `amount` files per class, from as many patients as possible; all files of a class that has fewer. With
    several labels, `amount` positives per label, rarest label first, counting files drawn for other labels, then as
    many files without any label. Lists of a seed are nested: those of 1 shot are in those of 5 (one class per file).

    "percent": whole patients until `amount` per cent of the files are reached, then a patient of each class that is
    still missing.

    Raises:
        ConfigError: an amount below 1, or above 100 per cent.
    """
    if amount < 1 or (unit == "percent" and amount > 100):
        raise ConfigError(f"few-shot amount {amount} ({unit}) must be at least 1, and per cent at most 100.")
    train = train.known()
    place = [patient_position(identity, seed) for identity in train.ids]
    draw = _percent if unit == "percent" else _per_label if train.several else _per_class
    chosen = draw(train, place, amount)
    return ShotList(unit, amount, seed, tuple(sorted(train.ids[i] for i in chosen)))


def _ordered(train: Samples, place: Sequence[float], candidates: Iterable[int]) -> list[int]:
    """Candidates in hash order, the first file of every patient before the second file of any."""
    seen: dict[str, int] = {}
    keys = []
    for i in sorted(candidates, key=lambda i: (place[i], train.ids[i])):
        seen[train.patients[i]] = turn = seen.get(train.patients[i], 0) + 1
        keys.append((turn, place[i], train.ids[i], i))
    return [key[-1] for key in sorted(keys)]


def _per_class(train: Samples, place: Sequence[float], amount: int) -> list[int]:
    chosen: list[int] = []
    for member in _members(train):
        chosen += _ordered(train, place, np.flatnonzero(member).tolist())[:amount]
    return chosen


def _per_label(train: Samples, place: Sequence[float], amount: int) -> list[int]:
    positive = train.labels == 1
    groups = [positive[:, label] for label in sorted(range(positive.shape[1]), key=lambda j: (positive[:, j].sum(), j))]
    chosen: list[int] = []
    for group in [*groups, ~positive.any(1)]:
        missing = max(0, amount - int(group[chosen].sum()))
        rest = set(np.flatnonzero(group).tolist()) - set(chosen)
        chosen += _ordered(train, place, rest)[:missing]
    return chosen


def _percent(train: Samples, place: Sequence[float], amount: int) -> list[int]:
    files: dict[str, list[int]] = {}
    for i in sorted(range(len(train)), key=lambda i: (place[i], train.ids[i])):
        files.setdefault(train.patients[i], []).append(i)
    target = -(-len(train) * amount // 100)
    chosen: list[int] = []
    for patient_files in files.values():
        if len(chosen) < target:
            chosen += patient_files
    for member in _members(train):
        if member.any() and not member[chosen].any():
            chosen += next(patient_files for patient_files in files.values() if member[patient_files].any())
    return chosen


def _members(train: Samples) -> list[NDArray[np.bool_]]:
    if train.several:
        return list((train.labels == 1).T)
    return [train.labels == c for c in np.unique(train.labels)]


def shot_variant(method: str, amount: int, unit: Unit) -> str:
    """The `variant` of rows, e.g. "linear_probe, 5 per class" or "linear_probe, 10 %"."""
    return f"{method}, {amount} %" if unit == "percent" else f"{method}, {amount} per class"


@dataclass(frozen=True)
class FewShotSettings:
    """Lists of training files, and how their rows are computed."""

    amounts: Sequence[int]  # files per class, or per cent of all
    unit: Unit = "shot"
    seeds: Sequence[int] = SEEDS  # of the lists, and of the training's random numbers
    resamples: int = 1000  # of the bootstrap over the test patients
    scale: float = 100.0  # factor on products with the class texts
    names: Sequence[str] = ()  # metrics; empty: the default ones
    folder: Path | None = None  # stored lists; an existing list is used again


def few_shot_rows(
    method: str | Adapter,
    train: Samples | None,
    valid: Samples | None,
    test: Samples,
    classes: ArrayLike,
    context: Context,
    settings: FewShotSettings,
) -> list[Row]:
    """Rows of `method` for every amount and seed.

    Samples of `train` whose patient is in `valid` or `test`, and samples of `valid` whose patient is in `test`, are
    excluded first. Without training files each seed tests on a fifth of the patients of `test` and trains on the
    others (`fold`; `split` is "folds" in these rows). Metrics that need a threshold per label come with
    "threshold=valid" (if `valid` is given) and "threshold=test" after the method in `variant`.

    Args:
        method: a name of `adapters.names()`, or an adapter.
        train, valid, test: samples of one task; samples without a known label are excluded.
        classes: (c, d) class texts (`zero_shot.class_directions`).
        context: common fields of the rows; seed and variant are set here.
        settings: amounts, seeds and metrics.

    Raises:
        ManifestError: no file remains for training or for testing, or a stored list does not fit.
        UnknownNameError: no such method.
    """
    adapter = adapters.get(method) if isinstance(method, str) else method
    if train is None or not len(train):
        sides = {seed: _apart(*fold(test, seed)) for seed in settings.seeds}
        context = replace(context, split="folds")
    else:
        sides = dict.fromkeys(settings.seeds, _apart(train, valid, test))
    for training, _, testing in sides.values():
        if not len(training) or not len(testing):
            raise ManifestError(
                f"few-shot on {context.task or context.dataset}: {len(training)} files to learn from and "
                f"{len(testing)} to test on, no patient on both sides; give labelled files of more patients."
            )
    texts = np.asarray(classes, dtype=np.float64)
    rows: list[Row] = []
    for amount in settings.amounts:
        for seed, (training, checked, testing) in sides.items():
            shots = _stored(training, amount, settings.unit, seed, settings.folder)
            problem = FewShotProblem(texts, settings.scale, context.modality, seed)
            score = adapter.fit(shots.of(training), checked, problem)
            place = replace(context, variant=shot_variant(adapter.method, amount, settings.unit), seed=seed)
            chosen_on = (checked.labels, score(checked)) if checked is not None and checked.several else None
            draw = Resampling(testing.patients, settings.resamples)
            found = score_rows(
                "few_shot", testing.labels, score(testing), place, draw, names=settings.names, valid=chosen_on
            )
            rows += [replace(row, shots=shots.hash) for row in found]
    return rows


def fold(samples: Samples, seed: int) -> tuple[Samples, None, Samples]:
    """(train, no validation, test): whole patients selected by hash, a fifth and every class in the test part."""
    samples = samples.known()
    place = [patient_position(f"fold {identity}", seed) for identity in samples.ids]
    held = np.zeros(len(samples), dtype=bool)
    held[_percent(samples, place, HELD_OUT)] = True
    return samples.take(~held), None, samples.take(held)


def _apart(train: Samples, valid: Samples | None, test: Samples) -> tuple[Samples, Samples | None, Samples]:
    """The known samples with no patient on two sides; an empty `valid` is None."""
    test = test.known()
    train = _without(train.known(), test)
    if valid is not None:
        valid = _without(valid.known(), test)
        train, valid = _without(train, valid), valid if len(valid) else None
    return train, valid, test


def _without(samples: Samples, others: Samples) -> Samples:
    """The samples whose patient is not among `others`."""
    taken = set(others.patients)
    return samples.take(np.array([patient not in taken for patient in samples.patients], dtype=bool))


def _stored(train: Samples, amount: int, unit: Unit, seed: int, folder: Path | None) -> ShotList:
    if folder is None:
        return draw_shots(train, amount, unit, seed)
    path = folder / f"{unit}_{amount}_seed_{seed}.json"
    if not path.exists():
        draw_shots(train, amount, unit, seed).save(path)
    return ShotList.load(path)
