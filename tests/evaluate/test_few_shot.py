"""Shot lists: reproducible on every machine, no patient in two splits; rows over several lists."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.errors import ConfigError, ManifestError, UnknownNameError
from m3bind.evaluate import few_shot
from m3bind.evaluate.adapters import Samples
from m3bind.evaluate.few_shot import FewShotSettings, ShotList, draw_shots, few_shot_rows, shot_variant
from m3bind.evaluate.pivot import pivot
from m3bind.evaluate.results import Context


def make(labels, patients=None, prefix="file", dim=8, seed=0, signal=3.0):
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(12, dim))
    shift = centres[np.maximum(labels, 0)] if labels.ndim == 1 else np.maximum(labels, 0) @ centres[: labels.shape[1]]
    rows = rng.normal(size=(len(labels), dim)) + signal * shift
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"{prefix}{i:03d}" for i in range(len(labels))]
    return Samples(rows, rows, labels, list(patients if patients is not None else ids), ids)


def test_lists_are_the_same_on_every_machine():
    single = make(np.arange(90) % 3, [f"p{i // 2}" for i in range(90)])
    several = make(np.array([[i % 2 == 0, i % 5 == 0, i % 9 == 0] for i in range(90)]).astype(int))
    assert draw_shots(single, 2, "shot", 0).ids == ("file012", "file022", "file032", "file049", "file050", "file078")
    assert draw_shots(single, 5, "shot", 1).hash == "4ce4113027030e12"
    assert draw_shots(single, 10, "percent", 0).hash == "783cf85ff34db936"
    assert draw_shots(several, 4, "shot", 0).hash == "4faffa52a9005fb8"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 12)), min_size=1, max_size=60),
    st.integers(1, 6),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_shots_per_class(rows, amount, seed, shuffler):
    labels, patients = np.array([r[0] for r in rows]), [f"p{r[1]}" for r in rows]
    train = make(labels, patients)
    shots = draw_shots(train, amount, "shot", seed)
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    assert draw_shots(train.take(np.array(order)), amount, "shot", seed) == shots  # whatever the order of the manifest
    chosen = shots.of(train)
    counts, there = Counter(chosen.labels.tolist()), Counter(labels[labels >= 0].tolist())
    assert counts == {k: min(amount, n) for k, n in there.items()}
    for k, n in counts.items():  # as many patients as possible
        owners = {patients[i] for i in np.flatnonzero(labels == k)}
        assert len({p for p, y in zip(chosen.patients, chosen.labels) if y == k}) == min(n, len(owners))
    assert set(draw_shots(train, 1, "shot", seed).ids) <= set(shots.ids)  # lists grow


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_shots_per_label(rows, amount, seed):
    labels = np.array(rows)
    train = make(labels)
    chosen = draw_shots(train, amount, "shot", seed).of(train)
    known = labels[(labels >= 0).any(1)]
    for column, there in zip((chosen.labels == 1).T, (known == 1).T):
        assert column.sum() >= min(amount, there.sum())
    free = ~(known == 1).any(1)
    assert (~(chosen.labels == 1).any(1)).sum() == min(amount, free.sum())
    assert len(set(chosen.ids)) == len(chosen)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=1, max_size=80),
    st.integers(1, 100),
    st.integers(0, 3),
)
def test_per_cent_takes_whole_patients_and_every_class(rows, amount, seed):
    labels, patients = np.array([r[0] for r in rows]), [f"p{r[1]}" for r in rows]
    train = make(labels, patients)
    chosen = draw_shots(train, amount, "percent", seed).of(train)
    assert set(chosen.labels) == set(labels)
    assert Counter(chosen.patients) == {p: patients.count(p) for p in set(chosen.patients)}
    assert len(chosen) >= len(rows) * amount / 100
    if amount == 100:
        assert len(chosen) == len(rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["train", "valid", "test"]), st.integers(0, 9)), min_size=1, max_size=60))
def test_no_patient_is_on_two_sides(rows):
    parts = {
        side: make(np.arange(len(own)) % 2, [f"p{p}" for s, p in rows if s == side], side)
        for side in ("train", "valid", "test")
        for own in [[p for s, p in rows if s == side]]
    }
    kept = few_shot._apart(parts["train"], parts["valid"], parts["test"])
    sides = [set(part.patients) if part is not None else set() for part in kept]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert list(kept[2].ids) == list(parts["test"].ids)  # test loses no sample


def test_lists_are_saved_with_a_hash_and_refused_when_changed(tmp_path):
    train = make(np.arange(20) % 2)
    shots = draw_shots(train, 3, "shot", 7)
    path = tmp_path / "shots" / "list.json"
    shots.save(path)
    assert ShotList.load(path) == shots
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "ids": data["ids"][1:]}))
    with pytest.raises(ManifestError, match="was changed"):
        ShotList.load(path)
    path.write_text("{}")
    with pytest.raises(ManifestError, match="not a shot list"):
        ShotList.load(path)
    with pytest.raises(ManifestError, match="6 of 6 files are not"):
        shots.of(make(np.arange(4) % 2, prefix="other"))
    for amount, unit in ((0, "shot"), (101, "percent")):
        with pytest.raises(ConfigError, match="few-shot amount"):
            draw_shots(train, amount, unit, 0)


@pytest.fixture(scope="module")
def parts():
    return (
        make(np.arange(120) % 3),
        make(np.arange(30) % 3, prefix="v", seed=1),
        make(np.arange(90) % 3, prefix="t", seed=2),
    )


def test_rows_of_every_list_and_their_mean_and_deviation(parts, tmp_path):
    train, valid, test = parts
    context = Context("odir200x3", "retina", task="odir200x3_naive", prompts="abc", stage="flair")
    options = FewShotSettings(amounts=(1, 5), seeds=(0, 1, 2), resamples=20, folder=tmp_path)
    rows = few_shot_rows("linear_probe", train, valid, test, np.eye(3, 8), context, options)
    assert len(rows) == 2 * 3 * 3
    lines = {(line.variant, line.metric): line.cells["flair"] for line in pivot(rows).lines}
    five = lines[shot_variant("linear_probe", 5, "shot"), "balanced_accuracy"]
    own = [r.value for r in rows if r.variant == "linear_probe, 5 per class" and r.metric == "balanced_accuracy"]
    assert (
        five.seeds == 3
        and five.value == pytest.approx(np.mean(own))
        and five.spread == pytest.approx(np.std(own, ddof=1))
    )
    assert five.value > lines["linear_probe, 1 per class", "balanced_accuracy"].value > 1 / 3
    hashes = {r.shots for r in rows}
    assert len(hashes) == 6 and all(draw_shots(train, r_amount, "shot", seed).hash in hashes
                                    for r_amount in (1, 5) for seed in (0, 1, 2))  # fmt: skip
    again = few_shot_rows("linear_probe", train, valid, test, np.eye(3, 8), context, options)
    assert again == rows  # from the stored lists, to the same values
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "shot_1_seed_0.json"


def test_labels_come_with_thresholds_of_valid_and_test(parts):
    labels = [np.array([[i % 2, i % 3 == 0, i % 4 == 0] for i in range(n)]).astype(int) for n in (80, 40, 60)]
    train, valid, test = (make(y, prefix=p, seed=s) for y, p, s in zip(labels, "abc", range(3)))
    options = FewShotSettings(amounts=(8,), seeds=(0,), resamples=10, names=("auroc", "macro_f1"))
    rows = few_shot_rows("linear_probe", train, valid, test, np.eye(3, 8), Context(modality="ecg"), options)
    name = "linear_probe, 8 per class"
    assert [(r.metric, r.variant) for r in rows] == [
        ("auroc", name), ("macro_f1", f"{name}, threshold=valid"), ("macro_f1", f"{name}, threshold=test"),
    ]  # fmt: skip
    assert rows[0].value > 0.7


def test_a_data_set_of_test_files_alone_is_cut_into_folds(tmp_path):
    data = make(np.arange(150) % 3, [f"p{i // 5}" for i in range(150)])
    learned, none, tested = few_shot.fold(data, 0)
    assert none is None and not set(learned.patients) & set(tested.patients) and len(tested) == 30
    assert sorted([*learned.ids, *tested.ids]) == sorted(data.ids)
    assert few_shot.fold(data, 1)[2].ids != tested.ids
    options = FewShotSettings(amounts=(5,), seeds=(0, 1), resamples=5, folder=tmp_path)
    rows = few_shot_rows("linear_probe", None, None, data, np.eye(3, 8), Context("messidor2", "retina"), options)
    assert {(r.split, r.n, r.seed) for r in rows} == {("folds", 30, 0), ("folds", 30, 1)}
    assert all(not set(ShotList.load(path).ids) & set(few_shot.fold(data, s)[2].ids)
               for s in (0, 1) for path in tmp_path.glob(f"*_seed_{s}.json"))  # fmt: skip
    assert rows == few_shot_rows(
        "linear_probe", none, None, data, np.eye(3, 8), Context("messidor2", "retina"), options
    )


def test_what_cannot_be_learned_is_refused(parts):
    train, valid, test = parts
    with pytest.raises(ManifestError, match="0 files to learn from"):
        few_shot_rows("linear_probe", test, None, test, np.eye(3, 8), Context(), FewShotSettings((1,)))
    with pytest.raises(UnknownNameError, match="tip_adapter"):
        few_shot_rows("tip_adaptor", train, valid, test, np.eye(3, 8), Context(), FewShotSettings((1,)))
