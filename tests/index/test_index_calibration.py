import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.errors import ConfigError
from m3bind.index import calibration as module
from m3bind.index import create_index, open_index
from m3bind.index.calibration import Calibration, calibrate, calibration_of

DIM = 8


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def items(start, count, modality):
    rows = unit(np.random.default_rng(start).normal(size=(count, DIM)))
    return rows, pd.DataFrame({"id": [f"{modality}{start + i}" for i in range(count)], "modality": modality})


@pytest.fixture
def index(tmp_path):
    with create_index(tmp_path / "index", DIM, "space") as index:
        for part in (items(0, 30, "ct"), items(100, 50, "xray"), items(200, 1, "ecg")):
            index.upsert(*part)
        yield index


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_scores_are_judged_as_defined(count, queries, seed):
    rng = np.random.default_rng(seed)
    rows, asked = unit(rng.normal(size=(count, DIM))), unit(rng.normal(size=(queries, DIM)))
    scores = rng.uniform(-1, 1, (queries, 3)).astype(np.float32)
    calibrated, percentile = Calibration({}, {"ct": rows}, {}, "").calibrate_scores(asked, "ct", scores)
    for line in range(queries):
        near = [float(np.dot(row.astype(float), asked[line].astype(float))) for row in rows]
        mean, spread = np.mean(near), np.std(near)
        for place, score in enumerate(scores[line]):
            assert calibrated[line, place] == pytest.approx((score - mean) / spread, rel=1e-6)
            assert percentile[line, place] == pytest.approx(100 * sum(s < score - 1e-6 for s in near) / count)
    order = np.argsort(scores, axis=1)  # within one modality the order stays
    assert (np.diff(np.take_along_axis(calibrated, order, 1)) >= 0).all()
    assert (np.diff(np.take_along_axis(percentile, order, 1)) >= 0).all()


def test_queries_without_a_hit_keep_their_place():
    calibration = Calibration({}, {"ct": unit(np.eye(DIM))}, {}, "")
    calibrated, percentile = calibration.calibrate_scores(unit(np.eye(DIM)[:2]), "ct", np.empty((2, 0), np.float32))
    assert calibrated.shape == percentile.shape == (2, 0)


def test_a_single_item_is_judged_among_those_of_all_modalities(index):
    row, made = index.vectors(["ecg200"]), Calibration.draw(index)
    calibrated, percentile = made.calibrate_scores(row, "ecg", np.array([[1.0]], np.float32))
    everything = (row @ np.concatenate(list(made.rows.values())).T).ravel()
    assert calibrated[0, 0] == pytest.approx((1 - everything.mean()) / everything.std(), abs=1e-4) and calibrated > 2
    assert percentile[0, 0] == pytest.approx(100 * 80 / 81)


def test_the_reference_is_stored_with_the_index(index, tmp_path):
    made = calibrate(index, size=20)
    assert {name: len(ids) for name, ids in made.ids.items()} == {"ct": 20, "ecg": 1, "xray": 20}
    assert made.counts == {"ct": 30, "ecg": 1, "xray": 50}
    with open_index(tmp_path / "index") as reader:
        kept = calibration_of(reader)
        assert (kept.ids, kept.counts, kept.hash) == (made.ids, made.counts, made.hash)
        for name, rows in kept.rows.items():
            np.testing.assert_array_equal(rows, made.rows[name])
            np.testing.assert_array_equal(rows, reader.vectors(made.ids[name]))
        with pytest.raises(ConfigError, match="open for reading"):
            calibrate(reader)
    assert calibrate(index, size=20).hash == made.hash != calibrate(index, size=20, seed=1).hash


def test_without_a_stored_reference_one_is_sampled(index):
    assert calibration_of(index).hash == Calibration.draw(index).hash and not index.metadata


def warned(index, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = calibration_of(index)
    return found, caplog.text


def test_an_index_that_changed_too_much_reports_it_and_is_recalibrated(index, caplog):
    made = calibrate(index, size=20)
    index.upsert(*items(300, 6, "ct"))  # 36 instead of 30: a fifth
    assert warned(index, caplog)[0].hash == made.hash and not caplog.text
    index.upsert(*items(400, 1, "ct"))
    found, text = warned(index, caplog)
    assert "out of date (ct: 30 items then, 37 now)" in text
    assert found.hash == Calibration.draw(index).hash and len(found.ids["ct"]) == 37
    calibrate(index)
    assert not warned(index, caplog)[1]
    index.upsert(*items(500, 1, "retina"))
    assert "retina: 0 items then, 1 now" in warned(index, caplog)[1]


def test_deleted_items_leave_the_reference(index, caplog):
    made = calibrate(index, size=20)
    index.delete(made.ids["xray"][:4])
    found, text = warned(index, caplog)
    assert found.ids["xray"] == made.ids["xray"][4:] and not text
    index.delete(made.ids["xray"][4:5])
    assert "of its reference, xray: 20 items then, 15 now" in warned(index, caplog)[1]


def test_missing_ids_are_found_in_halves(index):
    names = [f"ct{i}" for i in range(30)]
    index.delete(["ct0", "ct17", "ct29"])
    calls = []
    ask = index.items
    index.items = lambda ids: calls.append(len(ids)) or ask(ids)
    assert module._present(index, names) == [name for name in names if name not in ("ct0", "ct17", "ct29")]
    assert len(calls) < 40


@pytest.mark.parametrize(
    "note",
    [{}, [], {"ids": {}, "counts": {}}, {"ids": {"xray": 3}, "counts": {"xray": 1}, "hash": ""},
     {"ids": {"xray": ["a"]}, "counts": {"ct": 1}, "hash": ""}, {"ids": {}, "counts": {"xray": "many"}, "hash": ""}],
)  # fmt: skip
def test_a_note_that_is_none_of_ours_is_not_used(index, note, caplog):
    index.set_metadata("calibration", note)
    assert calibration_of(index).hash == Calibration.draw(index).hash
    assert "cannot be used" in caplog.text
