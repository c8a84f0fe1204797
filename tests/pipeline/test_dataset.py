"""Splits, texts and pairs of a data set in columns, against record by record (tests/reference/records.py)."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.data.records import Record, Records
from m3bind.data.splits import carve_valid, leak_check
from m3bind.data.text_table import TextTable
from m3bind.pipeline.dataset import make_dataset
from m3bind.pipeline.features import captions_of, phrases_of
from reference import records as naive

NAMES = ["xray", "ecg", "ct"]
TEXTS = st.sampled_from(["b", "a", "ä", "Z", "a b", "\U0001f600", "zz", "\ufb01", "normal"])
RECORDS = st.lists(
    st.builds(
        Record,
        id=st.just("i"),
        modality=st.sampled_from([*NAMES, "retina"]),
        path=st.sampled_from([Path("/a"), Path("/b"), Path("/caf\udce9"), Path("/d")]),
        label=st.sampled_from(["", "x", "y"]),
        labels=st.lists(st.sampled_from("pqx"), max_size=2).map(tuple),
        captions=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        concepts=st.lists(st.sampled_from(["normal", "abnormal", "unknown one"]), max_size=2, unique=True).map(tuple),
        patient=st.integers(0, 12).map(str),
        split=st.sampled_from(["train", "train", "valid", "test"]),
        set=st.sampled_from(["s", "t"]),
        visit=st.sampled_from(["", "v"]),
        rescale=st.sampled_from([None, (1.0, -5.0)]),
        row=st.integers(0, 9),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(RECORDS, st.lists(st.integers(0, 29), max_size=10))
def test_records_in_columns_are_the_records(records, chosen):
    columns = Records.of(records)
    assert columns == records and list(columns) == records and [r.row for r in columns] == [r.row for r in records]
    chosen = [at for at in chosen if at < len(records)]
    assert columns.take(chosen)[::-1] == [records[at] for at in chosen][::-1]
    assert [columns[at] for at in chosen] == [records[at] for at in chosen]
    wanted = [r for r in records if r.modality == "ecg" and r.split == "valid"]
    part = columns.where("ecg", "valid")
    assert part == wanted and part.ids == [r.id for r in wanted] and part.paths == [str(r.path) for r in wanted]
    assert part.patient.strings() == [r.patient for r in wanted] and part.rescale == [r.rescale for r in wanted]
    assert columns.modality.present() == list(dict.fromkeys(r.modality for r in records))
    assert Records.concatenate([part, columns]) == wanted + records


@settings(deadline=None)
@given(RECORDS, st.sampled_from([0.0, 0.15, 0.3, 0.9]), st.integers(0, 3))
def test_the_same_splits(records, fraction, seed):
    carved = carve_valid(records, fraction, seed)
    assert carved == naive.carve_valid(records, fraction, seed)
    assert leak_check(records) == naive.leak_check(records) and leak_check(carved) == naive.leak_check(list(carved))


@settings(deadline=None)
@given(
    RECORDS, st.dictionaries(st.sampled_from(NAMES), st.lists(TEXTS, max_size=12)), st.integers(0, 4), st.integers(0, 9)
)
def test_the_same_texts_pools_and_choices(records, further, seed, held_out):
    data = make_dataset(records, NAMES, further, seed, held_out, [])
    grouped, table, pool, chosen = naive.make_dataset(records, NAMES, further, seed, held_out)
    assert data.records == grouped and list(data.table) == table.texts and data.held_out.tolist() == chosen.tolist()
    assert {m: ids.tolist() for m, ids in data.pool.items()} == {m: ids.tolist() for m, ids in pool.items()}
    for m in NAMES:
        train, texts = data.records[m]["train"], TextTable(table.texts)
        captions, phrases = captions_of(train, texts), phrases_of(train, texts)
        assert [list(ids) for ids in captions] == [list(table.ids(r.captions)) for r in train]
        assert [list(ids) for ids in phrases] == [list(table.ids(naive.phrases_of(r))) for r in train]
    assert np.array_equal(data.table.digests, texts.digests)
