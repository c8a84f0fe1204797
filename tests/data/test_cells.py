"""Meaning of cells: identifiers, empty values, spellings of labels, paths."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3bind.data.cells import column, identifier, key, lost_digits, one_spelling, path_spellings, plain

SAME_PATIENT = [
    ("10001", ["10001.0", " 10001", "10001 ", "10001.", "10001.000", "1.0001e4", "1.0001E+04", "'10001",
               "\u00a010001", "\u200b10001", "\ufeff10001", "１０００１", "+10001"]),
    ("P-7 b", ["P-7  b", " P-7 b", "P-7\u00a0b", "P-7\tb"]),
    ("Ménière", [unicodedata.normalize("NFD", "Ménière"), " Ménière\u200b"]),
    ("0", ["0.0", "0.", "-0"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spellings"), SAME_PATIENT)
def test_identifiers_written_in_several_ways_are_one(name: str, spellings: list[str]) -> None:
    assert {identifier(spelling) for spelling in spellings} == {identifier(name)}


@pytest.mark.parametrize(
    ("one", "other"),
    [("007", "7"), ("10001", "10002"), ("10001.5", "10001"), ("P1", "p1"), ("1e400", "1"), ("12-3", "123")],
)
def test_identifiers_that_stay_different(one: str, other: str) -> None:
    assert identifier(one) != identifier(other)


@pytest.mark.parametrize("cell", ["nan", "NaN", "NULL", " N/A ", "<NA>", "None", "NA", "#N/A", "NaT", " ", "\ufeff"])
def test_placeholders_for_missing_values_are_empty(cell: str) -> None:
    assert plain(cell) == identifier(cell) == key(cell) == ""


@pytest.mark.parametrize("cell", ["none", "na", "nana", "nullipara", "0", "-", "banana", "unknown"])
def test_other_cells_remain(cell: str) -> None:
    assert plain(cell) == cell


@given(st.text(st.characters(max_codepoint=0x24F), max_size=12))
def test_meaning_is_found_once(text: str) -> None:
    for meaning in (plain, identifier, key, column):
        assert meaning(meaning(text)) == meaning(text)


@given(st.integers(0, 10**15))
def test_a_whole_number_is_its_digits(number: int) -> None:
    assert identifier(f"{number}.0") == identifier(f" {number}") == str(number)


def test_lost_digits() -> None:
    assert [lost_digits(cell) for cell in ("1.23457E+11", "1.5e+12", "123456789012", "E12", "1e5")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_the_most_frequent_spelling_is_used() -> None:
    use, notes = one_spelling(Counter(["Pneumonia", "pneumonia", "PNEUMONIA", "pneumonia", "normal", "1", "1.0"]))
    assert use == {"Pneumonia": "pneumonia", "PNEUMONIA": "pneumonia", "1.0": "1"}
    assert len(notes) == 2 and "'pneumonia' (4 rows)" in notes[0]
    assert one_spelling(Counter(["a", "b", "a b"])) == ({}, [])


@pytest.mark.parametrize("folder", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["NFC", "NFD"])
@pytest.mark.parametrize("cell", ["NFC", "NFD"])
def test_paths_composed_otherwise_are_found(tmp_path: Path, folder: str, name: str, cell: str) -> None:
    there = tmp_path / unicodedata.normalize(folder, "Größe") / unicodedata.normalize(name, "é.nii.gz")  # type: ignore[arg-type]
    there.parent.mkdir()
    there.touch()
    for text, endings in (("Größe/é.nii.gz", ()), ("Größe\\é.nii.gz", ()), ("Größe/é", (".nii", ".nii.gz"))):
        meant = unicodedata.normalize(cell, text)  # type: ignore[arg-type]
        found = [tmp_path / spelling for spelling in path_spellings(tmp_path, meant, endings)]
        assert any(path == there or Path(f"{path}.nii.gz") == there for path in found)
