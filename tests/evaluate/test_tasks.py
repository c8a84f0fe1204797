"""Tasks as data: records, prompts, metrics."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

import pytest

from m3bind.errors import ConfigError, UnknownNameError
from m3bind.evaluate import prompt_files, tasks
from m3bind.evaluate.benchmarks.base import get


@dataclass(frozen=True)
class Rec:
    modality: str
    set: str
    label: str
    labels: tuple[str, ...] = ()
    patient: str = ""


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
    assert found["label", "ct"].datasets == ("medpix224",)  # a set that is not named gets its labels as classes


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
        ("tasks: {a: {dataset: [x], modality: y, metric: aurocc, classes: from_labels}}", "tasks > a: .*'aurocc'"),
        ("tasks: {a: {dataset: [x], modality: y, metric: kappa, multilabel: true, classes: from_labels}}", "several l"),
        ("tasks: {a: {dataset: [x], modality: y, metric: auroc, against: [none], classes: from_labels}}", "multilabel"),
        ("tasks: {a: {dataset: [x], modality: y, metric: auroc, multilabel: true, ensemble: max, against: [a, b],"
         " classes: from_labels}}", "as many templates"),
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


# ------------------------------------------------------------------------------------------------ the paper's data sets

TABLES = {
    "messidor2": ("messidor2_naive", "messidor2_expert"),
    "odir200x3": ("odir200x3_naive", "odir200x3_expert"),
    "odir5k": ("odir5k",),
    "chexpert": ("chexpert",),
    "chexpert5x200": ("chexpert5x200", "chexpert5x200_gloria"),
    "rsna_pneumonia": ("rsna_pneumonia",),
    "skin": ("skin", "skin_tumor"),
    "pcam": ("pcam",),
    "sicapv2": ("sicapv2",),
    "ct_rate": ("ct_rate", "ct_rate_training"),
    "rad_chestct": ("rad_chestct", "rad_chestct_training"),
    "ptbxl": ("ptbxl_super", "ptbxl_super_single", "ptbxl_sub", "ptbxl_form", "ptbxl_rhythm"),
    "icbeb": ("icbeb", "icbeb_single"),
    "ludb": ("ludb_rhythm",),
    "medmnist_pathmnist": ("medmnist",),
    "medmnist_chestmnist": ("medmnist_findings",),
}


def records_of(name):
    """A record for every class of a published data set, and one without any."""
    benchmark = get(name)
    several = name in ("odir5k", "chexpert", "ct_rate", "rad_chestct", "ptbxl", "medmnist_chestmnist")
    label = (lambda c: "") if several else (lambda c: c)
    return [Rec(benchmark.modalities[0], name, label(c), (c,)) for c in benchmark.classes] + (
        [Rec(benchmark.modalities[0], name, "")] if several else []
    )


@pytest.mark.parametrize("name", TABLES)
def test_labels_of_the_data_sets_meet_the_prompts(name):
    """What a data set's file writes as labels is what its prompt file looks for: each class finds a record."""
    records = records_of(name)
    found = {task.name: task for task in tasks.tasks_for(records)}
    assert set(found) == set(TABLES[name])
    for task in found.values():
        y = task.labels(records)
        if task.multilabel:
            assert (y == 1).any(0).all(), [c.name for c, hit in zip(task.classes, (y == 1).any(0)) if not hit]
        else:
            assert set(y.tolist()) - {-1} == set(range(len(task.classes)))
        if name not in ("chexpert", "ptbxl", "skin"):
            assert (y.reshape(len(records), -1).max(1) >= 0).all()  # every record has a class


def task_of(records, name):
    return next(task for task in tasks.tasks_for(records) if task.name == name)


def test_words_of_the_published_protocols():
    messidor = records_of("messidor2")
    assert task_of(messidor, "messidor2_naive").prompts()[0] == [r.label for r in messidor]
    expert = task_of(messidor, "messidor2_expert")
    assert (
        expert.classes[0].prompts == ("no microaneurysms", "no diabetic retinopathy")
        and expert.ensemble == "plain_mean"
    )
    assert [len(c.prompts) for c in expert.classes] == [2, 2, 7, 4, 3]
    sicap = task_of(records_of("sicapv2"), "sicapv2")
    assert len(sicap.classes[2].prompts) == 4
    assert sicap.classes[2].prompts[1] == "histopathology image of cribriform ill-formed fused papillary patterns"
    assert len(task_of(records_of("skin"), "skin").classes) == 16
    chest = records_of("chexpert5x200")
    assert task_of(chest, "chexpert5x200").prompts()[0][4] == "Pleural Effusion is observed"
    gloria = task_of(chest, "chexpert5x200_gloria")
    assert gloria.ensemble == "max" and gloria.zscore and {len(c.prompts) for c in gloria.classes} == {5}
    assert not any("  " in text or text.startswith(" ") for text in gloria.prompts()[0])
    rsna = task_of(records_of("rsna_pneumonia"), "rsna_pneumonia")
    assert rsna.prompts()[0] == ["No evidence of pneumonia.", "Findings suggesting pneumonia."]
    ct = task_of(records_of("ct_rate"), "ct_rate")
    assert ct.paired and len(ct.classes) == 18 and ct.opposites()[0][9] == "Lung nodule is not present."
    assert task_of(records_of("ct_rate"), "ct_rate_training").opposites()[0][9] == "There is no Lung nodule."
    ecg = task_of(records_of("icbeb"), "icbeb")
    assert ecg.prompts()[0][1] == "this ecg shows atrial fibrillation."
    assert task_of(records_of("ptbxl"), "ptbxl_super_single").classes[4].prompts == ("This ECG shows Hypertrophy.",)


def test_labels_of_records_with_several():
    def ecg(*labels):
        return Rec("ecg", "ptbxl", "", labels)

    records = [ecg("super:MI", "super:CD", "sub:IMI"), ecg("super:NORM"), ecg("rhythm:SR"), ecg("super:HYP")]
    several, single = task_of(records, "ptbxl_super"), task_of(records, "ptbxl_super_single")
    assert several.labels(records).tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [-1] * 5, [0, 0, 0, 0, 1]]
    assert single.labels(records).tolist() == [-1, 0, -1, 4]  # of two superclasses: left out
    ct = [Rec("ct", "ct_rate", "", ("Emphysema",)), Rec("ct", "ct_rate", "")]
    y = task_of(ct, "ct_rate").labels(ct)
    assert y.sum() == 1 and y[0, 7] == 1 and (y[1] == 0).all()  # no finding is known to be none
    rad = [Rec("ct", "rad_chestct", "", ("Coronary artery wall calcification",)), Rec("ct", "rad_chestct", "")]
    calcification = task_of(rad, "rad_chestct").classes[1]
    assert len(calcification.prompts) == 2 and task_of(rad, "rad_chestct").labels(rad)[:, 1].tolist() == [1, 0]


def test_a_pattern_makes_one_task_per_set():
    records = [Rec(m, f"medmnist_{s}", label) for m, s in (("xray", "a"), ("ct", "b"), ("ct", "c")) for label in "xy"]
    found = tasks.tasks_for(records)
    assert [(t.name, t.modality, t.dataset) for t in found] == [
        ("medmnist", "ct", "medmnist_b"), ("medmnist", "ct", "medmnist_c"), ("medmnist", "xray", "medmnist_a"),
    ]  # fmt: skip
    assert prompt_files.load_prompts("medmnist").names_set("medmnist_zzz")


def test_parts_samples_and_lower_case(tmp_path):
    path = tmp_path / "parts.yaml"
    path.write_text(
        "tasks:\n  t:\n    dataset: [s]\n    modality: xray\n    metric: accuracy\n    lower: true\n    sample: 3\n"
        "    classes:\n      A: {parts: [['', Mild], [EDEMA, effusion], [left, right]]}\n      B:\n"
    )
    records = [Rec("xray", "s", "A"), Rec("xray", "s", "B")]
    (task,) = tasks.tasks_for(records, prompts=[path])
    everything = {
        " ".join(filter(None, (a, b, c)))
        for a in ("", "mild")
        for b in ("edema", "effusion")
        for c in ("left", "right")
    }
    assert len(task.classes[0].prompts) == 3 and set(task.classes[0].prompts) < everything
    assert task.classes[1].prompts == ("b",)  # a class without prompts uses its key
