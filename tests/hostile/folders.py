"""Hostile index folders, encoded folders, parts of an encoding, run folders and settings; each opened by the commands.

* `make`: the valid folders that the hostile ones are copies of. * `items`: the hostile ones, with the commands that
open them.

Their sums and hashes are correct: an attacker would compute them too.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hostile.audit import Action

DEEP = "[" * 100_000 + "]" * 100_000
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20)
)
Change = Callable[[Path], object]


# --- in the child -----------------------------------------------------------------------------------------------------


def register() -> None:
    """Make the tiny model of the tests known."""
    from m3bind.models import registry
    from space.tiny import Tiny

    registry._registry._classes = {"tiny": Tiny}


def command(*words: str) -> None:
    """An m3bind command that may open a space of the tiny model."""
    register()
    from m3bind.cli import main

    sys.argv[:] = ["m3bind", *words]
    main()


def ask(index: str) -> None:
    """Everything that is asked of an index."""
    from m3bind.index import open_index
    from m3bind.index.calibration import calibration_of

    with open_index(index) as opened:
        opened.counts()
        ids, rows = opened.sample(5)
        opened.items(ids)
        opened.vectors(ids)
        for exact in (True, False):
            opened.search(rows, 5, exact=exact)
        if len(rows):
            scores = np.ones((len(rows), 1), np.float32)
            calibration_of(opened).calibrate_scores(rows, next(iter(opened.counts())), scores)


def app_of(index: str, space: str) -> None:
    """The service, made but not bound to an address."""
    register()
    from m3bind.serve.app import make_app
    from m3bind.space.bundle import load

    make_app(load(space), index)


def template(path: str) -> None:
    """A file of templates."""
    from m3bind.data.texts import load_template

    load_template(Path(path))


# --- sound folders ----------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """A space, an encoded folder, its parts, an index of 300 rows with codes and graph, one with lists, and a run."""
    from m3bind.encode.job import encode_files, encode_share
    from m3bind.index import ann, create_index
    from m3bind.space.bundle import load

    make_files(folder)
    space, files = load(folder / "space"), sorted((folder / "files").iterdir())
    encode_files(space, files, folder / "encoded", "xray", precision="float32")
    encode_share(space, files, folder / "shared", (1, 1), "xray", precision="float32")
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    table = pd.DataFrame({"id": [f"i{n}" for n in range(300)], "modality": ["xray", "retina"] * 150, "path": "a.png"})
    for name, forms in (("index", {}), ("listed", {"lists": ann.FORMS["lists"]})):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ann, "CODES_FROM", 64)
            patch.setattr(ann, "NEAR_FROM", 128)
            patch.setattr(ann, "FORMS", forms or ann.FORMS)
            with create_index(folder / name, 8, space.fingerprint) as index:
                index.upsert(rows, table)
                index.commit()
                index.delete(["i3"])
                index.set_metadata("calibration", {"ids": {"xray": ["i0"]}, "counts": {"xray": 150}, "hash": "x"})
    _run(folder / "run")


def make_files(folder: Path) -> str:
    """A space and six pictures; the space's folder."""
    from m3bind.space.bundle import save_space

    register()
    save_space(_space(), folder / "space")
    for number in range(6):
        _picture(folder / "files" / f"{number}.png", number)
    return str(folder / "space")


def _space() -> Any:
    from m3bind.space.bundle import Space
    from space import tiny

    rng = np.random.default_rng(0)
    models = {"xray": tiny.Tiny(6, 0), "retina": tiny.Tiny(5, 1), "ct": tiny.Tiny(5, 2)}
    for model in models.values():
        model.registered_name = "tiny"
    bridges = {m: np.linalg.qr(rng.normal(size=(8, model.joint_dim)))[0].T for m, model in models.items()}
    return Space(models, bridges, {m: rng.normal(size=8) / 9 for m in models}, tiny.student(8))


def _picture(path: Path, seed: int) -> None:
    from PIL import Image

    x, y = np.meshgrid(np.linspace(0, 3 + seed, 64), np.linspace(0, 5, 64))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((120 + 60 * np.sin(x) + 50 * np.cos(x + y)).astype(np.uint8)).save(path)


def _run(folder: Path) -> None:
    from m3bind.config import load_config
    from m3bind.core import sums
    from m3bind.evaluate.confidence import Resampling, mean_estimate
    from m3bind.evaluate.results import Context, ResultTable

    hits = np.arange(40) % 3 > 0
    row = Context(dataset="d", modality="xray", seed=0, task="t", stage="aligned").row(
        "zero_shot", "accuracy", mean_estimate(hits, 0.5, Resampling([str(n) for n in range(40)], 50, 0))
    )
    folder.mkdir(parents=True)
    load_config("quick").save(folder / "config.yaml")
    (folder / "provenance.json").write_text("{}")
    ResultTable([row]).save(folder / "results.json")
    sums.record(folder, "config.yaml", "results.json", "results.npz", "provenance.json")


# --- making them hostile ----------------------------------------------------------------------------------------------


def set_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value `...` removes the key."""
    content = json.loads(path.read_text())
    _merge(content, changes)
    path.write_text(json.dumps(content))


def _merge(content: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if value is ...:
            del content[name]
        else:
            content[name] = value


def sign(folder: Path, change: Callable[[dict[str, Any]], object] | str) -> None:
    """Change what CURRENT says (or replace its text) and make its hash fit, in both copies."""
    import hashlib

    body = (folder / "CURRENT").read_text().partition("\n")[2]
    if isinstance(change, str):
        body = change
    else:
        content = json.loads(body)
        change(content)
        body = json.dumps(content)
    for name in ("CURRENT", "CURRENT.copy"):
        (folder / name).write_text(hashlib.sha256(body.encode()).hexdigest() + "\n" + body)


def seal(folder: Path) -> None:
    """Make the sums of all parts fit their files."""
    from m3bind.index.segment import checksums

    def sums(content: dict[str, Any]) -> None:
        for entry in content["parts"]:
            place = folder / "parts" / entry["name"]
            entry["files"] = {path.name: checksums(path) for path in sorted(place.iterdir())}

    sign(folder, sums)


def keys(**changes: Any) -> Change:
    """A changed CURRENT."""
    return lambda folder: sign(folder, lambda content: _merge(content, changes))


def first(**changes: Any) -> Change:
    """A changed first entry in the list of parts."""
    return lambda folder: sign(folder, lambda content: _merge(content["parts"][0], changes))


def part_file(name: str, make_content: Callable[[bytes], bytes]) -> Change:
    """A changed file of the first part, its sums right."""

    def change(folder: Path) -> None:
        path = min((folder / "parts").iterdir()) / name
        path.write_bytes(make_content(path.read_bytes()))
        seal(folder)

    return change


def table_of(column: Any, **options: Any) -> Callable[[bytes], bytes]:
    """An Arrow file like `items.arrow` whose column `path` is another."""

    def make_content(data: bytes) -> bytes:
        import pyarrow as pa

        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        values = column(table.num_rows) if callable(column) else column
        table = table.set_column(table.column_names.index("path"), "path", values)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()

    return make_content


def _texts(value: str) -> Callable[[int], Any]:
    import pyarrow as pa

    return lambda rows: pa.array([value] * rows, pa.large_string())


def _offsets_beyond(data: bytes) -> bytes:
    """Text offsets of the column `path` ("a.png" in every row) that lead far behind the texts."""
    offsets = (5 * np.arange(301, dtype="<i8")).tobytes()
    assert data.count(offsets) == 1
    return data.replace(offsets, offsets[:800] + (1 << 40).to_bytes(8, "little") * 200 + offsets[2400:])


def _numbers(count: int) -> Any:
    import pyarrow as pa

    return pa.array(range(count))


def middle(value: bytes, at: int = 64) -> Callable[[bytes], bytes]:
    """Some bytes of a file replaced."""
    return lambda data: data[:at] + value + data[at + len(value) :]


def instead(name: str, what: str) -> Change:
    """Something that is no plain file in the place of a file of the folder."""

    def change(folder: Path) -> None:
        path = min((folder / "parts").iterdir()) if name == "part" else next(folder.rglob(name))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        if what == "fifo":
            os.mkfifo(path)
        elif what == "folder":
            path.mkdir()
        else:
            path.symlink_to(what)

    return change


def text_in(name: str, text: str) -> Change:
    """Another text in a file of the folder."""
    return lambda folder: (folder / name).write_text(text)


HUGE = 10**15
INDEX: dict[str, Change] = {
    "list nested deeply": lambda folder: sign(folder, DEEP),
    "list is no mapping": lambda folder: sign(folder, "[1, 2]"),
    "list is a number of many digits": lambda folder: sign(folder, "9" * 10_000),
    "list is not UTF-8": lambda folder: [(folder / n).write_bytes(b"\xff\n{}") for n in ("CURRENT", "CURRENT.copy")],
    "no parts": keys(parts=...),
    "no format": keys(format=...),
    "version is a text": keys(version="newest"),
    "dim is a text": keys(dim="x"),
    "dim is negative": keys(dim=-8),
    "dim is huge": keys(dim=HUGE),
    "dim is another": keys(dim=9),
    "unknown keys": keys(run="import os"),
    "notes are a list": keys(notes=[1]),
    "calibration is a list": keys(notes={"calibration": [1, 2]}),
    "calibration without counts": keys(notes={"calibration": {"ids": {"xray": ["i0"]}}}),
    "calibration of numbers": keys(notes={"calibration": {"ids": {"xray": 3}, "counts": {"xray": "x"}, "hash": 1}}),
    "calibration of nothing": keys(notes={"calibration": {"ids": {"no": []}, "counts": {"no": 0}, "hash": ""}}),
    "build note of another shape": keys(notes={"building": ["x"]}),
    "a part outside": first(name="../../../private"),
    "a part at an absolute place": first(name="/etc"),
    "a part without rows": first(rows=...),
    "a part of huge size": first(rows=HUGE),
    "a part of negative size": first(rows=-5),
    "a part of other size": first(rows=299),
    "a file outside": first(files={"../../../private/secret": {"bytes": 1, "crc": [1]}}),
    "files are a list": first(files=["items.arrow"]),
    "sums are texts": first(files={"items.arrow": {"bytes": "x", "crc": "y"}}),
    "a hundred thousand parts": lambda folder: sign(
        folder, lambda content: content.update(parts=content["parts"][:1] * 100_000)
    ),
    "list is a fifo": instead("CURRENT", "fifo"),
    "copy is a device": instead("CURRENT.copy", "/dev/zero"),
    "list is a folder": instead("CURRENT", "folder"),
    "vectors are a fifo": instead("vectors.f32", "fifo"),
    "vectors are a device": instead("vectors.f32", "/dev/zero"),
    "part is a fifo": instead("part", "fifo"),
    "vectors not finite": part_file("vectors.f32", lambda data: b"\xff" * len(data)),
    "vectors cut short": part_file("vectors.f32", lambda data: data[:-7]),
    "keys of other rows": part_file("keys.u64", lambda data: b"\xfe" * len(data)),
    "keys cut short": part_file("keys.u64", lambda data: data[:-3]),
    "items are noise": part_file("items.arrow", lambda data: b"x" * 5000),
    "items cut short": part_file("items.arrow", lambda data: data[: len(data) // 2]),
    "items are numbers": part_file("items.arrow", table_of(_numbers)),
    "items unpack to much": part_file("items.arrow", table_of(_texts("x" * 1_000_000), compression="zstd")),
    "items lead beyond the texts": part_file("items.arrow", _offsets_beyond),
    "codes are noise": part_file("codes.faiss", lambda data: b"\0" * len(data)),
    "codes cut short": part_file("codes.faiss", lambda data: data[:-50]),
    "codes of huge lists": part_file("codes.faiss", middle((1 << 38).to_bytes(8, "little"))),
    "codes of another dimension": part_file("codes.faiss", middle((9).to_bytes(4, "little"), 4)),
    "error of the codes is a list": part_file("codes.json", lambda data: b'{"error": [1]}'),
    "error of the codes is not finite": part_file("codes.json", lambda data: b'{"error": NaN}'),
    "form is unknown": part_file("near.json", lambda data: b'{"form": "os.system", "width": 3, "recall": 1}'),
    "width is huge": part_file("near.json", lambda data: b'{"form": "graph", "width": 1e300, "recall": 1}'),
    "near is nested deeply": part_file("near.json", lambda data: DEEP.encode()),
    "graph is noise": part_file("graph.faiss", lambda data: os.urandom(len(data))),
    "graph of huge lists": part_file("graph.faiss", middle((1 << 39).to_bytes(8, "little"), 36)),
    "graph links to rows far away": part_file("graph.faiss", middle((1 << 30).to_bytes(4, "little") * 100, 40_000)),
    "graph is codes": lambda folder: part_file("graph.faiss", lambda data: _codes_of(folder))(folder),
}  # fmt: skip
LISTED: dict[str, Change] = {
    "lists are noise": part_file("lists.faiss", lambda data: b"\1" * len(data)),
    "lists of rows that are not there": part_file("lists.faiss", lambda data: data[:-900] + b"\x7f" * 900),
    "lists cut short": part_file("lists.faiss", lambda data: data[:-100]),
}


def _codes_of(folder: Path) -> bytes:
    return next(folder.rglob("codes.faiss")).read_bytes()


def hashed(change: Change) -> Change:
    """The hashes in `encoded.json` made to fit after a change."""

    def changed(folder: Path) -> None:
        from m3bind.core.files import sha256_file

        change(folder)
        content = json.loads((folder / "encoded.json").read_text())
        content["files"] = {name: sha256_file(folder / name) for name in content["files"]}
        (folder / "encoded.json").write_text(json.dumps(content))

    return changed


def array(values: Any, **options: Any) -> Change:
    """Other embeddings, as numpy saves them."""
    return hashed(lambda folder: np.save(folder / "embeddings.npy", values, **options))


def npy_of(shape: tuple[int, ...]) -> Change:
    """Embeddings that claim a shape."""

    def change(folder: Path) -> None:
        with open(folder / "embeddings.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            file.write(bytes(64))

    return hashed(change)


def items_table(make_table: Callable[[Any], Any]) -> Change:
    """Another table of items."""

    def change(folder: Path) -> None:
        import pyarrow.parquet as pq

        pq.write_table(make_table(pq.read_table(folder / "items.parquet")), folder / "items.parquet")

    return hashed(change)


def _many_rows(table: Any) -> Any:
    import pyarrow as pa

    return pa.table({name: pa.array(["x"] * 3_000_000).dictionary_encode() for name in table.column_names})


def _with_pandas_metadata(table: Any) -> Any:
    columns = [{"name": n, "field_name": n, "pandas_type": "datetimetz", "numpy_type": "O", "metadata": {"timezone": 5}}
               for n in table.column_names]  # fmt: skip
    about = {"index_columns": ["x"], "column_indexes": [], "columns": columns, "pandas_version": "9"}
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _harm() -> object:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('harmed')",)

    return Harm()


def marker(**changes: Any) -> Change:
    """A changed `encoded.json`."""
    return lambda folder: set_json(folder / "encoded.json", **changes)


ENCODED: dict[str, Change] = {
    "marker nested deeply": text_in("encoded.json", DEEP),
    "marker is a list": text_in("encoded.json", "[]"),
    "marker is empty": text_in("encoded.json", ""),
    "marker is a fifo": instead("encoded.json", "fifo"),
    "no dim": marker(dim=...),
    "dim is a text": marker(dim="eight"),
    "done is negative": marker(done=-1),
    "done is huge": marker(done=10**30),
    "done is nothing": marker(done=0),
    "space is a number": marker(space=5),
    "modalities are a list": marker(modalities=["xray"]),
    "files outside": marker(files={"../private/secret": "0"}),
    "files are a list": marker(files=["embeddings.npy"]),
    "embeddings hold a pickle": array(np.array([_harm()] * 6, dtype=object), allow_pickle=True),
    "embeddings claim a huge shape": npy_of((HUGE, 8)),
    "embeddings claim many axes": npy_of((2,) * 60),
    "embeddings are texts": array(np.array([["x" * 8] * 8] * 6)),
    "embeddings are not finite": array(np.full((6, 8), np.nan, np.float32)),
    "embeddings are noise": hashed(lambda folder: (folder / "embeddings.npy").write_bytes(b"\x93NUMPY\x01\0\xff\xff(")),
    "embeddings are a fifo": instead("embeddings.npy", "fifo"),
    "items are noise": hashed(lambda folder: (folder / "items.parquet").write_bytes(b"PAR1" + b"x" * 500 + b"PAR1")),
    "items of other length": items_table(lambda table: table.slice(0, 2)),
    "items of millions of rows": items_table(_many_rows),
    "items without ids": items_table(lambda table: table.drop_columns(["id"])),
    "items without rows": items_table(lambda table: table.drop_columns(["row"])),
    "items with pandas' own notes": items_table(_with_pandas_metadata),
}


def shard(**changes: Any) -> Change:
    """A changed shard of an encoding."""

    def change(folder: Path) -> None:
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        path = next(folder.glob("*.safetensors"))
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        save_file(load_file(path) | changes, path, metadata=metadata)

    return change


def job(**changes: Any) -> Change:
    """A changed `job.json`."""
    return lambda folder: set_json(folder / "job.json", **changes)


def lines(text: str) -> Any:
    """A text as an array of a shard."""
    return np.frombuffer(text.encode(), np.uint8)


PARTS: dict[str, Change] = {
    "job nested deeply": text_in("job.json", DEEP),
    "job is a list": text_in("job.json", "[1]"),
    "job without settings": job(settings=...),
    "settings without dim": job(settings={"keep": []}),
    "shards outside": job(shards=["../../private/secret"]),
    "shards are numbers": job(shards=[1, 2]),
    "decision is a list": text_in("tower-xray.json", "[1]"),
    "decision names an attribute": text_in("tower-xray.json", '{"dtype": "load", "folded": false}'),
    "rows of another dimension": shard(rows=np.zeros((6, 3), np.float32)),
    "rows are numbers of another kind": shard(rows=np.zeros((6, 8), np.int64)),
    "items nested deeply": shard(items=lines(DEEP)),
    "items are numbers": shard(items=lines("[1, 2, 3, 4, 5, 6]")),
    "items of other columns": shard(items=lines(json.dumps([{"x": "y"}] * 6))),
    "parts of items that are not there": shard(part_of=np.full(3, 99), places=np.zeros((3, 2))),
    "shard is noise": lambda folder: next(folder.glob("*.safetensors")).write_bytes(b"\xff" * 100),
    "shard claims a huge header": lambda folder: next(folder.glob("*.safetensors")).write_bytes(
        (1 << 60).to_bytes(8, "little") + b"{}"
    ),
}


def recorded(name: str, text: str | bytes) -> Change:
    """Another content of a file of a run, its sums right."""

    def change(folder: Path) -> None:
        from m3bind.core import sums

        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        sums.record(folder, name)

    return change


def results(change: Callable[[Any], object]) -> Change:
    """Changed rows of results."""

    def changed(folder: Path) -> None:
        rows = json.loads((folder / "results.json").read_text())
        change(rows[0])
        recorded("results.json", json.dumps(rows))(folder)

    return changed


RUN: dict[str, Change] = {
    "config of aliases of aliases": recorded("config.yaml", LAUGHS),
    "config with a tag of Python": recorded("config.yaml", "name: !!python/object/apply:os.system ['echo x']\n"),
    "config nested deeply": recorded("config.yaml", "a: " + "[" * 20_000),
    "config in itself": recorded("config.yaml", "a: &a [*a]\n"),
    "config with a bad date": recorded("config.yaml", "name: 2001-99-99\n"),
    "config is a list": recorded("config.yaml", "- a\n- b\n"),
    "config is empty": recorded("config.yaml", ""),
    "config is not UTF-8": recorded("config.yaml", b"\xff\xfe\x00"),
    "config with keys of numbers": recorded("config.yaml", "1: 2\n"),
    "config is a fifo": instead("config.yaml", "fifo"),
    "results nested deeply": recorded("results.json", DEEP),
    "results are a mapping": recorded("results.json", '{"rows": 1}'),
    "results of texts": recorded("results.json", '["a", "b"]'),
    "results without a metric": results(lambda row: row.pop("metric")),
    "results with a list for a value": results(lambda row: row.update(value=[1])),
    "results with a mapping for a name": results(lambda row: row.update(protocol={"a": 1}, metric=["x"])),
    "results with huge counts": results(lambda row: row.update(n=10**400, gallery="x")),
    "replicates with a pickle": lambda folder: _pickled(folder / "results.npz", folder),
    "replicates are noise": recorded("results.npz", b"PK\x03\x04" + b"x" * 300),
    "provenance nested deeply": recorded("provenance.json", DEEP),
    "provenance is a list": recorded("provenance.json", "[1]"),
    "sums name files outside": text_in("sums.json", '{"../private/secret": "00", "/dev/zero": "11"}'),
    "sums nested deeply": text_in("sums.json", DEEP),
    "sums are a fifo": instead("sums.json", "fifo"),
}  # fmt: skip


def _pickled(path: Path, folder: Path) -> None:
    from m3bind.core import sums

    np.savez(path, **{"0": np.array([_harm()], dtype=object), "x": np.ones(3)})
    sums.record(folder, path.name)


SETTINGS = {
    "aliases of aliases": LAUGHS,
    "a tag of Python": "name: !!python/name:os.system\n",
    "extends itself": "extends: settings.yaml\n",
    "extends a list": "extends: [demo]\n",
    "a list": "- a\n",
    "nested deeply": "a: " + "{a: " * 20_000,
    "a million letters": "name: " + "x" * 1_000_000,
}


def items(folder: Path) -> Iterator[Action]:
    """Everything hostile below `folder`, and the commands that open it."""
    make(folder / "sound")
    sound, private = folder / "sound", folder / "private"
    private.mkdir()
    (private / "secret").write_text("secret")
    space = str(sound / "space")

    def action(name: str, *words: Any, writes: tuple[Path, ...] = ()) -> Action:
        place = "hostile.folders:command"
        return Action(name, call=place, args=[str(word) for word in words], writes=writes, private=[private])

    def copy(of: str, number: int, change: Change) -> Path:
        place = folder / f"{of}{number}"
        shutil.copytree(sound / of, place)
        change(place)
        return place

    for of, changes in (("index", INDEX), ("listed", LISTED)):
        for number, (name, change) in enumerate(changes.items()):
            place = copy(of, number, change)
            yield Action(f"{of}: {name}: asked", call="hostile.folders:ask", args=[str(place)], private=[private])
            yield action(f"{of}: {name}: search", "search", place, "--space", space, "--text", "a")
            if number % 3 == 0:
                yield action(f"{of}: {name}: shown", "index", "--out", place)
                args = [str(place), space]
                yield Action(f"{of}: {name}: served", call="hostile.folders:app_of", args=args, private=[private])
            if number % 3 == 1:
                yield action(f"{of}: {name}: added to", "index", sound / "encoded", "--out", place, "--add",
                             writes=(place,))  # fmt: skip
            yield action(f"{of}: {name}: repaired", "index", "--out", place, "--repair", writes=(place,))
    for number, (name, change) in enumerate(ENCODED.items()):
        place, out = copy("encoded", number, change), folder / f"made{number}"
        yield action(f"encoded: {name}: index", "index", place, "--out", out / "index", writes=(out,))
        yield action(f"encoded: {name}: search", "search", place, "--space", space, "--text", "a")
        yield action(
            f"encoded: {name}: export", "export", place, "--to", "parquet", "--out", out / "table", writes=(out,)
        )
        yield action(f"encoded: {name}: encode again", "encode", sound / "files", "--space", space, "--out", place,
                     "--modality", "xray", writes=(place, *_beside(place)))  # fmt: skip
    for number, (name, change) in enumerate(PARTS.items()):
        place, out = copy("shared.parts", number, change), folder / f"merged{number}"
        yield action(f"parts: {name}: merge", "merge", place, "--out", out, writes=(out, *_beside(out)))
    for number, (name, change) in enumerate(RUN.items()):
        place = copy("run", number, change)
        yield action(f"run: {name}: evaluate", "evaluate", place)
        yield action(f"run: {name}: compare", "compare", sound / "run", place, "--all")
        if name.startswith(("config", "sums")):  # of a run whose settings can be read it would go on with the training
            yield action(f"run: {name}: report", "report", place, writes=(place,))
    for number, (name, text) in enumerate(SETTINGS.items()):
        place = folder / f"settings{number}"
        place.mkdir()
        (place / "settings.yaml").write_text(text)
        for word in ("plan", "fit", "prepare"):
            yield Action(f"settings: {name}: {word}", command=[word, "settings.yaml"], cwd=place, writes=[place])
        yield Action(f"settings: {name}: suite", command=["evaluate", "--suite", "settings.yaml"], cwd=place,
                     writes=[place])  # fmt: skip


def _beside(place: Path) -> tuple[Path, ...]:
    """Where an encoding works meanwhile."""
    names = [f"{place.name}.parts", f".{place.name}"]
    return tuple(place.with_name(name) for name in names)
