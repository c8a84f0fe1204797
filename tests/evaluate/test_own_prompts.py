"""A user's own classes and prompts: their short form, their check against a manifest, their use as labels."""

from itertools import product

import pytest

from evaluate.test_tasks import Rec
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate import tasks
from m3bind.evaluate.own_prompts import check_prompts, class_prompts, read_classes
from m3bind.evaluate.prompt_files import load_prompts

SHORT = """
tasks:
  infection:
    modality: xray
    classes:
      normal: [clear lungs, no acute findings]
      pneumonia: [pneumonia of the chest]
"""


ROWS = [Rec("xray", "mine", label) for label in ("normal", "Pneumonia", "normal", "effusion|mass")]
MULTI = [Rec("xray", "mine", "", ("effusion", "mass")), Rec("xray", "mine", "", ("mass",))]


@pytest.fixture
def write(tmp_path):
    def write(text, name="own.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_the_short_form_is_a_task_of_every_set(write):
    path = write(SHORT)
    (task,) = tasks.tasks_for(ROWS, prompts=[path])
    assert (task.name, task.metric, task.dataset) == ("infection", "balanced_accuracy", "mine")
    assert task.labels(ROWS).tolist() == [0, 1, 0, -1]
    assert task.prompts()[0] == ["clear lungs", "no acute findings", "pneumonia of the chest"]
    named = [Rec("xray", "nih224", r.label) for r in ROWS]  # a set that a packaged file names
    assert {task.name for task in tasks.tasks_for(named, prompts=["mini5", path])} == {"xray_pneumonia", "infection"}
    long = SHORT.replace("[pneumonia of the chest]", "{prompts: [pneumonia of the chest]}")
    assert load_prompts(write(long, "long.yaml")).content == load_prompts(path).content


def test_the_default_metric_of_several_labels_is_auroc(write):
    text = "tasks: {t: {modality: xray, multilabel: true, classes: {mass: [a mass], effusion: [an effusion]}}}"
    (task,) = tasks.tasks_for(MULTI, prompts=[write(text)])
    assert task.metric == "auroc" and task.labels(MULTI).tolist() == [[1, 1], [1, 0]]


FORMS = {  # where a name of the manifest can be written in a task
    "class": "normal: [a], {name}: [b]",
    "match label": "normal: [a], x: {{match: {{label: [{name}]}}, prompts: [b]}}",
    "match part": "normal: [a], x: {{match: {{part: [mass, {name}]}}, prompts: [b]}}",
    "match labels": "normal: [a], x: {{match: {{labels: [{name}]}}, prompts: [b]}}",
    "exclude": "normal: [a], x: {{match: {{otherwise: true}}}}}}, exclude: {{label: [{name}]",
}
NAMES = {"pneumonia": "", "PNEUMONIA ": "", "mass": "", "pnuemonia": "Pneumonia", "efusion": "effusion", "zebra": ""}


@pytest.mark.parametrize(("form", "name"), product(FORMS, NAMES))
def test_every_label_of_a_file_must_be_in_the_manifest(write, form, name):
    inner = FORMS[form].format(name=name)
    path = write(f"tasks: {{t: {{modality: xray, classes: {{{inner}}}}}}}")
    if name in ("pneumonia", "PNEUMONIA ", "mass"):
        check_prompts([path], ROWS)
        return
    wanted = f"did you mean '{NAMES[name]}" if NAMES[name] else "there are: Pneumonia, effusion"
    with pytest.raises(ConfigError, match=f"own: task t: no row of the manifest has the label '{name}'; {wanted}"):
        check_prompts([path], ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("xray", "xrey"), "unknown modality 'xrey'; did you mean 'xray'"),
        (("xray", "ct"), "its tasks are of ct; the manifest has rows of xray"),
        (("modality: xray", "modality: xray\n    dataset: [mien]"), "data set 'mien'; did you mean 'mine'"),
    ],
)
def test_modalities_and_sets_are_checked(write, change, message):
    with pytest.raises(ConfigError, match=message):
        check_prompts([write(SHORT.replace(*change))], ROWS)


def test_rows_in_no_class_are_counted_and_packaged_sets_are_not_checked(write):
    assert check_prompts([write(SHORT)], ROWS) == ["own: task infection: 1 of 4 rows are in no class (effusion|mass)"]
    assert check_prompts([write(SHORT)], ROWS[:3]) == []
    assert check_prompts(["mini5", "ptbxl"], ROWS) == []
    with pytest.raises(UnknownNameError, match="mini5"):
        check_prompts(["mini6"], ROWS)


def test_classes_become_labels_of_a_classification(write):
    wanted = {"normal": ["clear lungs", "no acute findings"], "pneumonia": ["pneumonia of the chest"]}
    path = write(SHORT)
    assert class_prompts(path, "xray") == class_prompts(f"{path}:infection", "xray") == wanted
    two = write(SHORT + "  side:\n    modality: xray\n    classes: {left: [a], right: [b]}\n", "two.yaml")
    assert list(class_prompts(f"{two}:side", "xray")) == ["left", "right"]
    with pytest.raises(ConfigError, match=r"2 tasks of xray .* as .*two.yaml:TASK \(tasks: infection, side\)"):
        class_prompts(two, "xray")
    with pytest.raises(ConfigError, match="no task of ct"):
        class_prompts(path, "ct")
    with pytest.raises(ConfigError, match="no task inflection of xray"):
        class_prompts(f"{path}:inflection", "xray")
    with pytest.raises(UnknownNameError, match="own2"):
        class_prompts(str(path).replace("own", "own2"), "xray")


@pytest.mark.parametrize("extra", ["multilabel: true", "ensemble: max", "zscore: true"])
def test_tasks_without_exclusive_classes_are_not_offered(write, extra):
    assert [own.task for own in read_classes(write(SHORT))] == ["infection"]
    assert read_classes(write(SHORT.replace("modality: xray", f"modality: xray\n    {extra}"))) == []
    assert read_classes("generic") == []
