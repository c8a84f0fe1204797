"""Zero-shot tasks and shared concepts, defined as data in `prompts/*.yaml` (their format: prompt_files.py).

* `Task`: a zero-shot classification: classes with prompts, metrics, and each record's class or labels.
* `Concept`: classes that several modalities share, for image-to-image retrieval.
* `tasks_for`, `concepts_for`: the tasks and concepts of given records; `title`: a modality's display name.
* `class_spec`: a class of a file with its rule and prompts.

Data set "*" in a packaged file means the sets that no other one names, in a user's own file every set; modality "*"
means every modality present.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3bind import modalities
from m3bind.core.files import sha256_text
from m3bind.data.cells import key
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate.prompt_files import (
    ClassFile,
    ConceptFile,
    Ensemble,
    Labelled,
    PromptSet,
    Rule,
    TaskFile,
    load_prompts,
    prompt_sets,
)

MAX_CLASSES = 100  # more distinct labels than this are not treated as classes
__all__ = ["ClassSpec", "Concept", "Labelled", "Rule", "Task", "concepts_for", "load_prompts", "tasks_for", "title"]


@dataclass(frozen=True)
class ClassSpec:
    """One class: its name, its rule, its prompts, and the prompts of its opposite (pairs only)."""

    name: str
    match: Rule
    prompts: tuple[str, ...]
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A zero-shot classification in one modality. With two classes the last is the positive one.

    The fields after `exclude` are those of `TaskFile`.
    """

    name: str
    datasets: tuple[str, ...]
    modality: str
    metric: str
    classes: tuple[ClassSpec, ...]
    prompts_hash: str
    exclude: Rule | None = None
    metrics: tuple[str, ...] = ()
    multilabel: bool = False
    ensemble: Ensemble = "mean"
    zscore: bool = False
    unique: bool = False
    require_one: bool = False

    @property
    def kind(self) -> str:
        """ "binary", "multiclass" or "multilabel"."""
        return "multilabel" if self.multilabel else "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def paired(self) -> bool:
        """Whether each label has prompts for present and for absent."""
        return bool(self.classes and self.classes[0].against)

    @property
    def has_probabilities(self) -> bool:
        """Whether scores are probabilities: not standardised scores, nor one prompt per label."""
        return not self.zscore and (self.paired or not self.multilabel)

    @property
    def dataset(self) -> str:
        """Data set names joined by "+"."""
        return "+".join(self.datasets)

    def labels(self, records: Sequence[Labelled]) -> NDArray[np.int64]:
        """Class number of each record (n,), or with several labels 0 or 1 per label (n, c); -1: not in the task."""
        rules = [c.match for c in self.classes]
        if not self.multilabel:
            return _numbers(records, self.modality, self.datasets, rules, self.exclude, self.unique)
        inside = _inside(records, self.modality, self.datasets, self.exclude)
        present = np.array([rule.fits(r) for r, rule in product(records, rules)], dtype=np.int64)
        present = present.reshape(len(records), len(rules))
        if self.require_one:
            inside &= present.any(1)
        return np.where(inside[:, None], present, -1)

    def answerable(self, records: Sequence[Labelled]) -> bool:
        """Whether `records` contain at least two classes, or a label both present and absent."""
        y = self.labels(records)
        columns = y.T if self.multilabel else y[None]
        return any(len(set(column.tolist()) - {-1}) > 1 for column in columns)

    def prompts(self) -> tuple[list[str], NDArray[np.int64]]:
        """All prompts, class after class, and the class number of each."""
        return _listed([spec.prompts for spec in self.classes])

    def opposites(self) -> tuple[list[str], NDArray[np.int64]]:
        """All prompts for an absent label, class after class, and the class number of each."""
        return _listed([spec.against for spec in self.classes])


def _listed(texts: Sequence[tuple[str, ...]]) -> tuple[list[str], NDArray[np.int64]]:
    return list(chain.from_iterable(texts)), np.repeat(np.arange(len(texts)), [len(group) for group in texts])


@dataclass(frozen=True)
class Concept:
    """Classes that several modalities share, e.g. malignancy: benign and malignant, in CT and in pathology."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[str, ...], tuple[Rule, ...], Rule | None]]  # modality -> sets, rules, excluded
    prompts_hash: str

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that have the concept."""
        return tuple(self.parts)

    @property
    def dataset(self) -> str:
        """Data set names joined by "+"."""
        return "+".join(dict.fromkeys(name for sets, _, _ in self.parts.values() for name in sets))

    def labels(self, records: Sequence[Labelled], modality: str) -> NDArray[np.int64]:
        """Class number of each record of `modality`, -1 if it is not part of the concept: (n,)."""
        if modality not in self.parts:
            return np.full(len(records), -1)
        sets, rules, exclude = self.parts[modality]
        return _numbers(records, modality, sets, rules, exclude)


def _inside(
    records: Sequence[Labelled], modality: str, datasets: Sequence[str], exclude: Rule | None
) -> NDArray[np.bool_]:
    """Whether each record is part of a task or concept: (n,)."""
    inside = (r.modality == modality and r.set in datasets and not (exclude and exclude.fits(r)) for r in records)
    return np.fromiter(inside, dtype=bool, count=len(records))


def _numbers(
    records: Sequence[Labelled],
    modality: str,
    datasets: Sequence[str],
    rules: Sequence[Rule],
    exclude: Rule | None,
    unique: bool = False,
) -> NDArray[np.int64]:
    """First matching rule of each record; rules "otherwise" come last. `unique`: -1 if several others match."""
    order = sorted(range(len(rules)), key=lambda i: rules[i].otherwise)
    numbers = np.full(len(records), -1, dtype=np.int64)
    inside = _inside(records, modality, datasets, exclude)
    for i, record in enumerate(records):
        fitting = [j for j in order if rules[j].fits(record)] if inside[i] else []
        several = unique and sum(not rules[j].otherwise for j in fitting) > 1
        if fitting and not several:
            numbers[i] = fitting[0]
    return numbers


def _datasets(
    patterns: Sequence[str], modality: str, records: Iterable[Labelled], named: set[str]
) -> list[tuple[str, ...]]:
    """Groups of sets present in `records`: one of the sets written out, and one for each set that matches a pattern.

    The pattern "*" matches the sets that are not `named`.
    """
    present = sorted({r.set for r in records if r.modality == modality})
    groups = [written] if (written := tuple(name for name in patterns if name in present)) else []
    wild = [pattern for pattern in patterns if "*" in pattern and pattern != "*"]
    for name in present:
        if any(fnmatchcase(name, pattern) for pattern in wild) or ("*" in patterns and name not in named):
            groups.append((name,))
    return groups


def _labels_in(
    train: Iterable[Labelled], datasets: Sequence[str], modality: str | None, several: bool = False
) -> list[str]:
    rows = [r for r in train if r.set in datasets and (modality is None or r.modality == modality)]
    labels = {key(name): name for r in rows for name in (r.labels if several else (r.label,)) if name}
    return sorted(labels.values()) if (1 if several else 2) <= len(labels) <= MAX_CLASSES else []


def title(modality: str) -> str:
    """Display name of a modality; the name itself if it is not registered."""
    try:
        return modalities.get(modality).title or modality
    except UnknownNameError:
        return modality


def class_spec(key: str, file: ClassFile | None, task: TaskFile, modality: str) -> ClassSpec:
    """The class written as `key: file`, with prompts from templates, parts and sentences."""
    file = file or ClassFile()
    match = file.match or (Rule(label=(key,), labels=(key,)) if task.multilabel else Rule(label=(key,)))
    text = key.replace("_", " ").replace("|", ", ").strip()
    names = file.names or (() if file.prompts or file.parts else (text,))

    def filled(templates: Sequence[str]) -> list[str]:
        return [t.replace("{title}", title(modality)).replace("{name}", n) for n in names for t in templates]

    combined = [" ".join(filter(None, words)) for words in product(*file.parts)] if file.parts else []
    prompts = _distinct([*filled(task.templates), *file.prompts, *combined], task)
    return ClassSpec(key, match, prompts, _distinct(filled(task.against), task))


def _distinct(texts: Sequence[str], task: TaskFile) -> tuple[str, ...]:
    """Distinct texts, in lower case with `lower`, and a sample of them with `sample`."""
    distinct = list(dict.fromkeys(text.lower() if task.lower else text for text in texts))
    if 0 < task.sample < len(distinct):
        drawn = set(sorted(distinct, key=sha256_text)[: task.sample])
        distinct = [text for text in distinct if text in drawn]
    return tuple(distinct)


def _task(
    name: str, file: TaskFile, sets: tuple[str, ...], modality: str, train: Sequence[Labelled], digest: str
) -> Task | None:
    if isinstance(file.classes, str):
        classes: Mapping[str, ClassFile | None] = dict.fromkeys(_labels_in(train, sets, modality, file.multilabel))
    else:
        classes = dict(sorted(file.classes.items(), key=lambda item: bool(item[1] and item[1].positive)))
    if len(classes) < (1 if file.multilabel else 2):
        return None
    specs = tuple(class_spec(key, spec, file, modality) for key, spec in classes.items())
    options = ("exclude", "metrics", "multilabel", "ensemble", "zscore", "unique", "require_one")
    values = {option: getattr(file, option) for option in options}
    return Task(name, sets, modality, file.primary_metric, specs, digest, **values)


def _loaded(
    records: Sequence[Labelled], prompts: Sequence[str | Path] | None
) -> tuple[list[tuple[PromptSet, set[str]]], list[str]]:
    """The prompt sets, each with the sets of `records` that its "*" leaves out, and the modalities of `records`."""
    chosen = [load_prompts(name) for name in (prompt_sets() if prompts is None else prompts)]
    named = {name for name in {r.set for r in records} if any(p.names_set(name) for p in chosen)}
    return [(p, set() if p.own else named) for p in chosen], sorted({r.modality for r in records})


def tasks_for(
    records: Sequence[Labelled], train: Sequence[Labelled] | None = None, prompts: Sequence[str | Path] | None = None
) -> list[Task]:
    """All zero-shot tasks that `records` can answer (`Task.answerable`).

    `train` supplies the labels of tasks whose classes are not written out (default: `records`); `prompts` are names or
    paths of prompt sets (default: all of the package).
    """
    train = records if train is None else train
    chosen, present = _loaded(records, prompts)
    tasks = []
    for prompt_set, named in chosen:
        for name, file in prompt_set.content.tasks.items():
            for modality in present if file.modality == "*" else [file.modality]:
                for sets in _datasets(file.dataset, modality, records, named):
                    task = _task(name, file, sets, modality, train, prompt_set.hash)
                    if task is not None and task.answerable(records):
                        tasks.append(task)
    return tasks


def concepts_for(
    records: Sequence[Labelled], train: Sequence[Labelled] | None = None, prompts: Sequence[str | Path] | None = None
) -> list[Concept]:
    """All concepts that at least two modalities of `records` share, each with two classes present."""
    train = records if train is None else train
    chosen, _ = _loaded(records, prompts)
    concepts = []
    for prompt_set, named in chosen:
        for name, file in prompt_set.content.concepts.items():
            concept = _concept(name, file, records, train, named, prompt_set.hash)
            parts = {m: p for m, p in concept.parts.items() if len(set(concept.labels(records, m)) - {-1}) > 1}
            if len(parts) > 1:
                concepts.append(replace(concept, parts=parts))
    return concepts


def _concept(
    name: str,
    file: Mapping[str, ConceptFile],
    records: Sequence[Labelled],
    train: Sequence[Labelled],
    named: set[str],
    digest: str,
) -> Concept:
    parts: dict[str, tuple[tuple[str, ...], tuple[Rule, ...], Rule | None]] = {}
    classes: tuple[str, ...] = ()
    for where, part in file.items():
        present = sorted({r.modality for r in records}) if where == "*" else [where]
        sets = {m: tuple(chain.from_iterable(_datasets(part.dataset, m, records, named))) for m in present}
        if isinstance(part.classes, str):
            classes = tuple(_labels_in(train, sorted(set().union(*sets.values())), None))
            rules = tuple(Rule(label=(label,)) for label in classes)
        else:
            classes = classes or tuple(part.classes)
            if set(classes) != set(part.classes):
                raise ConfigError(f"concept {name}: {where} has other classes than the modality before it.")
            rules = tuple(part.classes[c] for c in classes)
        parts.update({m: (group, rules, part.exclude) for m, group in sets.items() if group})
    return Concept(name, classes, parts, digest)
