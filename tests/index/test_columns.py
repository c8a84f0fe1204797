"""Text columns: the same texts and the same column type, for any input and any pandas version."""

import datetime

import numpy as np
import pandas as pd
import pytest

from index.made import vectors
from m3bind.core.columns import text_columns
from m3bind.encode.encoded import Encoded
from m3bind.encode.job import encode_files
from m3bind.index import create_index
from m3bind.index.build import build_index
from m3bind.index.encoded_archive import ArchiveIndex
from m3bind.space.bundle import load, save_space
from space import tiny

NATIVE = pd.DataFrame({"a": ["x", ""]})["a"].dtype  # what this pandas makes of texts: object before 3, str since

COLUMNS = {
    "object": (pd.Series(["a", None], dtype=object), ["a", ""]),
    "object with NaN": (pd.Series(["a", np.nan], dtype=object), ["a", ""]),
    "mixed": (pd.Series([1, "b"], dtype=object), ["1", "b"]),
    "string": (pd.Series(["a", None], dtype="string"), ["a", ""]),
    "arrow string": (pd.Series(["a", None], dtype="string[pyarrow]"), ["a", ""]),
    "category": (pd.Series(["a", None], dtype="category"), ["a", ""]),
    "float": (pd.Series([0.5, None]), ["0.5", ""]),
    "int": (pd.Series([7, 8]), ["7", "8"]),
    "Int64": (pd.Series([7, None], dtype="Int64"), ["7", ""]),
    "bool": (pd.Series([True, False]), ["True", "False"]),
    "boolean": (pd.Series([True, None], dtype="boolean"), ["True", ""]),
    "date": (pd.Series(pd.to_datetime(["2020-02-03", None])), ["2020-02-03", ""]),
    "python date": (pd.Series([datetime.date(2020, 2, 3), None], dtype=object), ["2020-02-03", ""]),
}


@pytest.fixture
def space(tmp_path):
    return load(save_space(tiny.make_space(distilled=False), tmp_path / "space"))


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_any_type_goes_into_an_index_and_comes_out_as_texts(tmp_path, kind):
    column, texts = COLUMNS[kind]
    with create_index(tmp_path / "index", 16, "space") as index:
        index.upsert(vectors(2), pd.DataFrame({"id": ["k", "l"], "modality": "ct", "patient": column}))
        given = index.items(["k", "l"])
    assert given["patient"].tolist() == texts
    assert given.equals(pd.DataFrame({"id": ["k", "l"], "modality": ["ct", "ct"], "patient": texts}))


@pytest.mark.parametrize(
    "texts", [{"id": ["a", "b"], "path": ["", "p"]}, {"id": ["a"], "path": [""]}, {"id": [], "path": []}]
)
def test_columns_have_the_type_that_pandas_gives_to_texts_also_without_rows(texts):
    assert set(text_columns(texts).dtypes) == {NATIVE}
    assert set(text_columns(pd.DataFrame(texts)).dtypes) == {NATIVE}
    assert set(text_columns(pd.DataFrame(texts, dtype=object)).dtypes) == {NATIVE}


def test_an_encoded_archive_read_from_its_folder_and_its_indexes_have_the_same_columns(tmp_path, space):
    done = encode_files(space, tiny.pictures(tmp_path / "in", 3), tmp_path / "out", "grey")
    empty = encode_files(space, [tmp_path / "no.png"], tmp_path / "empty", "grey")
    texts = done.items.drop(columns="row")
    assert set(texts.dtypes) == set(empty.items.drop(columns="row").dtypes) == {NATIVE}
    assert done.items["row"].dtype == empty.items["row"].dtype == np.int64
    ids = texts["id"].tolist()
    with build_index(done, tmp_path / "index") as index:
        assert index.items(ids).equals(texts)
    assert ArchiveIndex(done).items(ids).equals(texts)


def test_the_table_of_parts_has_the_same_types_with_and_without_rows(tmp_path):
    table = pd.DataFrame({"row": [0], "x": [0.0], "y": [1.0], "seconds": [np.nan]})
    none = Encoded(tmp_path, np.zeros((0, 4), np.float32), pd.DataFrame(), "f", False, 0)
    assert len(none.parts) == 0 and none.parts.dtypes.equals(table.dtypes)
