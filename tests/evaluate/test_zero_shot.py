"""Zero-shot classification: each published rule against a naive computation, and its rows."""

from dataclasses import dataclass

import numpy as np
import pytest
from sklearn import metrics as sk

from m3bind.errors import ConfigError
from m3bind.evaluate import zero_shot
from m3bind.evaluate.classification import auc
from m3bind.evaluate.results import Context
from m3bind.evaluate.scoring import corner_thresholds
from m3bind.evaluate.tasks import tasks_for
from reference import classification as naive

DIM = 6


@dataclass(frozen=True)
class Rec:
    modality: str
    set: str
    label: str = ""
    labels: tuple[str, ...] = ()
    patient: str = ""


def encode(texts):
    """A fixed unit vector for every text, independent of the other texts."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=DIM) for text in texts]
    return zero_shot.unit(np.stack(rows))


def vector_of(text):
    return encode([text])[0]


def images(n, seed=0):
    return zero_shot.unit(np.random.default_rng(seed).normal(size=(n, DIM)))


def write(folder, **task):
    import yaml

    base = {"dataset": ["s"], "modality": "ct", "metric": "accuracy"}
    (folder / "t.yaml").write_text(yaml.safe_dump({"tasks": {"t": {**base, **task}}}))
    return folder / "t.yaml"


def read(folder, records, **task):
    (found,) = tasks_for(records, prompts=[write(folder, **task)])
    return found


SINGLE = [Rec("ct", "s", label, patient=f"p{i // 2}") for i, label in enumerate("ABAB" * 10)]
SEVERAL = [
    Rec("ct", "s", labels=labels, patient=f"p{i // 2}")
    for i, labels in enumerate([("A",), (), ("A", "B"), ("B",)] * 10)
]


def test_class_embedding_is_the_normalised_mean():
    prompts = np.array([[1.0, 0], [0, 1], [0, 1]])
    classes = zero_shot.class_embeddings(prompts, [0, 0, 1])
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5], [0, 1]])
    np.testing.assert_allclose(zero_shot.class_embeddings(prompts, [0, 0, 1], renormalise=False)[0], [0.5, 0.5])
    with pytest.raises(ConfigError, match="no prompt"):
        zero_shot.class_embeddings(prompts, [0, 0, 2])


def test_probabilities_are_a_softmax_and_do_not_overflow():
    rows, classes = np.eye(2), np.eye(2)
    np.testing.assert_allclose(zero_shot.probabilities(rows, classes, 2.0)[0], np.exp([2, 0]) / np.exp([2, 0]).sum())
    assert zero_shot.probabilities(rows, classes, 1e4)[0].tolist() == [1, 0]


@pytest.mark.parametrize("ensemble", ["mean", "plain_mean", "max"])
def test_ensembles(tmp_path, ensemble):
    task = read(tmp_path, SINGLE, classes={"A": {"prompts": ["one", "two"]}, "B": None}, ensemble=ensemble)
    x, one, two = images(5), vector_of("one"), vector_of("two")
    mean = (one + two) / 2
    expected = {
        "mean": x @ (mean / np.linalg.norm(mean)),
        "plain_mean": x @ mean,
        "max": np.maximum(x @ one, x @ two),
    }[ensemble]
    logits = zero_shot.task_logits(task, x, encode, scale=7.0)
    np.testing.assert_allclose(logits[:, 0], 7 * expected)
    np.testing.assert_allclose(logits[:, 1], 7 * x @ vector_of("B"))


def test_scores_standardised_over_images(tmp_path):
    task = read(tmp_path, SINGLE, classes={"A": None, "B": None}, ensemble="max", zscore=True)
    x = images(9)
    for scale in (1.0, 50.0):
        logits = zero_shot.task_logits(task, x, encode, scale)
        np.testing.assert_allclose(logits.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(logits.std(0), 1)
    assert np.isfinite(zero_shot.task_logits(task, x[:1], encode)).all()


@pytest.mark.parametrize("ensemble", ["mean", "max"])
def test_a_pair_is_the_softmax_over_present_and_absent(tmp_path, ensemble):
    task = read(tmp_path, SEVERAL, multilabel=True, metric="auroc", templates=["{name} is present."], ensemble=ensemble,
                against=["{name} is not present."], classes={"A": {"names": ["a", "aa"]}, "B": None})  # fmt: skip
    x, scale = images(4), 11.0
    logits = zero_shot.task_logits(task, x, encode, scale)
    chances = 1 / (1 + np.exp(-logits))
    for i, row in enumerate(x):
        two = np.exp([scale * row @ vector_of("B is present."), scale * row @ vector_of("B is not present.")])
        assert chances[i, 1] == pytest.approx(two[0] / two.sum())
        if ensemble == "max":
            each = [
                np.exp([scale * row @ vector_of(f"{n} is present."), scale * row @ vector_of(f"{n} is not present.")])
                for n in ("a", "aa")
            ]
            assert chances[i, 0] == pytest.approx(max(pair[0] / pair.sum() for pair in each))
    if ensemble == "mean":
        np.testing.assert_allclose(x @ zero_shot.class_directions(task, encode).T * scale, logits)


def test_rows_of_two_classes(tmp_path):
    task = read(tmp_path, SINGLE, metric="auc", classes={"A": {"positive": True}, "B": None})
    x = images(40)
    others = [*SINGLE[:39], Rec("ct", "s", "unsure", patient="p0")]
    context = Context(stage="unbound", text_encoder="teacher", seed=3)
    rows = zero_shot.evaluate_task(task, x, others, encode, context, resamples=50)
    assert [row.metric for row in rows] == ["auc", "balanced_accuracy"]
    y = np.array([r.label == "A" for r in others[:39]])
    score = (x @ vector_of("A") - x @ vector_of("B"))[:39]
    assert rows[0].value == pytest.approx(auc(y, score).value)
    assert (rows[0].n, rows[0].chance, rows[0].task, rows[0].dataset) == (39, 0.5, "t", "s")
    assert rows[0].prompts == task.prompts_hash and rows[0].stage == "unbound" and rows[0].seed == 3
    assert not zero_shot.evaluate_task(task, x[:1], others[39:], encode, context)  # no record belongs to the task


def test_rows_name_the_requested_metrics_first(tmp_path):
    classes = {"A": None, "B": None, "C": None}
    task = read(tmp_path, SINGLE, metric="kappa", metrics=["weighted_f1"], classes=classes)
    rows = zero_shot.evaluate_task(task, images(40), SINGLE, encode, Context(), resamples=5)
    assert [r.metric for r in rows] == ["kappa", "weighted_f1", "balanced_accuracy", "accuracy", "macro_f1"]
    assert rows[2].chance == pytest.approx(1 / 3)


def test_several_labels_have_thresholds_of_valid_and_of_test(tmp_path):
    options = {
        "multilabel": True,
        "metric": "auroc",
        "templates": ["{name} is there."],
        "against": ["{name} is absent."],
    }
    task = read(tmp_path, SEVERAL, classes={"A": None, "B": None}, **options)
    x, v = images(40), images(40, 1)
    encoded = []

    def counted(texts):
        assert isinstance(texts, list)
        encoded.append(tuple(texts))
        return encode(texts)

    rows = zero_shot.evaluate_task(
        task, x, SEVERAL, counted, Context(variant="gap"), valid=(v, SEVERAL), scale=9.0, resamples=5
    )
    assert len(encoded) == len(set(encoded)) == 2  # present and absent, once each
    by = {(r.metric, r.variant): r for r in rows}
    names = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "macro_precision", "weighted_precision")
    assert set(by) == {("auroc", "gap")} | {(n, f"gap, threshold={s}") for n in names for s in ("valid", "test")}
    y = task.labels(SEVERAL)
    chances = {
        s: 1 / (1 + np.exp(-zero_shot.task_logits(task, rows_, encode, 9.0)))
        for s, rows_ in (("test", x), ("valid", v))
    }
    assert by["auroc", "gap"].value == pytest.approx(sk.roc_auc_score(y, chances["test"], average="macro"))
    for side in ("valid", "test"):
        limits = [naive.corner_threshold(y[:, j], chances[side][:, j]) for j in range(2)]
        said = chances["test"] > limits
        f1 = np.mean([sk.f1_score(y[:, j], said[:, j], average="weighted") for j in range(2)])
        precision = np.mean([sk.precision_score(y[:, j], said[:, j], zero_division=0) for j in range(2)])
        assert by["weighted_f1", f"gap, threshold={side}"].value == pytest.approx(f1)
        assert by["macro_precision", f"gap, threshold={side}"].value == pytest.approx(precision)
    alone = zero_shot.evaluate_task(task, x, SEVERAL, encode, Context(), resamples=5)
    assert {r.variant for r in alone} == {"", "threshold=test"}


@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_nearest_to_the_corner(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(-1, 2, (50, 3))
    scores = np.round(rng.random((50, 3)), 1)
    scores[:, 2] = 3 * scores[:, 2] - 5
    found = corner_thresholds(y, scores, (0.0, 1.0))
    for j in range(2):
        known = y[:, j] >= 0
        assert found[j] == pytest.approx(naive.corner_threshold(y[known, j], scores[known, j]))
    known = y[:, 2] >= 0
    low, high = scores[known, 2].min(), scores[known, 2].max()
    expected = naive.corner_threshold(y[known, 2], scores[known, 2], low, high)
    assert corner_thresholds(y, scores)[2] == pytest.approx(expected)
    assert corner_thresholds(np.ones((3, 1)), np.zeros((3, 1)), (0.0, 1.0))[0] == pytest.approx(0.5, abs=0.02)
