import os
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.made import DIM, items, names, unit, vectors
from m3bind.errors import ConfigError, DiskError, SpaceError, UnknownNameError
from m3bind.index import Where, create_index, open_index
from reference.search import NaiveIndex

CONDITIONS = (
    None,
    Where(modality="ct"),
    Where(label=("normal", "a_b%c"), since="2020"),
    Where(until="2020-06-30", not_ids=names(0, 40)),
    Where(patient="p3", modality=("ct", "ecg"), until="2021-12-31"),
    Where(modality="pathology"),
)


def same(index, oracle, queries, conditions=CONDITIONS, k=(1, 10, 60), exact=True):
    """Exact search gives the oracle's hits and scores."""
    assert len(index) == len(oracle.kept)
    for where in conditions:
        for count in k:
            found = index.search(queries, count, where, exact)
            for query, ids, scores in zip(queries, found.ids, found.scores):
                hits = oracle.search(query, count, where)
                assert ids == [name for name, _ in hits]
                np.testing.assert_allclose(scores, [score for _, score in hits], atol=2e-6)


@pytest.fixture
def pair(tmp_path):
    with create_index(tmp_path / "index", DIM, "space") as index:
        yield index, NaiveIndex()


def both(pair, start, n, seed):
    rows, table = vectors(n, seed), items(names(start, n), seed)
    for index in pair:
        index.upsert(rows, table)


@pytest.mark.usefixtures("small")
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("upsert"), st.integers(0, 300), st.integers(1, 250)),
            st.tuples(st.just("delete"), st.integers(0, 300), st.integers(1, 80)),
            st.tuples(st.just("commit"), st.just(0), st.just(0)),
            st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        ),
        max_size=12,
    )
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_changes_equals_the_naive_index(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("law") / "index"
    index, oracle = create_index(folder, DIM, "space"), NaiveIndex()
    for seed, (what, start, n) in enumerate(steps):
        if what == "upsert":
            both((index, oracle), start, n, seed)
        elif what == "delete":
            assert index.delete(names(start, n)) == oracle.delete(names(start, n))
        elif what == "commit":
            index.commit()
            assert index.pending == 0 or not len(index)
        else:
            index.close()
            index = open_index(folder, writable=True)
    same(index, oracle, vectors(3, 99), k=(10,))
    with open_index(folder) as reader:
        same(reader, oracle, vectors(3, 99), CONDITIONS[:2], k=(10,))
        kept = list(oracle.kept)[::-3]
        pd.testing.assert_frame_equal(
            reader.items(kept)[list(items([]).columns)] if kept else items([]),
            pd.DataFrame([oracle.kept[name][1] for name in kept], columns=items([]).columns),
            check_dtype=False,
        )
        np.testing.assert_array_equal(
            reader.vectors(kept), np.array([oracle.kept[name][0] for name in kept]).reshape(-1, DIM)
        )
    index.close()


@pytest.mark.usefixtures("small")
def test_codes_and_graph_find_what_a_scan_finds(pair):
    index, oracle = pair
    both(pair, 0, 900, 1)
    index.commit()
    assert index._near is not None and index._codes is not None
    both(pair, 850, 100, 2)  # beside the graph
    index.delete(names(0, 20)), oracle.delete(names(0, 20))
    queries = vectors(40, 5)
    for few in (queries[:1], queries[:1], queries[1:5], queries[1:5], queries):  # each form of the scan has its turn
        same(index, oracle, few, k=(10,))
    queries = unit(vectors(900, 1)[::20] + 0.1 * vectors(45, 6))
    hits = index.search(queries, 10, exact=False)
    truth = [{name for name, _ in oracle.search(query, 10)} for query in queries]
    assert np.mean([len(near & set(ids)) / 10 for near, ids in zip(truth, hits.ids)]) >= 0.99


@pytest.mark.usefixtures("small")
def test_a_condition_met_far_from_the_query_alone_costs_no_recall(tmp_path):
    """Two modalities lie apart, as images and texts do; each asks for the other."""
    rng = np.random.default_rng(0)
    apart = np.zeros(DIM)
    apart[0] = 3.0
    rows = np.concatenate([unit(rng.normal(size=(800, DIM)) + apart), unit(rng.normal(size=(800, DIM)) - apart)])
    table = items(names(0, 1600)).assign(modality=["ct"] * 800 + ["xray"] * 800)
    oracle = NaiveIndex()
    oracle.upsert(rows, table)
    with create_index(tmp_path / "index", DIM, "space") as index:
        index.upsert(rows, table)
        index.commit()
        assert index._near is not None
        same(index, oracle, rows[:20], [Where(modality="xray"), Where(modality=("xray",), label="normal")], exact=False)


def test_equal_rows_come_in_the_order_they_were_added(pair):
    index, oracle = pair
    rows = np.repeat(vectors(3, 1), 300, axis=0)
    table = items(names(0, 900))
    for each in pair:
        each.upsert(rows, table)
        each.upsert(rows[:1], table[:1])  # replaced: now the last
    same(index, oracle, rows[::300], k=(1, 5, 299, 301))


def test_a_reader_keeps_the_state_it_opened(pair):
    index, _ = pair
    both(pair, 0, 50, 1)
    with open_index(index.uri) as reader:
        before = reader.search(vectors(2, 7), 50)
        index.delete(names(0, 25))
        index.commit()
        both(pair, 100, 50, 2)
        index.commit()
        after = reader.search(vectors(2, 7), 50)
        assert before.ids == after.ids and len(reader) == 50
        assert reader.items(names(3, 1))["path"].tolist() == ["/archive/é00003.dcm"]
        np.testing.assert_array_equal(before.scores, after.scores)
    index.delete(names(100, 1))
    index.commit()
    assert len(os.listdir(index.store.folder / "parts")) == 1  # no reader uses the older ones any more


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_removed_folder_is_not_written_to(tmp_path, how):
    """Else a list of parts that are not there would stand in its place."""
    folder = tmp_path / "index"
    with create_index(folder, DIM, "space") as index:
        index.upsert(vectors(5), items(names(0, 5)))
        (shutil.rmtree if how == "removed" else lambda path: path.rename(tmp_path / "away"))(folder)
        if how == "replaced":
            create_index(folder, DIM, "space").close()
        changes = [lambda: index.upsert(vectors(1), items(["x"])), lambda: index.delete(names(0, 1))]
        for change in (*changes, lambda: index.set_metadata("a", 1)):
            with pytest.raises(DiskError, match="removed, moved or replaced"):
                change()
        assert folder.exists() == (how == "replaced")
        if how == "moved":
            (tmp_path / "away").rename(folder)
            index.upsert(vectors(1), items(["x"]))
    if folder.exists():
        with open_index(folder) as index:
            assert len(index) == {"moved": 6, "replaced": 0}[how]


def test_notes_counts_sample_and_columns(pair):
    index, _ = pair
    assert len(index) == 0 and index.columns == ["id", "modality"] and index.counts() == {}
    assert index.search(vectors(2), 5).ids == [[], []]
    both(pair, 0, 50, 1)
    index.set_metadata("calibration", {"ct": [0.1, 0.2]})
    index.upsert(vectors(2, 3), pd.DataFrame({"id": ["x", "y"], "modality": "slide", "slide": ["a", ""]}))
    with open_index(index.uri) as reader:
        assert reader.metadata == {"calibration": {"ct": [0.1, 0.2]}}
        assert sum(reader.counts().values()) == 52 and reader.counts()["slide"] == 2
        assert reader.counts("slide") == {"": 51, "a": 1}
        ids, rows = reader.sample(7, Where(modality="ct"), seed=3)
        assert len(set(ids)) == 7 and set(reader.items(ids)["modality"]) == {"ct"}
        np.testing.assert_array_equal(rows, reader.vectors(ids))
        assert ids == reader.sample(7, Where(modality="ct"), seed=3)[0] != reader.sample(7, Where(modality="ct"))[0]
        assert len(reader.sample(10**6)[0]) == 52
    index.set_metadata("calibration", None)
    assert index.metadata == {}


@pytest.mark.usefixtures("small")
def test_many_single_changes_leave_few_parts(pair):
    index, oracle = pair
    for number in range(60):
        both(pair, number % 40, 1, number)
    assert len(index.parts) <= 5
    same(index, oracle, vectors(2), k=(5,))


def test_wrong_use_explains_what_to_do(pair, tmp_path):
    index, _ = pair
    both(pair, 0, 5, 1)
    rows, table = vectors(2), items(["a", "b"])
    for bad_rows, bad_items, why in [
        (rows[:, :3], table, "takes"),
        (rows * 2, table, "unit row"),
        (rows * np.nan, table, "unit row"),
        (rows, items(["a", "a"]), "earlier"),
        (rows, items(["a", ""]), "no id"),
        (rows, table.drop(columns="modality"), "modality"),
    ]:
        with pytest.raises(ConfigError, match=why):
            index.upsert(bad_rows, bad_items)
    with pytest.raises(ConfigError, match="k is 0"):
        index.search(rows, 0)
    with pytest.raises(ConfigError, match="queries"):
        index.search(rows[:, :3])
    with pytest.raises(UnknownNameError, match="unknown id"):
        index.items(["no such"])
    with open_index(index.uri) as reader, pytest.raises(ConfigError, match="writable"):
        reader.delete(["a"])
    with pytest.raises(ConfigError, match="another process is writing"):
        open_index(index.uri, writable=True)
    with pytest.raises(ConfigError, match="exists already"):
        create_index(index.uri, DIM, "space")
    with pytest.raises(SpaceError, match="m3bind index ENCODED --out"):
        open_index(tmp_path / "nothing")
    assert len(index) == 5
