"""Zero-shot tasks and shared concepts, kept as data in `prompts/*.yaml`.

* `Rule`: which records belong to a class.
* `Task`: a zero-shot classification: classes with prompts, the metric, and each record's class number.
* `Concept`: classes that several modalities share, for image-to-image search.
* `prompt_sets`, `load_prompts`: the prompt files; `tasks_for`, `concepts_for`: what can be asked of given records.

A new prompt set is one YAML file in `prompts/` (see `prompts/mini5.yaml` for the format) or any path. A file whose data
set is "*" serves the sets that no other file names; "*" as modality stands for every modality found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from m3bind import modalities
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.files import sha256_text

FOLDER = Path(__file__).parent / "prompts"
MOST_CLASSES = 100  # labels that differ more often than this are no classes
Metric = Literal["auc", "balanced_accuracy"]


class Labelled(Protocol):
    """What tasks look at in a record (`m3bind.data.manifest.Record` has it)."""

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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """Which records belong: exactly one of the four ways."""

    label: tuple[str, ...] = ()  # the label is one of these
    part: tuple[str, ...] = ()  # one of the label's parts (a|b) is one of these
    labels: tuple[str, ...] = ()  # one of the labels is one of these
    otherwise: bool = False  # everything no other class takes

    def fits(self, record: Labelled) -> bool:
        """Whether `record` belongs."""
        return (
            self.otherwise
            or record.label in self.label
            or not set(self.part).isdisjoint(record.label.split("|"))
            or not set(self.labels).isdisjoint(record.labels)
        )


class _ClassFile(_Strict):
    match: Rule
    names: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    positive: bool = False


class _TaskFile(_Strict):
    dataset: tuple[str, ...]
    modality: str
    metric: Metric
    classes: dict[str, _ClassFile] | Literal["from_labels"]
    templates: tuple[str, ...] = ("{name}",)
    exclude: Rule | None = None


class _ConceptFile(_Strict):
    dataset: tuple[str, ...]
    classes: dict[str, Rule] | Literal["from_labels"]
    exclude: Rule | None = None


class _PromptFile(_Strict):
    tasks: dict[str, _TaskFile] = {}
    concepts: dict[str, dict[str, _ConceptFile]] = {}


@dataclass(frozen=True)
class PromptSet:
    """A prompt file: `hash` (16 hex digits of its content) goes into every result row it leads to."""

    name: str
    hash: str
    content: _PromptFile

    def names_set(self, dataset: str) -> bool:
        """Whether a task or concept of this file names `dataset`."""
        sets = [task.dataset for task in self.content.tasks.values()]
        sets += [part.dataset for concept in self.content.concepts.values() for part in concept.values()]
        return any(dataset in names for names in sets)


@dataclass(frozen=True)
class ClassSpec:
    """One class: its name, which records belong, and how it is said."""

    name: str
    match: Rule
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A zero-shot classification in one modality. With metric "auc" the last of two classes is the positive one."""

    name: str
    datasets: tuple[str, ...]
    modality: str
    metric: Metric
    classes: tuple[ClassSpec, ...]
    prompts_hash: str
    exclude: Rule | None = None

    @property
    def kind(self) -> str:
        """ "binary" or "multiclass"."""
        return "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def dataset(self) -> str:
        """Data set names joined by "+"."""
        return "+".join(self.datasets)

    def labels(self, records: Sequence[Labelled]) -> NDArray[np.int64]:
        """Class number of each record, -1 where it is not part of the task: (n,)."""
        return _numbers(records, self.modality, self.datasets, [c.match for c in self.classes], self.exclude)

    def prompts(self) -> tuple[list[str], NDArray[np.int64]]:
        """All prompts, class after class, and the class number of each."""
        texts = [text for spec in self.classes for text in spec.prompts]
        return texts, np.repeat(np.arange(len(self.classes)), [len(spec.prompts) for spec in self.classes])


@dataclass(frozen=True)
class Concept:
    """Classes that several modalities share, e.g. malignancy: benign and malignant, in CT and in pathology."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[str, ...], tuple[Rule, ...], Rule | None]]  # modality -> sets, rules, excluded
    prompts_hash: str

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that know the concept."""
        return tuple(self.parts)

    @property
    def dataset(self) -> str:
        """Data set names joined by "+"."""
        return "+".join(dict.fromkeys(name for sets, _, _ in self.parts.values() for name in sets))

    def labels(self, records: Sequence[Labelled], modality: str) -> NDArray[np.int64]:
        """Class number of each record of `modality`, -1 where it is not part of the concept: (n,)."""
        if modality not in self.parts:
            return np.full(len(records), -1)
        sets, rules, exclude = self.parts[modality]
        return _numbers(records, modality, sets, rules, exclude)


def _numbers(
    records: Sequence[Labelled], modality: str, datasets: Sequence[str], rules: Sequence[Rule], exclude: Rule | None
) -> NDArray[np.int64]:
    """First fitting rule of each record; rules "otherwise" come last whatever their place."""
    order = sorted(range(len(rules)), key=lambda i: rules[i].otherwise)
    numbers = np.full(len(records), -1, dtype=np.int64)
    for i, record in enumerate(records):
        if record.modality != modality or record.set not in datasets or (exclude is not None and exclude.fits(record)):
            continue
        numbers[i] = next((j for j in order if rules[j].fits(record)), -1)
    return numbers


def prompt_sets() -> list[str]:
    """Names of the prompt files that come with the package."""
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
    return _parse(path, path.read_text(encoding="utf-8"))


@lru_cache(maxsize=32)
def _parse(path: Path, text: str) -> PromptSet:
    try:
        content = _PromptFile.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not readable as YAML ({error}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = " > ".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path.name}: {where}: {first['msg']}; see prompts/mini5.yaml for the format.") from error
    for name, task in content.tasks.items():
        if task.metric == "auc" and (isinstance(task.classes, str) or len(task.classes) != 2):
            raise ConfigError(f"{path.name}: tasks > {name}: metric auc needs exactly two classes written out.")
        if not isinstance(task.classes, str) and not all(spec.names or spec.prompts for spec in task.classes.values()):
            raise ConfigError(f"{path.name}: tasks > {name}: every class needs names or prompts.")
    return PromptSet(path.stem, sha256_text(text)[:16], content)


def _sets(prompts: Sequence[str | Path] | None) -> list[PromptSet]:
    return [load_prompts(name) for name in (prompt_sets() if prompts is None else prompts)]


def _datasets(
    wanted: Sequence[str], modality: str, records: Iterable[Labelled], named: set[str]
) -> list[tuple[str, ...]]:
    """Groups of sets present in `records`: one group of named sets, or one group for each set nobody names."""
    present = sorted({r.set for r in records if r.modality == modality})
    if "*" in wanted:
        return [(name,) for name in present if name not in named]
    found = tuple(name for name in wanted if name in present)
    return [found] if found else []


def _found_labels(train: Iterable[Labelled], datasets: Sequence[str], modality: str | None) -> list[str]:
    found = {r.label for r in train if r.set in datasets and r.label and (modality is None or r.modality == modality)}
    return sorted(found) if 2 <= len(found) <= MOST_CLASSES else []


def title(modality: str) -> str:
    """Title of a modality for people; its bare name where nobody registered it."""
    try:
        return modalities.get(modality).title or modality
    except UnknownNameError:
        return modality


def _said(text: str) -> str:
    return text.replace("_", " ").replace("|", ", ").strip()


def _task(
    name: str, file: _TaskFile, sets: tuple[str, ...], modality: str, train: Sequence[Labelled], digest: str
) -> Task | None:
    if isinstance(file.classes, str):
        classes = {
            label: _ClassFile(match=Rule(label=(label,)), names=(_said(label),))
            for label in _found_labels(train, sets, modality)
        }
    else:
        classes = dict(sorted(file.classes.items(), key=lambda item: item[1].positive))
    words = {"title": title(modality)}
    specs = []
    for label, spec in classes.items():
        filled = [t.replace("{title}", words["title"]).replace("{name}", n) for n in spec.names for t in file.templates]
        specs.append(ClassSpec(label, spec.match, tuple(dict.fromkeys([*filled, *spec.prompts]))))
    return Task(name, sets, modality, file.metric, tuple(specs), digest, file.exclude) if len(specs) > 1 else None


def tasks_for(
    records: Sequence[Labelled], train: Sequence[Labelled] | None = None, prompts: Sequence[str | Path] | None = None
) -> list[Task]:
    """All zero-shot tasks that `records` can answer (at least one record in two classes).

    `train` gives the labels of tasks whose classes are found, not written out (default: `records`); `prompts` are names
    or paths of prompt sets (default: all of the package).
    """
    train = records if train is None else train
    chosen = _sets(prompts)
    named = {r.set for r in records if any(p.names_set(r.set) for p in chosen)}
    tasks = []
    for prompt_set in chosen:
        for name, file in prompt_set.content.tasks.items():
            found = sorted({r.modality for r in records}) if file.modality == "*" else [file.modality]
            for modality in found:
                for sets in _datasets(file.dataset, modality, records, named):
                    task = _task(name, file, sets, modality, train, prompt_set.hash)
                    if task is not None and len(set(task.labels(records)) - {-1}) > 1:
                        tasks.append(task)
    return tasks


def concepts_for(
    records: Sequence[Labelled], train: Sequence[Labelled] | None = None, prompts: Sequence[str | Path] | None = None
) -> list[Concept]:
    """All concepts that at least two modalities of `records` share, each with two classes present."""
    train = records if train is None else train
    chosen = _sets(prompts)
    named = {r.set for r in records if any(p.names_set(r.set) for p in chosen)}
    concepts = []
    for prompt_set in chosen:
        for name, file in prompt_set.content.concepts.items():
            concept = _concept(name, file, records, train, named, prompt_set.hash)
            shown = {m: len(set(concept.labels(records, m)) - {-1}) for m in concept.modalities}
            parts = {m: part for m, part in concept.parts.items() if shown[m] > 1}
            if len(parts) > 1:
                concepts.append(Concept(name, concept.classes, parts, concept.prompts_hash))
    return concepts


def _concept(
    name: str,
    file: Mapping[str, _ConceptFile],
    records: Sequence[Labelled],
    train: Sequence[Labelled],
    named: set[str],
    digest: str,
) -> Concept:
    parts: dict[str, tuple[tuple[str, ...], tuple[Rule, ...], Rule | None]] = {}
    classes: tuple[str, ...] = ()
    for key, part in file.items():
        found = sorted({r.modality for r in records}) if key == "*" else [key]
        sets = {m: tuple(s for group in _datasets(part.dataset, m, records, named) for s in group) for m in found}
        if isinstance(part.classes, str):
            everywhere = {s for group in sets.values() for s in group}
            classes = tuple(_found_labels(train, sorted(everywhere), None))
            rules = tuple(Rule(label=(label,)) for label in classes)
        else:
            classes = classes or tuple(part.classes)
            if set(classes) != set(part.classes):
                raise ConfigError(f"concept {name}: {key} has other classes than the modality before it.")
            rules = tuple(part.classes[c] for c in classes)
        parts.update({m: (group, rules, part.exclude) for m, group in sets.items() if group})
    return Concept(name, classes, parts, digest)
