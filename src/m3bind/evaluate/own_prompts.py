"""A user's own prompt file: its classes for classification, and its check against the labels of a manifest.

* `read_classes`: the tasks of a file as `OwnClasses`. `class_prompts`: the classes of one modality with their prompts,
  for `Space.classify` and `send-results`.
* `check_prompts`: whether the labels and sets that a file names exist in the records.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from m3bind import modalities
from m3bind.data.cells import key
from m3bind.errors import ConfigError
from m3bind.evaluate.prompt_files import Labelled, PromptSet, Rule, TaskFile, load_prompts
from m3bind.evaluate.tasks import class_spec

SHOWN = 12  # labels listed in a message


@dataclass(frozen=True)
class OwnClasses:
    """The classes of one task of a prompt file."""

    task: str
    modality: str  # "*": any
    prompts: dict[str, tuple[str, ...]]  # class name -> texts


def read_classes(source: str | Path) -> list[OwnClasses]:
    """The tasks of a prompt set whose classes exclude each other and are written out.

    Args:
        source: a YAML file, or the name of a packaged prompt set.

    Raises:
        UnknownNameError: no such set, no such file, or a task for an unknown modality.
        ConfigError: the file does not have the format.
    """
    content = load_prompts(source).content
    tasks = []
    for name, task in content.tasks.items():
        if task.modality != "*":
            modalities.get(task.modality)
        if isinstance(task.classes, str) or task.multilabel or task.ensemble != "mean" or task.zscore:
            continue
        specs = [class_spec(label, spec, task, task.modality) for label, spec in task.classes.items()]
        tasks.append(OwnClasses(name, task.modality, {spec.name: spec.prompts for spec in specs}))
    return tasks


def class_prompts(source: str | Path, modality: str) -> dict[str, list[str]]:
    """The classes of `modality` in a prompt set, each with its prompts: the labels of `Space.classify`.

    >>> class_prompts("mini5", "xray")["normal"][:2]
    ['chest X-ray showing no finding', 'frontal chest radiograph with no finding']

    Args:
        source: a YAML file or the name of a packaged prompt set; SOURCE:TASK if it has several tasks of `modality`.
        modality: of the files to classify.

    Raises:
        UnknownNameError: no such set, file or modality.
        ConfigError: no task, or several tasks, of that modality with classes that exclude each other.
    """
    place, _, wanted = str(source).rpartition(":")
    if not place or wanted.endswith((".yaml", ".yml")):
        place, wanted = str(source), ""
    found = [own for own in read_classes(place) if own.modality in (modality, "*") and wanted in ("", own.task)]
    if len(found) != 1:
        names = [own.task for own in found] or [own.task for own in read_classes(place)]
        how = f"{len(found)} tasks" if found else f"no task {wanted}".rstrip()
        raise ConfigError(
            f"{place}: {how} of {modality} with classes that exclude each other and are written out; "
            f"name one as {place}:TASK (tasks: {', '.join(names) or 'none'})"
        )
    return {label: list(prompts) for label, prompts in found[0].prompts.items()}


def check_prompts(sources: Sequence[str | Path], records: Sequence[Labelled]) -> list[str]:
    """Compare a user's own prompt files with the labels of `records`; packaged sets are not checked.

    Returns:
        Notes for the user: rows whose label is in no class of a task.

    Raises:
        ConfigError: a file names a modality, set or label that no record has; suggests the nearest ones.
    """
    notes = []
    for prompt_set in map(load_prompts, sources):
        if not prompt_set.own:
            continue
        used = 0
        for name, task in prompt_set.content.tasks.items():
            if task.modality != "*":
                modalities.get(task.modality)
            rows = [r for r in records if task.modality in (r.modality, "*")]
            if rows:
                used += 1
                notes += _check_task(f"{prompt_set.name}: task {name}", task, _of_sets(prompt_set, name, task, rows))
        if prompt_set.content.tasks and not used:
            present = ", ".join(sorted({r.modality for r in records})) or "none"
            wanted = ", ".join(sorted({task.modality for task in prompt_set.content.tasks.values()}))
            raise ConfigError(f"{prompt_set.name}: its tasks are of {wanted}; the manifest has rows of {present}")
    return notes


def _of_sets(prompt_set: PromptSet, name: str, task: TaskFile, rows: Sequence[Labelled]) -> list[Labelled]:
    """The rows of the data sets that a task names."""
    inside = [r for r in rows if any(fnmatchcase(r.set, pattern) for pattern in task.dataset)]
    if not inside:
        raise _unknown(f"{prompt_set.name}: task {name}", "data set", task.dataset[0], {r.set for r in rows})
    return inside


def _check_task(place: str, task: TaskFile, rows: Sequence[Labelled]) -> list[str]:
    """Notes on the rows of one task.

    Raises:
        ConfigError: a class or an exclusion names a label that no row has.
    """
    if isinstance(task.classes, str):
        return []
    labels = {text for r in rows for text in (r.label, *r.label.split("|"), *r.labels) if text}
    known = set(map(key, labels))
    rules: list[Rule] = [class_spec(name, spec, task, task.modality).match for name, spec in task.classes.items()]
    rules += [task.exclude] if task.exclude else []
    for rule in rules:
        for value in (*rule.label, *rule.part, *rule.labels):
            if key(value) not in known:
                raise _unknown(place, "label", value, labels)
    left = [r for r in rows if not any(rule.fits(r) for rule in rules)]
    if not left or task.multilabel:
        return []
    names = sorted({r.label or "without a label" for r in left})
    return [f"{place}: {len(left)} of {len(rows)} rows are in no class ({_listed(names)})"]


def _unknown(place: str, kind: str, value: str, known: Iterable[str]) -> ConfigError:
    names = sorted(known)
    near = get_close_matches(value, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {_listed(names) or 'none'}"
    return ConfigError(f"{place}: no row of the manifest has the {kind} {value!r}; {hint}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
