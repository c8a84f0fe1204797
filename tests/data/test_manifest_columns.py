"""The manifest in columns gives the same records, bad rows and notes as row by row (tests/reference/manifest.py)."""

import csv
import io
import json
import os

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.data import locate, manifest_rows, read_manifest
from m3bind.data.texts import MAX_TEXT
from m3bind.errors import M3BindError
from reference.manifest import read_manifest as row_by_row

FILES = ("a.png", "b.png", "c.PNG", "e.hea", "notes.txt", "empty.png", "vol.nii.gz", "ü.png", "d/a.png", "#2.png",
             "x y.png")  # fmt: skip
COLUMNS = {
    "modality": ("xray", "XRAY", " cxr ", "ecg", "ct", "retina", "", "nan", "xrya", "fundus"),
    "path": (*FILES, "./a.png", "d/../a.png", "d//a.png", "d\\a.png", "u\u0308.png", "e", "", "gone.png", "d",
             "../out.png",
             "C:\\x.png", " a.png ", "a", "link.png", "vol.nii", "none/a.png", "nan"),
    "id": ("", "i1", "i2", " i1", "10001", "10001.0", "1.0001e4", "'10001", "a.png", "a.png#2", "a.png#2#3", "NULL",
             "é",
           "e\u0301"),
    "set": ("", "s", "S", "iu-xray", "odir5k", "chexpert", "lidc_voi", "own"),
    "label": ("", "normal", "Normal", " normal", "a|b", "B|a", "1", "1.0", "nan", "N/A", "none", "pneumonia"),
    "labels": ("", "a|b", "A|b", "a||a", "NULL|x", "normal", "diabetes|glaucoma"),
    "caption": ("", "Clear lungs.", "clear  lungs.", "nan", "XXXX", "Lungs &amp; heart", "N\u0308o \u200beffusion",
             "normal",
                "Chest X-ray showing normal.", "drusen, drusen", "sinus rhythm normal ecg", "line\nbreak",
             "z" * (MAX_TEXT + 1),
                "CT volume of a pulmonary nodule, 5 mm, solid, round; malignancy 3", 'a "quoted" word', "\x1cx\x85",
                "Befund #bergang"),
    "patient": ("", "p1", "p2", "007", "7", "10001", "10001.0", "1.23457E+11", "nan", "\u0663.\u0664E+11"),
    "split": ("", "train", "TEST", "val", "dev", "holdout", "nan"),
    "visit": ("", "v1", "v1.0", "1.0", "1"),
    "rescale": ("", "1;-1024", "1,0;2", "0;1", "nan;1", "x"),
    "extra": ("", "anything", "x|y"),
}  # fmt: skip
RENAMED = {"caption": "Report", "path": " FILE", "patient": "subject_id"}
ROW = st.fixed_dictionaries({name: st.sampled_from(values[:3] * 3 + values) for name, values in COLUMNS.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("files") / "data"
    for name in FILES:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"" if name.startswith("empty") else name.encode())
    (base / "link.png").hardlink_to(base / "a.png")
    (base.parent / "out.png").write_bytes(b"outside")
    (base / "own.yaml").write_text(
        "canonical: labels\nsentences: ['Seen: {findings}.']\ncaption_concepts: {clear: [normal]}\n"
    )
    return base


def answer(read, path, **options):
    """What a reader finds, or its error."""
    try:
        found = read(path, **options)
    except M3BindError as error:
        return type(error), str(error)
    records, bad, notes = found if isinstance(found, tuple) else (found.records, found.bad, found.notes)
    if not records:
        return None
    return [(r, r.row) for r in records], bad, notes


def same(path, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_rows, "BLOCK", 5)
        patch.setattr(locate, "CHUNK", 2)
        found = answer(read_manifest, path, **options)
    expected = answer(row_by_row, path, **options)
    if expected is None:
        assert "no usable row" in found[1]
    else:
        assert found == expected


@settings(deadline=None, max_examples=150)
@given(
    st.lists(ROW, min_size=1, max_size=14),
    st.sets(st.sampled_from(sorted(set(COLUMNS) - {"modality", "path"}))),
    st.booleans(),
    st.sampled_from([{}, {"sets": ["s", "xray"]}, {"modalities": ["xray", "ct"]}, {"seed": 3}]),
)
def test_any_cells_in_any_format(folder, rows, left_out, renamed, options):
    kept = [{name: cell for name, cell in row.items() if name not in left_out} for row in rows]
    if renamed:
        kept = [{RENAMED.get(name, name): cell for name, cell in row.items()} for row in kept]
    options = options | {"templates": folder}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(kept[0]))
    writer.writeheader()
    writer.writerows(kept)
    (folder / "m.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
    same(folder / "m.csv", **options)
    lines = [json.dumps({name: cell or None for name, cell in row.items()}) for row in kept]
    (folder / "m.jsonl").write_text("\n".join([lines[0], "[]", *lines[1:], "{", ""]))
    same(folder / "m.jsonl", **options)
    pd.DataFrame(kept).to_parquet(folder / "m.parquet")
    same(folder / "m.parquet", **options)


LINES = ("xray,a.png,one,i1\n", 'xray,b.png,"two, three",i2\n', 'xray,a.png,"four\nfive",i3\n', 'xray,b.png,"open,i4\n',
         "\n", ' , "", \n', "xray,a.png\n", "xray,a.png,x,i5,more\n", 'xr"ay,a.png,odd "inside,"x\n',
             'ret"ina,b.png,"x\n',
         "xray\\,b.png,\r,i6\r\n", '"",,\n', "xray,a.png,b\udce4d,i7\n", '"xray","b.png","say ""x""",i8\n',
         'xray,b.png,"""\n', "ecg,e,d\x00ef,i9\r")  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(LINES), max_size=14), st.sampled_from(["", "sep=,\n", "\n", '"modal\nity",x\n']))
def test_any_lines(folder, lines, before):
    text = before + "modality,path,caption,id\n" + "".join(lines)
    (folder / "lines.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_rows, "_MAX_LINES", 3)
        patch.setattr("reference.manifest._MAX_LINES", 3)
        same(folder / "lines.csv")


def test_typed_columns(folder):
    table = pd.DataFrame(
        {
            "modality": ["xray"] * 4,
            "path": ["a.png", "b.png", "a.png", "b.png"],
            "label": [1.0, float("nan"), 2.0, 3.5],
            "labels": [["a", "b"], None, [], ["c"]],
            "caption": [b"bytes", b"caf\xe9", None, b"x y z words"],
            "patient": [1, 2, 3, 10**12],
            "visit": pd.to_datetime(["2020-01-01 03:04", None, "2020-01-02 03:04", None]),
            "id": pd.Categorical(["c1", "c2", "c1", "c3"]),
        }
    )
    table.to_parquet(folder / "typed.parquet")
    same(folder / "typed.parquet")


def test_names_made_of_paths_never_meet_others(folder):
    rows = ["modality,path,caption,id"]
    ids = ["", "", "a.png#2", "", "a.png#2", "a.png#2#2", "", "a.png#4", "a.png", ""]
    rows += [f"xray,{'a.png' if i % 3 else 'a.png#2'},text {i},{name}" for i, name in enumerate(ids)]
    (folder / "a.png#2").write_bytes(b"x")
    os.rename(folder / "a.png#2", folder / "a.png#2.png")
    (folder / "m.csv").write_text("\n".join(rows))
    same(folder / "m.csv")
