"""Tables as data: metrics by models, and the paper's values. The paper's own tables are in `paper.toml`.

* `TableFile`, `Table`, `Block`, `Column`, `TableRow`: the parts of such a file.
* `Printed`, `printed`: one value of the paper. `load_tables`: a packaged file by name, or any path.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from m3bind.core.stored import MAX_YAML, StoredFileError, Strict, read_text
from m3bind.errors import ConfigError, UnknownNameError

FOLDER = Path(__file__).parent
Protocol = Literal["zero_shot", "few_shot", "text_retrieval", "cross_modal", "classifier"]


class Column(Strict, frozen=True):
    """One metric on one data set."""

    name: str
    dataset: str
    protocol: Protocol
    metric: str
    modality: str = ""  # if it is not the block's
    task: str = ""  # a task of the prompt files; cross_modal by concept: a concept
    variant: str = ""
    method: str = "linear_probe"  # few_shot: a file in evaluate/adapters/
    unit: Literal["shot", "percent"] = "shot"  # few_shot: of `amount`
    amount: int = 0
    split: Literal["test", "all"] = "test"  # zero_shot, classifier: files evaluated
    direction: str = ""  # cross_modal: "xray->ecg"
    match: Literal["visit", "patient", "concept"] = "visit"  # cross_modal: common to query and right answer
    gallery: int = 0  # cross_modal: items searched; 0: all
    percent: bool = False  # printed as 100 times the value


class TableRow(Strict, frozen=True):
    """One model."""

    method: str  # as printed
    model: str  # a key of the suite's models
    text: Literal["", "teacher", "student"] = ""  # text tower; "": the student if the model has one
    protocol: Protocol | None = None  # instead of the columns', e.g. a classifier beside zero-shot models
    tuning: str = ""  # few_shot: instead of the columns' method
    values: tuple[float | tuple[float, float] | None, ...] = ()
    conflicts: Mapping[str, str] = Field(default_factory=dict)  # column name -> contradicting value in the paper
    note: str = ""


class Block(Strict, frozen=True):
    """Columns and lines of one modality."""

    name: str
    modality: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    note: str = ""
    reference: str = ""  # the row that others are tested against; default: the last one

    @model_validator(mode="after")
    def _fits(self) -> "Block":
        names = {column.name for column in self.columns}
        if self.reference and self.reference not in {row.method for row in self.rows}:
            raise ValueError(f"reference {self.reference!r} is not a row")
        for row in self.rows:
            if row.values and len(row.values) != len(self.columns):
                raise ValueError(f"row {row.method!r} has {len(row.values)} values for {len(self.columns)} columns")
            if unknown := set(row.conflicts) - names:
                raise ValueError(f"row {row.method!r}: conflict of unknown column {sorted(unknown)[0]!r}")
        return self


class Table(Strict, frozen=True):
    """One table."""

    number: int
    title: str
    block: tuple[Block, ...]


class TableFile(Strict, frozen=True):
    """A whole file."""

    title: str
    notes: tuple[str, ...] = ()
    table: tuple[Table, ...]


@dataclass(frozen=True)
class Printed:
    """A value of the paper as a fraction (not per cent), with its standard deviation and a contradicting value."""

    value: float
    std: float | None = None
    conflict: str = ""


def printed(row: TableRow, columns: Sequence[Column], at: int) -> Printed | None:
    """The paper's value of `row` in column number `at`; None if missing."""
    if not row.values or row.values[at] is None:
        return None
    given = row.values[at]
    value, std = given if isinstance(given, tuple) else (given, None)
    assert value is not None
    scale = 100 if columns[at].percent else 1
    return Printed(value / scale, None if std is None else std / scale, row.conflicts.get(columns[at].name, ""))


def load_tables(name: str | Path) -> TableFile:
    """The tables packaged as `name` ("paper"), or those of a TOML file.

    Raises:
        UnknownNameError: no such table and no such file.
        ConfigError: the file does not have the format; the message names the place.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise UnknownNameError("table file", str(name), sorted(p.stem for p in FOLDER.glob("*.toml")))
    try:
        return TableFile(**tomllib.loads(read_text(path, MAX_YAML)))
    except StoredFileError as error:
        raise ConfigError(str(error)) from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
