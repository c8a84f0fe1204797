"""The format of `prompts/*.yaml`: which records belong to a class, and the prompts of the class.

* `Rule`: which records belong to a class.
* `ClassFile`, `TaskFile`, `ConceptFile`, `PromptFile`: the parts of a file, validated when it is read.
* `PromptSet`: a file with its hash; `load_prompts`: by name or path; `prompt_sets`: names of the packaged files.

A new prompt set is one YAML file in `prompts/`, or any path. `prompts/mini5.yaml` shows the plain format,
`prompts/ct_rate.yaml` several labels per record, `prompts/chexpert.yaml` prompts made of parts. The shortest one:

    tasks:
      pneumonia:
        modality: xray
        classes:
          normal: [no acute findings, the lungs are clear]
          pneumonia: [chest X-ray with pneumonia]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, ValidationError, model_validator

from m3bind.core.files import sha256_text
from m3bind.core.stored import MAX_YAML, StoredFileError, Strict, parse_yaml, read_text
from m3bind.data.cells import key
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate.classification import MULTI, SINGLE

FOLDER = Path(__file__).parent / "prompts"

Ensemble = Literal["mean", "plain_mean", "max"]


class Labelled(Protocol):
    """The fields of a record that tasks use (`m3bind.data.records.Record` has them)."""

    @property
    def modality(self) -> str:
        """Modality name."""

    @property
    def set(self) -> str:
        """Data set name."""

    @property
    def label(self) -> str:
        """Main label."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels."""

    @property
    def patient(self) -> str:
        """Patient identifier."""


class Rule(Strict, frozen=True):
    """Selects the records that match at least one of the four fields; case and extra spaces are ignored."""

    label: tuple[str, ...] = ()  # the label is one of these
    part: tuple[str, ...] = ()  # one of the label's parts (a|b) is one of these
    labels: tuple[str, ...] = ()  # one of the labels is one of these
    otherwise: bool = False  # records that no other class matches

    @model_validator(mode="after")
    def _fits_something(self) -> "Rule":
        if not (self.label or self.part or self.labels or self.otherwise):
            raise ValueError("a rule needs one of label, part, labels, otherwise")
        return self

    def fits(self, record: Labelled) -> bool:
        """Whether `record` matches."""
        return (
            self.otherwise
            or key(record.label) in map(key, self.label)
            or not set(map(key, self.part)).isdisjoint(map(key, record.label.split("|")))
            or not set(map(key, self.labels)).isdisjoint(map(key, record.labels))
        )


class ClassFile(Strict, frozen=True):
    """One class. Default of `match`: records whose label is its key; without any text its key is its name.

    A list of texts in place of the mapping is its `prompts`.
    """

    match: Rule | None = None
    names: tuple[str, ...] = ()  # inserted into the task's templates
    prompts: tuple[str, ...] = ()  # used as they are
    parts: tuple[tuple[str, ...], ...] = ()  # all combinations, one of each list, joined by spaces
    positive: bool = False  # the positive one of two classes

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"prompts": value} if isinstance(value, list | tuple) else value


class TaskFile(Strict, frozen=True):
    """One zero-shot task."""

    # set names, patterns ("medmnist_*": one task per set), or "*": sets that no file names; in a user's own file: all
    dataset: tuple[str, ...] = ("*",)
    modality: str  # "*": every modality found
    metric: str = ""  # the primary metric of the task; "": balanced_accuracy, auroc with several labels
    metrics: tuple[str, ...] = ()  # further metrics; the default ones of its kind come after them
    classes: dict[str, ClassFile | None] | Literal["from_labels"]
    templates: tuple[str, ...] = ("{name}",)
    against: tuple[str, ...] = ()  # templates of the opposite: a label's score is the softmax over the pair
    multilabel: bool = False  # several labels per record, each present or not
    ensemble: Ensemble = "mean"  # of a class's prompts: normalised mean, plain mean, or highest similarity
    zscore: bool = False  # scores of a class are standardised over the images
    lower: bool = False  # prompts in lower case
    sample: int = Field(0, ge=0)  # maximum number of prompts per class, selected by their hash; 0: all
    exclude: Rule | None = None
    unique: bool = False  # one class per record: exclude records that match several
    require_one: bool = False  # several labels: exclude records that have none of them

    @model_validator(mode="after")
    def _fits_together(self) -> "TaskFile":
        known = {*MULTI, "auroc"} if self.multilabel else set(SINGLE)
        for name in (self.primary_metric, *self.metrics):
            if name not in known:
                kind = "several labels" if self.multilabel else "one class"
                raise ValueError(f"{name!r} is not a metric of {kind}; known: {', '.join(sorted(known))}")
        if self.metric == "auc" and (isinstance(self.classes, str) or len(self.classes) != 2):
            raise ValueError("metric auc needs exactly two classes written out")
        if self.against and not self.multilabel:
            raise ValueError("against needs multilabel: true; classes that exclude each other compete by themselves")
        if self.against and self.ensemble == "max" and len(self.against) != len(self.templates):
            raise ValueError("ensemble max needs as many templates in against as in templates")
        if self.against and (self.zscore or self.sample or any(c and (c.prompts or c.parts) for c in self.spelled())):
            raise ValueError("against works with names in templates only, without zscore or sample")
        return self

    @property
    def primary_metric(self) -> str:
        """`metric`, or its default."""
        return self.metric or ("auroc" if self.multilabel else "balanced_accuracy")

    def spelled(self) -> Sequence[ClassFile | None]:
        """The classes written out; empty when they come from the labels."""
        return [] if isinstance(self.classes, str) else list(self.classes.values())


class ConceptFile(Strict, frozen=True):
    """One modality's part of a concept."""

    dataset: tuple[str, ...]
    classes: dict[str, Rule] | Literal["from_labels"]
    exclude: Rule | None = None


class PromptFile(Strict, frozen=True):
    """A whole file."""

    tasks: dict[str, TaskFile] = {}
    concepts: dict[str, dict[str, ConceptFile]] = {}


@dataclass(frozen=True)
class PromptSet:
    """A prompt file; `hash` (16 hex digits of its content) is stored in its result rows."""

    name: str
    hash: str
    content: PromptFile
    own: bool = False  # a file of the user, not of the package

    def names_set(self, dataset: str) -> bool:
        """Whether a task or concept of this file names `dataset`."""
        sets = [task.dataset for task in self.content.tasks.values()]
        sets += [part.dataset for concept in self.content.concepts.values() for part in concept.values()]
        return any(pattern != "*" and fnmatchcase(dataset, pattern) for names in sets for pattern in names)


def prompt_sets() -> list[str]:
    """Names of the packaged prompt files."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_prompts(name: str | Path) -> PromptSet:
    """The prompt set `name`, or the one in a YAML file.

    Raises:
        UnknownNameError: no such set and no such file.
        ConfigError: the file does not have the format.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UnknownNameError("prompt set", str(name), prompt_sets())
    try:
        return _parse(path, read_text(path, MAX_YAML))
    except StoredFileError as error:
        raise ConfigError(f"{error}; see prompts/mini5.yaml for the format.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = " > ".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path.name}: {where}: {first['msg']}; see prompts/mini5.yaml for the format.") from error


@lru_cache(maxsize=64)
def _parse(path: Path, text: str) -> PromptSet:
    content = PromptFile.model_validate(parse_yaml(text, path.name) or {})
    return PromptSet(path.stem, sha256_text(text)[:16], content, path.parent != FOLDER)
