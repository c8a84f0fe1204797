"""Reference texts of a space: which training texts are stored one by one, and which only as means of several."""

from pathlib import Path

import numpy as np
import pytest

from m3bind.data.records import Record
from m3bind.pipeline import reference_texts as module
from m3bind.pipeline.dataset import make_dataset
from m3bind.pipeline.reference_texts import SHARED, reference_texts

WIDTH = 16


def embed(modality, texts):
    """A unit row for each text."""
    rows = np.stack([np.random.default_rng(sum(text.encode()) * len(text)).normal(size=WIDTH) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def record(number, caption, concepts=(), patient=None, split="train"):
    return Record(
        id=str(number), modality="xray", path=Path(f"/{number}"), label="", labels=(), captions=(caption,),
        concepts=concepts, patient=str(number if patient is None else patient), split=split, set="s",
    )  # fmt: skip


def world(extra=()):
    """Reports of one patient each, one that three patients have, one that one patient has three times."""
    records = [record(i, f"report of patient {i}: something {i * i}") for i in range(40)]
    records += [record(50 + i, "no finding") for i in range(SHARED)]
    records += [record(60 + i, "follow-up of Mr. Miller", patient="m") for i in range(SHARED)]
    records += [record(70, "heart enlarged", concepts=("hypertension",)), record(80, "unseen", split="test")]
    return make_dataset(records, ["xray"], {"xray": list(extra)}, 0, 0, [])


def rows_of(texts, rows):
    """Which of `texts` are among `rows` as they are."""
    return [text for text in texts if np.isclose(embed("xray", [text]) @ rows.T, 1, atol=1e-5).any()]


def test_no_report_of_one_patient_is_stored_by_itself():
    data = world(extra=[f"a sentence of a corpus {i}" for i in range(20)])
    rows, weights = reference_texts(data, embed)["xray"]
    texts = data.table.take(data.pool["xray"])
    alone = rows_of(texts, rows)
    assert "no finding" in alone and "hypertension" in alone and "unseen" not in texts
    assert not [text for text in alone if "patient" in text or "Miller" in text or "corpus" in text or "heart" in text]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert len(rows) == len(weights) and (weights >= 1).all()
    assert weights.sum() == pytest.approx(len(texts))
    again = reference_texts(data, embed)["xray"]
    np.testing.assert_array_equal(rows, again[0])


def test_more_texts_than_are_stored(monkeypatch):
    monkeypatch.setattr(module, "SINGLE", 2)
    monkeypatch.setattr(module, "GROUPED", 12)
    data = world()
    rows, weights = reference_texts(data, embed)["xray"]
    assert 3 <= len(rows) <= 2 + 12 // SHARED and weights.sum() == pytest.approx(len(data.pool["xray"]))


def test_without_texts():
    data = make_dataset([record(1, "only one", split="test")], ["xray"], {}, 0, 0, [])
    assert reference_texts(data, embed) == {}
    few = make_dataset([record(1, "only one"), record(2, "another")], ["xray"], {}, 0, 0, [])
    assert reference_texts(few, embed) == {}
