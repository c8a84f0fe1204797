"""Text tables as programs save them: encodings, delimiters, sep= lines, damage."""

import gzip
import io
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3bind.data import read_manifest, tables
from m3bind.data.manifest_rows import BLOCK, is_manifest
from m3bind.data.tables import read_rows
from m3bind.errors import ManifestError

TABLE = [["modality", "path", "label"], ["xray", "a.png", "Größe; normal"], ["xray", "b.png", "two, three"]]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
DELIMITERS = [",", ";", "\t", "|"]


def text_of(delimiter: str, stated: bool = False) -> str:
    lines = [delimiter.join(f'"{cell}"' if any(c in ",;" for c in cell) else cell for cell in row) for row in TABLE]
    return "\r\n".join([*([f"sep={delimiter}"] if stated else []), *lines]) + "\r\n"


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_saved_in_any_way_it_is_the_same_table(
    tmp_path: Path, encoding: str, delimiter: str, stated: bool, packed: bool
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    data = text_of(delimiter, stated).encode(encoding)
    path = tmp_path / ("m.csv.gz" if packed else "m.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert is_manifest(path)
    records = read_manifest(path).records
    assert [(r.path.name, r.label, r.row) for r in records] == [
        ("a.png", "Größe; normal", 2 + stated),
        ("b.png", "two, three", 3 + stated),
    ]
    rows = list(read_rows(path, ("modality", "Label")))
    assert [(number, row["Label"]) for number, row in rows] == [
        (2 + stated, "Größe; normal"),
        (3 + stated, "two, three"),
    ]


def test_packed_or_not_is_detected_from_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "plain.csv.gz").write_text("a,b\n1,2\n")
    (tmp_path / "packed.csv").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    for path in tmp_path.iterdir():
        assert list(read_rows(path, ("a",))) == [(2, {"a": "1", "b": "2"})]


DAMAGED = {
    "cut.csv.gz": (gzip.compress(b"modality,path,label\n" * 500)[:-12], "damaged or cut short"),
    "flipped.csv.gz": (gzip.compress(b"modality,path,label\n")[:12] + b"\xff" * 20, "damaged or cut short"),
    "odd.csv": ("modality,path,label\n".encode("utf-16") + b"x", "starts as UTF-16"),
    "other.csv": (b"a,b\n1,2\n", "no column 'modality'; found 'a', 'b'"),
    "empty.csv": (b"", "the file is empty"),
    "bad.parquet": (b"PAR1" + b"\x00" * 40, "not a Parquet table, or damaged"),
}


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damaged_tables_say_so(tmp_path: Path, name: str) -> None:
    content, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=reason):
        read_manifest(tmp_path / name)


def test_a_table_of_a_signal_is_no_manifest(tmp_path: Path) -> None:
    for name, text in (("e.csv", "time,I,II\n0,1,2\n"), ("s.csv", "sep=;\ntime;I;II\n0;1;2\n"), ("n.csv", "")):
        (tmp_path / name).write_text(text)
        assert not is_manifest(tmp_path / name)


def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    monkeypatch.setattr(tables, "SLACK", 1 << 16)
    line = "xray,a.png,normal\n"
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(("modality,path,label\n" + line * 1_000_000).encode()))
    with pytest.raises(ManifestError, match="unpacks to more than"):
        read_manifest(tmp_path / "m.csv.gz")
    frame = pandas.DataFrame({"modality": ["xray"] * 1000, "path": ["a.png"] * 1000, "label": ["n" * 10_000] * 1000})
    frame.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="unpacks to more than"):
        read_manifest(tmp_path / "m.parquet")


@given(st.text("ab\r\n\x0b\u2028", max_size=40), st.integers(1, 5), st.integers(1, 12))
def test_lines_are_those_of_the_file_however_it_is_read(text: str, chunk: int, most: int) -> None:
    wanted = list(io.StringIO(text, newline=""))
    too_long = any(len(line) >= 8 for line in wanted)
    with patch.object(tables, "_CHUNK", chunk), patch.object(tables, "LINE", 8):
        lines = tables.lines_of(Path("t.csv"), io.StringIO(text, newline=""), most)
        if too_long or len(wanted) > most:
            with pytest.raises(ManifestError, match=r"a line of more than|more than .* lines"):
                list(lines)
        else:
            assert list(lines) == wanted


@pytest.mark.parametrize("empty", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_empty_lines_are_counted_and_skipped(tmp_path: Path, empty: int, blank: str) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    rows = ["path,modality,label", *[blank] * empty, "a.png,xray,b", *[blank] * empty, "c.png,xray,b", blank]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    manifest = read_manifest(tmp_path / "m.csv")
    assert len(manifest.records) == 1
    assert [row.row for row in manifest.bad] == [2 * empty + 3]
