"""Search and agreement against naive loops; what binding should and should not change."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m3bind.errors import ConfigError
from m3bind.evaluate import agreement, retrieval
from m3bind.evaluate.confidence import Resampling
from m3bind.evaluate.results import Context
from m3bind.evaluate.zero_shot import unit

RNG = np.random.default_rng(0)
FEW = 50


def rotation(d, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def value(rows, **fields):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in fields.items())]
    assert len(found) == 1
    return found[0]


def test_distinct_texts_ignore_case_and_spacing():
    texts, owner = retrieval.distinct_texts(["Normal  ECG", "clear lungs", "normal ecg"])
    assert texts == ["Normal  ECG", "clear lungs"] and owner.tolist() == [0, 1, 0]


def test_images_that_share_a_text_are_all_right():
    texts = unit(RNG.normal(size=(3, 8)))
    owner = np.array([0, 0, 1, 1])
    rows = retrieval.text_retrieval_rows(texts[owner], texts, owner, Context(), list("abcd"), resamples=FEW)
    assert value(rows, protocol="image_to_text", metric="R@1").value == 1
    back = value(rows, protocol="text_to_image", metric="R@1")
    assert back.value == 1 and back.n == 2 and back.gallery == 4  # the text without an owner is not a query
    assert back.chance == pytest.approx(0.5)
    assert value(rows, protocol="image_to_text", metric="R@1").gallery == 3


def test_patient_search_equals_a_loop():
    patients = {"a": [f"p{i}" for i in range(12)], "b": [f"p{i}" for i in range(4, 20)]}
    shared = unit(RNG.normal(size=(20, 6)))
    vectors = {
        "a": unit(shared[:12] + 0.5 * RNG.normal(size=(12, 6))),
        "b": unit(shared[4:] + 0.5 * RNG.normal(size=(16, 6))),
    }
    rows = retrieval.patient_retrieval_rows(vectors, patients, Context(stage="aligned"), resamples=FEW)
    hits = []
    for i in range(4, 12):
        order = np.argsort(-(vectors["b"] @ vectors["a"][i]))
        hits.append(f"p{i}" in [patients["b"][j] for j in order[:5]])
    row = value(rows, modality="a->b", metric="R@5")
    assert row.value == pytest.approx(np.mean(hits)) and row.n == 8 and row.gallery == 16
    assert row.chance == pytest.approx(5 / 16) and row.ci_low <= row.value <= row.ci_high
    mean = value(rows, modality="mean", metric="R@5")
    assert mean.value == pytest.approx((row.value + value(rows, modality="b->a", metric="R@5").value) / 2)
    assert mean.chance == pytest.approx((5 / 16 + 5 / 12) / 2)


def test_gap_correction_finds_what_the_gap_hides():
    base, gap = RNG.normal(size=(40, 16)), np.zeros(16)
    gap[0] = 1
    tilt = rotation(16, 1)[0] * 2  # hubs of b: some items lean to a's mean
    vectors = {"a": unit(base + 6 * gap), "b": unit(base + tilt - 6 * gap + np.outer(RNG.normal(size=40) * 4, gap))}
    patients = {m: [str(i) for i in range(40)] for m in vectors}
    means = {m: rows.mean(0) for m, rows in vectors.items()}
    plain = retrieval.patient_retrieval_rows(vectors, patients, Context(), resamples=FEW)
    fixed = retrieval.patient_retrieval_rows(vectors, patients, Context(), means, resamples=FEW)
    before = value(plain, modality="mean", metric="mrr").value
    assert value(fixed, modality="mean", metric="mrr").value > before
    assert {row.variant for row in fixed} == {"gap-corrected"}


def test_no_common_patient_gives_no_row():
    vectors = {"a": unit(RNG.normal(size=(3, 4))), "b": unit(RNG.normal(size=(3, 4)))}
    assert retrieval.patient_retrieval_rows(vectors, {"a": list("xyz"), "b": list("uvw")}, Context()) == []


@pytest.mark.parametrize("classes", [2, 3])
def test_concept_auc_equals_a_loop_over_pairs(classes):
    y, z = RNG.integers(0, classes, 30), RNG.integers(0, classes, 25)
    centres = RNG.normal(size=(classes, 8))
    a, b = unit(centres[y] + RNG.normal(size=(30, 8))), unit(centres[z] + RNG.normal(size=(25, 8)))
    aucs = []
    for c in range(classes):
        pairs = [(z[j] == c, round(float(a[i] @ b[j]), 6)) for i in np.flatnonzero(y == c) for j in range(25)]
        aucs.append(roc_auc_score([p for p, _ in pairs], [s for _, s in pairs]))
    estimate = retrieval.concept_auc(a, b, y, z, Resampling(resamples=200))
    assert estimate.value == pytest.approx(np.mean(aucs)) and estimate.chance == 0.5
    assert estimate.ci_low < estimate.value < estimate.ci_high


def test_a_gallery_item_similar_to_everything_gains_nothing():
    y = np.array([0, 1] * 20)
    gallery = np.eye(4)[:2][y]
    gallery[y == 1] *= 3  # class 1 is larger for every query
    queries = unit(np.ones((40, 4)))
    assert retrieval.concept_auc(queries, gallery, y, y).value == pytest.approx(0.5)


def test_concept_rows_leave_out_what_has_no_class_and_count_classes_equally():
    y = np.array([0] * 30 + [1] * 5 + [-1] * 5)
    vectors = unit(np.eye(3)[y] + 0.01 * RNG.normal(size=(40, 3)))
    rows = retrieval.concept_retrieval_rows(
        {"a": vectors, "b": vectors}, {"a": y, "b": y}, Context(task="malignancy"), resamples=FEW
    )
    row = value(rows, modality="a->b", metric="precision@5")
    assert row.n == 35 and row.gallery == 35
    assert row.value == pytest.approx(1) and row.chance == pytest.approx((30 / 35 + 5 / 35) / 2)
    assert value(rows, modality="mean", metric="auc").value == pytest.approx(1)


# ------------------------------------------------------------------------------------------------ agreement


def test_agreement_equals_a_loop():
    towers = [unit(RNG.normal(size=(9, 5))) for _ in range(3)]
    found = agreement.text_agreement(towers, FEW)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    same = [towers[a][i] @ towers[b][i] for a, b in pairs for i in range(9)]
    other = [towers[a][i] @ towers[b][j] for a, b in pairs for i in range(9) for j in range(9) if i != j]
    within = [t[i] @ t[j] for t in towers for i in range(9) for j in range(9) if i != j]
    centred = [unit(t - t.mean(0)) for t in towers]
    ccos = [centred[a][i] @ centred[b][i] for a, b in pairs for i in range(9)]
    first = [np.argmax(towers[b] @ towers[a][i]) == i for a, b in pairs for i in range(9)]
    expected = {"cos": same, "cos_other": other, "cos_within": within, "ccos": ccos, "R@1": first}
    for name, values in expected.items():
        assert found[name].value == pytest.approx(np.mean(values)), name
    assert found["R@1"].chance == pytest.approx(1 / 9) and found["cos"].chance == pytest.approx(np.mean(other))


def test_rotation_back_restores_agreement_and_keeps_cos_within():
    tower = unit(RNG.normal(size=(200, 32)))
    turn = rotation(32, 3)
    apart, together = (agreement.text_agreement([tower, other], FEW) for other in (tower @ turn, tower))
    assert apart["R@1"].value < 0.1 and together["R@1"].value == 1
    assert apart["cos_within"].value == pytest.approx(together["cos_within"].value)


def test_collapsed_towers_agree_in_cos_and_in_nothing_else():
    towers = [np.ones((50, 4)) / 2 for _ in range(3)]
    found = agreement.text_agreement(towers, FEW)
    assert found["cos"].value == pytest.approx(1) == found["cos_other"].value == found["cos_within"].value
    assert found["R@1"].value == pytest.approx(1 / 50)  # all tied: chance, not 0 and not 1
    assert abs(found["ccos"].value) < 1e-9


def test_student_is_held_against_the_mean_teacher():
    towers = {m: unit(RNG.normal(size=(30, 16))) for m in "abc"}
    student = unit(sum(towers.values()))
    rows = agreement.agreement_rows(towers, Context(stage="distilled"), student, FEW)
    assert value(rows, metric="R@1", text_encoder="student").value == 1
    assert value(rows, metric="cos", text_encoder="student").value == pytest.approx(1)
    assert value(rows, metric="R@1", text_encoder="teacher").gallery == 30
    assert agreement.agreement_rows({"a": towers["a"]}, Context()) == []


def test_towers_of_different_shape_are_refused():
    with pytest.raises(ConfigError, match="two or more towers"):
        agreement.text_agreement([np.eye(3), np.eye(4)])
