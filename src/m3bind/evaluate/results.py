"""Results as rows: one metric per row, stored as a list in `results.json`.

* `Context`: common fields of the rows of one evaluation; `Context.row` turns an `Estimate` into a `Row`.
* `Row`: protocol, dataset, modality, split, text path, metric, value, interval, n, chance, seed, stage, prompts hash.
* `bounds_of`: the range of a metric.
* `ResultTable`: rows with load, save and selection. Tables of them: pivot.py.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NotRequired
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from m3bind.core import sums
from m3bind.core.files import atomic_path, write_json
from m3bind.core.stored import checked, read_json
from m3bind.errors import M3BindError, ResultError
from m3bind.evaluate.confidence import POSITIVE, SIGNED, UNIT, Bounds, Estimate

STAGES = ("unbound", "closed_form", "aligned", "distilled")
LOW_IS_GOOD = ("median_rank", "ece")
PROTOCOLS = {
    "zero_shot": "Zero-shot classification",
    "image_to_image": "Image to image, across modalities",
    "text_agreement": "Agreement of the text towers",
    "image_to_text": "Image to text",
    "text_to_image": "Text to image",
    "linear_probe": "Linear probe (supervised reference)",
    "few_shot": "Few-shot classification",
    "calibration": "Calibration",
    "robustness": "Robustness: test files passed through shifts",
}
_BOUNDS = dict.fromkeys(("kappa", "cos", "cos_other", "cos_within", "ccos"), SIGNED)
_BOUNDS |= {"median_rank": POSITIVE, "temperature": POSITIVE}
MAX_REPLICATES = 1 << 28  # bytes of resampled values, unpacked
_NUMBERS = ("value", "ci_low", "ci_high", "chance")


@dataclass(frozen=True)
class Row:
    """Value of one metric. NaN (an undefined value, a chance level that does not exist) is null in JSON."""

    protocol: str  # a key of `PROTOCOLS`
    dataset: str  # set name(s), joined by "+"
    modality: str  # one name, "a->b" for retrieval across modalities, or "mean"
    split: str
    text_encoder: str  # "teacher" (the modality's own), "teacher:ct" (another's), "student", or "" without text
    metric: str  # auc | auroc | balanced_accuracy | accuracy | macro_f1 | kappa | R@10 | mrr | median_rank | cos | ...
    value: float
    ci_low: float
    ci_high: float
    n: int  # files (queries)
    chance: float
    seed: int = 0
    stage: str = ""  # one of STAGES, or a custom name
    prompts: str = ""  # hash of the prompt file
    task: str = ""  # name of the task or concept
    variant: str = ""  # e.g. "gap-corrected"
    gallery: int | None = None  # items searched
    shots: str = ""  # hash of the list of training files (few-shot)
    patients: int | None = (
        None  # of the n files; None in rows whose intervals treat the gallery as fixed (older versions)
    )
    freedom: float | None = None  # degrees of freedom of the interval
    replicates: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)  # (b,) resampled values


@dataclass(frozen=True)
class Context:
    """Common fields of the rows of one evaluation."""

    dataset: str = ""
    modality: str = ""
    split: str = "test"
    text_encoder: str = ""
    stage: str = ""
    seed: int = 0
    prompts: str = ""
    task: str = ""
    variant: str = ""

    def row(self, protocol: str, metric: str, estimate: Estimate, gallery: int | None = None, **changes: Any) -> Row:
        """A `Row` with this context; `changes` replace fields of it."""
        values: dict[str, Any] = {name: float(getattr(estimate, name)) for name in _NUMBERS}
        values |= {"n": estimate.n, "replicates": estimate.replicates, "gallery": gallery}
        values |= {
            "patients": estimate.patients,
            "freedom": float(estimate.freedom) if math.isfinite(estimate.freedom) else None,
        }
        return Row(**{**asdict(self), **values, "protocol": protocol, "metric": metric, **changes})

    def varied(self, text: str) -> "Context":
        """The context with `text` appended to its variant."""
        return replace(self, variant=", ".join(filter(None, (self.variant, text))))


@dataclass
class ResultTable:
    """Rows in the order of computation."""

    rows: list[Row] = field(default_factory=list)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def extend(self, rows: Iterable[Row]) -> None:
        """Append `rows`."""
        self.rows.extend(rows)

    def where(self, **values: Any) -> "ResultTable":
        """The rows whose fields equal `values`."""
        return ResultTable([row for row in self.rows if all(getattr(row, k) == v for k, v in values.items())])

    def one(self, **values: Any) -> Row:
        """The only row whose fields equal `values`.

        Raises:
            M3BindError: no row or several.
        """
        matching = self.where(**values).rows
        if len(matching) != 1:
            raise M3BindError(f"{len(matching)} result rows match {values}, expected one; name more fields.")
        return matching[0]

    def save(self, path: Path | str) -> None:
        """Write the rows as a JSON list, atomically; NaN and infinity become null.

        Resampled values go into an `.npz` file beside it, for paired comparisons of two runs.
        """
        path = Path(path)
        beside = path.with_suffix(".npz")
        drawn = {str(i): r.replicates.astype(np.float32) for i, r in enumerate(self.rows) if r.replicates is not None}
        with sums.writing(path.parent, path.name, beside.name):
            if drawn:
                with atomic_path(beside) as temporary, open(temporary, "wb") as handle:
                    np.savez_compressed(handle, **drawn)  # type: ignore[arg-type]
            else:
                beside.unlink(missing_ok=True)
            write_json(path, [plain(row) for row in self.rows])

    @classmethod
    def load(cls, path: Path | str) -> "ResultTable":
        """Read the files that `save` wrote; fields of newer versions are ignored.

        Raises:
            ResultError: a file is missing or changed, is not a JSON list of rows, or a row lacks a field.
        """
        path = Path(path)
        beside = path.with_suffix(".npz")
        sums.check(path.parent, [path.name, beside.name])
        try:
            rows = [_row_of(entry) for entry in checked(list[_Entry], read_json(path), path)]
            if beside.is_file():
                with ZipFile(beside) as archive:
                    if sum(info.file_size for info in archive.infolist()) > MAX_REPLICATES:
                        raise ValueError("too large")
                with np.load(beside, allow_pickle=False) as drawn:
                    known = {int(name) for name in drawn.files}
                    rows = [
                        replace(r, replicates=_line(drawn[str(i)])) if i in known else r for i, r in enumerate(rows)
                    ]
            return cls(rows)
        except OSError as error:
            raise ResultError(f"cannot read {path}: {error.strerror}; run `m3bind evaluate` first.") from error
        except (ValueError, TypeError, KeyError, EOFError, MemoryError, BadZipFile, zlib.error):
            raise ResultError(f"{path} is not a list of result rows; run the command that wrote it again.") from None


def _line(values: NDArray[np.generic]) -> NDArray[np.float64]:
    if values.ndim != 1:
        raise ValueError("not one value per resample")
    return values.astype(np.float64)


def bounds_of(metric: str) -> Bounds:
    """The range of a metric's values."""
    return _BOUNDS.get(metric, UNIT)


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON values; NaN and infinity become null."""
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "replicates"}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class _Entry(TypedDict):
    """A row in JSON; validation drops the fields of newer versions."""

    protocol: str
    dataset: str
    modality: str
    split: str
    text_encoder: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    chance: float | None
    seed: NotRequired[int]
    stage: NotRequired[str]
    prompts: NotRequired[str]
    task: NotRequired[str]
    variant: NotRequired[str]
    gallery: NotRequired[int | None]
    shots: NotRequired[str]
    patients: NotRequired[int | None]
    freedom: NotRequired[float | None]


def _row_of(entry: _Entry) -> Row:
    values: dict[str, Any] = dict(entry)
    return Row(**{**values, **{k: float("nan") if values[k] is None else values[k] for k in _NUMBERS}})
