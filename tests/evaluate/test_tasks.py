"""Tasks as data, zero-shot classification and the linear probe."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest

from m3bind.errors import ConfigError, M3BindError, UnknownNameError
from m3bind.evaluate import tasks, zero_shot
from m3bind.evaluate.metrics import auc
from m3bind.evaluate.probe import linear_probe
from m3bind.evaluate.results import Context


@dataclass(frozen=True)
class Rec:
    modality: str
    set: str
    label: str
    labels: tuple[str, ...] = ()


MINI = [
    *(Rec("xray", "nih224", label) for label in ("normal", "pneumonia")),
    *(Rec("ct", "lidc_voi", label) for label in ("benign nodule", "malignant nodule")),
    Rec("ct", "medpix224", "Head"),
    Rec("ct", "medpix224", "Abdomen"),
    *(Rec("retina", "odir256", label) for label in ("normal fundus", "cataract", "other")),
    *(Rec("ecg", "ptbxl100", label) for label in ("NORM", "CD|HYP", "CD|NORM", "")),
    *(Rec("pathology", "lc25000", f"{label}") for label in ("benign lung tissue", "lung adenocarcinoma")),
    Rec("pathology", "lc25000_colon", "colon adenocarcinoma"),
]


def by_name(found):
    return {(task.name, task.modality): task for task in found}


def test_tasks_of_mini5():
    found = by_name(tasks.tasks_for(MINI))
    assert {name for name, _ in found} == {
        "xray_pneumonia", "ct_nodule_malignancy", "retina_disease", "ecg_normal", "pathology_tissue", "label",
    }  # fmt: skip
    keys = (("retina_disease", "retina"), ("ecg_normal", "ecg"), ("pathology_tissue", "pathology"))
    retina, ecg, pathology = (found[key] for key in keys)
    assert len(retina.classes) == 7 and retina.metric == "balanced_accuracy"
    assert retina.labels(MINI)[[6, 8]].tolist() == [0, -1]  # "other" is excluded
    assert [c.name for c in ecg.classes] == ["abnormal ECG", "normal ECG"]  # the positive class is the last
    assert ecg.labels(MINI)[9:13].tolist() == [1, 0, 1, 0]  # "NORM" among the parts of the label
    assert pathology.dataset == "lc25000+lc25000_colon" and len(pathology.classes) == 5
    assert (pathology.labels(MINI)[13:] >= 0).all() and (pathology.labels(MINI)[:13] == -1).all()
    assert found["label", "ct"].datasets == ("medpix224",)  # a set nobody names gets its labels as classes


def test_every_prompt_is_distinct_and_belongs_to_one_class():
    for task in tasks.tasks_for(MINI):
        texts, owner = task.prompts()
        assert len(texts) == len(set(texts)) == len(owner) and set(owner) == set(range(len(task.classes)))
        assert not any("{" in text for text in texts)


def test_the_real_manifest_has_the_expected_tasks(mini5):
    import pandas as pd

    table = pd.read_csv(mini5 / "manifest.csv").fillna("")
    table = table[table.split == "test"]
    records = [Rec(r.modality, r.set, r.label, tuple(r.labels.split("|"))) for r in table.itertuples()]
    found = by_name(tasks.tasks_for(records))
    counts = {key: Counter(task.labels(records).tolist()) for key, task in found.items()}
    assert counts["retina_disease", "retina"][-1] == len(records) - 396
    assert counts["ecg_normal", "ecg"][1] == 41 and counts["ecg_normal", "ecg"][0] == 39
    assert sum(counts["pathology_tissue", "pathology"][i] for i in range(5)) == 187
    concepts = {c.name: c for c in tasks.concepts_for(records)}
    assert set(concepts["malignancy"].modalities) == {"ct", "pathology"}
    assert set(concepts["normality"].modalities) == {"xray", "retina", "ecg", "pathology"}
    assert Counter(concepts["malignancy"].labels(records, "pathology").tolist())[1] == 64


def test_classes_found_in_training_labels():
    train = [Rec(m, "phantom", label) for m, label in product(("xray", "ecg"), ("healthy", "lung_cancer", "copd"))]
    test = [record for record in train if record.label != "copd"]
    found = by_name(tasks.tasks_for(test, train))
    assert set(found) == {("syndrome", "xray"), ("syndrome", "ecg")}
    task = found["syndrome", "xray"]
    assert [c.name for c in task.classes] == ["copd", "healthy", "lung_cancer"]  # a class without test record stays
    assert any(text.endswith("showing lung cancer") for text in task.prompts()[0])
    (concept,) = tasks.concepts_for(test, train)
    assert set(concept.modalities) == {"xray", "ecg"} and concept.classes == ("copd", "healthy", "lung_cancer")
    assert (concept.labels(test, "xray") == concept.labels([replace(r, modality="xray") for r in test], "xray"))[
        :2
    ].all()


def test_a_prompt_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "tasks:\n  gland:\n    dataset: [tiles]\n    modality: pathology\n    metric: auc\n    classes:\n"
        "      cancer: {match: {labels: [G3]}, prompts: [a cancer], positive: true}\n"
        "      rest: {match: {otherwise: true}, prompts: [no cancer]}\n"
    )
    records = [Rec("pathology", "tiles", "a", ("G3", "x")), Rec("pathology", "tiles", "b")]
    (task,) = tasks.tasks_for(records, prompts=[path])
    assert task.labels(records).tolist() == [1, 0] and task.kind == "binary"
    first = task.prompts_hash
    path.write_text(path.read_text().replace("a cancer", "a carcinoma"))
    assert tasks.tasks_for(records, prompts=[path])[0].prompts_hash != first  # the hash follows the words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [", "YAML"),
        ("tasks: {a: {dataset: [x], modality: y, metric: auroc, classes: from_labels}}", "a > metric"),
        ("tasks: {a: {dataset: [x], modality: y, metric: auc, classes: from_labels}}", "exactly two classes"),
        ("tasks: {a: {dataset: [x], modality: y, metric: auc, clases: 1}}", "mine.yaml"),
        ("tasks: {a: {dataset: [x], modality: y, metric: auc, classes: {p: {match: {}}, q: {match: {}}}}}", "needs"),
    ],
)  # fmt: skip
def test_bad_prompt_files_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        tasks.load_prompts(path)


def test_unknown_prompt_set_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="mini5"):
        tasks.load_prompts("mini6")


# ------------------------------------------------------------------------------------------------ zero-shot


def test_class_embedding_is_the_normalised_mean():
    prompts = np.array([[1.0, 0], [0, 1], [0, 1]])
    classes = zero_shot.class_embeddings(prompts, [0, 0, 1])
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5], [0, 1]])
    np.testing.assert_allclose(zero_shot.class_embeddings(prompts, [0, 0, 1], renormalise=False)[0], [0.5, 0.5])
    with pytest.raises(ConfigError, match="no prompt"):
        zero_shot.class_embeddings(prompts, [0, 0, 2])


def test_probabilities_are_a_softmax_and_do_not_overflow():
    images, classes = np.eye(2), np.eye(2)
    np.testing.assert_allclose(zero_shot.probabilities(images, classes, 2.0)[0], np.exp([2, 0]) / np.exp([2, 0]).sum())
    assert zero_shot.probabilities(images, classes, 1e4)[0].tolist() == [1, 0]


def test_zero_shot_rows():
    rng = np.random.default_rng(0)
    task = next(t for t in tasks.tasks_for(MINI) if t.name == "xray_pneumonia")
    records = [Rec("xray", "nih224", label) for label in ("normal", "pneumonia", "unsure") * 30]
    labels = task.labels(records)
    assert set(labels) == {0, 1, -1}
    images = zero_shot.unit(np.eye(4)[labels] + 0.8 * rng.normal(size=(90, 4)))
    words = {}

    def encode(texts):
        words["asked"] = texts
        owner = task.prompts()[1]
        return np.eye(4)[owner]

    context = Context(stage="unbound", text_path="teacher", seed=3)
    rows = zero_shot.evaluate_task(
        task, images, labels, encode, context, [str(i // 2) for i in range(90)], resamples=50
    )
    assert words["asked"] == task.prompts()[0]
    assert [row.metric for row in rows] == ["auc", "balanced_accuracy"]
    kept = labels >= 0
    assert rows[0].value == pytest.approx(auc(labels[kept] == 1, (images[:, 1] - images[:, 0])[kept]).value)
    assert (rows[0].n, rows[0].chance, rows[0].task, rows[0].dataset) == (60, 0.5, "xray_pneumonia", "nih224")
    assert rows[0].prompts == task.prompts_hash and rows[0].stage == "unbound" and rows[0].seed == 3


def test_linear_probe_reads_what_is_there_and_no_more():
    rng = np.random.default_rng(0)
    y, test_y = rng.integers(0, 3, 300), rng.integers(0, 3, 200)
    centres = rng.normal(size=(3, 10)) * 2
    signal = [(centres[labels] + rng.normal(size=(len(labels), 10)), labels) for labels in (y, test_y)]
    noise = [(rng.normal(size=(len(labels), 10)), labels) for labels in (y, test_y)]
    good = linear_probe(*signal, Context(modality="ecg"), resamples=50)
    bad = linear_probe(*noise, Context(modality="ecg"), valid=noise[1], resamples=50)
    assert [row.metric for row in good] == ["balanced_accuracy", "accuracy", "macro_f1"]
    assert good[0].value > 0.9 and abs(bad[0].value - 1 / 3) < 0.12 and good[0].chance == pytest.approx(1 / 3)
    two = [(x[labels < 2], labels[labels < 2]) for x, labels in signal]
    assert linear_probe(*two, Context(), resamples=50)[0].metric == "auc"
    with pytest.raises(M3BindError, match="fewer than two"):
        linear_probe((np.zeros((3, 2)), [1, 1, -1]), two[1], Context())
    with pytest.raises(M3BindError, match="lack"):
        linear_probe(two[0], signal[1], Context())
