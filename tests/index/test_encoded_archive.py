import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.encode.encoded import Encoded
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.index.base import Where
from m3bind.index.encoded_archive import ArchiveIndex


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_an_archive_gives_what_a_full_sort_gives_also_with_ties(n, k, seed):
    rng = np.random.default_rng(seed)
    rows = np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)]  # many equal scores
    queries = np.eye(3, dtype=np.float32)
    kinds = rng.choice(["ct", "ecg"], n)
    items = pd.DataFrame({"row": range(n), "id": [str(i) for i in range(n)], "modality": kinds, "path": "a.png"})
    found = ArchiveIndex(Encoded("somewhere", rows, items, "f", False, 0, {})).search(queries, k, Where(modality="ct"))
    for line, query in enumerate(queries):
        allowed = np.flatnonzero(kinds == "ct").tolist()
        expected = sorted(allowed, key=lambda i: (-float(rows[i] @ query), i))[:k]
        assert found.ids[line] == [str(i) for i in expected]
        np.testing.assert_array_equal(found.scores[line], rows[expected] @ query)


ITEMS = pd.DataFrame(
    [
        ("ct", "a", "2019-05-01", "normal", "p1"),
        ("xray", "b", "2020-01-01", "nodule|normal", "p1"),
        ("ct", "c", "", "nodule", "p2"),
        ("ecg", "d", "2020-06", "", "p3"),
        ("ct", "e", "2021-12-31T10:00", "normal", "p2"),
    ],
    columns=["modality", "id", "date", "label", "patient"],
)


def index_of(items=ITEMS, seed=0):
    rows = np.random.default_rng(seed).normal(size=(len(items), 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    items = items.assign(row=range(len(items)), path=[f"{name}.png" for name in items["id"]])
    return ArchiveIndex(Encoded("somewhere", rows, items, "f", False, 0, {}))


@pytest.mark.parametrize(
    "where, expected",
    [
        (None, "abcde"),
        (Where(), "abcde"),
        (Where(modality="ct"), "ace"),
        (Where(modality=("xray", "ecg")), "bd"),
        (Where(label="normal"), "abe"),
        (Where(label=("nodule", "x"), patient="p2"), "c"),
        (Where(since="2020-01-01"), "bde"),
        (Where(until="2020"), "abd"),
        (Where(since="2020-01-01", until="2021"), "bde"),
        (Where(until="2021-12-31"), "abde"),
        (Where(modality="ct", not_ids=("a", "z")), "ce"),
        (Where(modality="none"), ""),
    ],
)
def test_conditions_hold_inside_the_search(where, expected):
    index = index_of()
    query = index.vectors(["c"])
    found = index.search(query, 9, where)
    scores = {name: float(score) for name, score in zip("abcde", index.vectors(list("abcde")) @ query[0])}
    assert found.ids[0] == sorted(expected, key=lambda name: -scores[name])
    np.testing.assert_allclose(found.scores[0], [scores[name] for name in found.ids[0]], atol=1e-6)
    names, rows = index.sample(2, where)
    assert set(names) <= set(expected) and len(names) == min(2, len(expected)) == len(set(names))
    np.testing.assert_array_equal(rows, index.vectors(names).reshape(-1, 4))


def test_items_come_in_the_requested_order_and_are_read_only():
    index = index_of()
    assert len(index) == 5 and index.counts() == {"ct": 3, "ecg": 1, "xray": 1} and index.metadata == {}
    assert index.columns == ["id", "modality", "date", "label", "patient", "path"]
    assert index.items(["d", "a", "d"])["path"].tolist() == ["d.png", "a.png", "d.png"]
    np.testing.assert_array_equal(index.vectors(["d", "a"]), index.archive.embeddings[[3, 0]])
    for call in (lambda: index.items(["z"]), lambda: index.vectors(["a", "z"]), lambda: index.counts("z")):
        with pytest.raises(UnknownNameError, match="'z'"):
            call()
    with pytest.raises(UnknownNameError, match="column"):
        index_of(ITEMS.drop(columns="date")).search(np.eye(4), 1, Where(since="2020"))
    with pytest.raises(ConfigError, match="at least 1"):
        index.search(np.eye(4), 0)
    for call in (index.commit, lambda: index.delete(["a"]), lambda: index.set_metadata("a", 1)):
        with pytest.raises(ConfigError, match="build an index"):
            call()
    with pytest.raises(ConfigError, match="build an index"):
        index.upsert(np.eye(4), ITEMS)
