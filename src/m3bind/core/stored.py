"""Reading small files: what m3bind wrote, in a folder that anybody may have made or changed, and what a user names.

* `read_bytes`, `read_text`: of a plain file, bounded. * `bytes_given`, `read_given`, `lines_given`: what an option
names, a file or a pipe. * `read_json`, `read_yaml`, `parse_yaml`: plain values, bounded.
* `read_parquet`: a table, bounded.
* `Strict`: a pydantic model that knows all its keys.
* `checked`: plain values as the type they must have; names the key that does not fit.
* `plain`: values of a size that settings have. * `inside`: a path in a folder that does not lead out of it.

Everything that is wrong with such a file is a `StoredFileError` that names it.
"""

import json
import math
import os
import select
import stat
import time
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from m3bind.errors import ConfigError, M3BindError, in_words

T = TypeVar("T")
MOST_JSON, MOST_YAML = 256 << 20, 256 << 10  # bytes of a file
MOST_SECRET, MOST_LIST = 64 << 10, 256 << 20  # bytes of a token or key, and of a list, that an option names
PIPE = 10.0  # seconds that a pipe may take
_DEEP, _MANY, _LONG = 32, 2_000_000, 1 << 20  # levels, values and characters of one text that settings may have
_AT_ONCE, _MOST_ROWS = 1 << 28, 65536  # bytes and rows of a table unpacked at once
_MOST_COLUMNS = 4096  # of a table
MOST_NODES = 200_000  # of a YAML file, what stands for other nodes counted with all of these


class Strict(BaseModel):
    """Values of which each has a name that is known; another name is an error."""

    model_config = ConfigDict(extra="forbid")


class StoredFileError(M3BindError, ValueError):
    """A file does not hold what m3bind writes there: damaged, altered, or made to harm. `path`, `reason`."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


def read_bytes(path: Path | str, most: int) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: it is missing, or refused.
        StoredFileError: no plain file, or larger than `most` bytes.
    """
    return _read(path, most)


def _read(path: Path | str, most: int, pipe: float = 0.0) -> bytes:
    """The content of a plain file, or of a pipe that ends within `pipe` seconds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # a pipe that nobody writes to is opened, too
    try:
        status = os.fstat(descriptor)
        is_pipe = bool(pipe) and stat.S_ISFIFO(status.st_mode)
        if not stat.S_ISREG(status.st_mode) and not is_pipe:
            raise StoredFileError(path, "neither a plain file nor a pipe" if pipe else "not a plain file")
        if status.st_size > most:
            raise StoredFileError(path, f"{status.st_size:,} bytes, more than {most:,}")
        found, end = bytearray(), time.monotonic() + pipe
        while True:
            if is_pipe and not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise StoredFileError(path, f"a pipe that does not end within {pipe:g} s")
            piece = os.read(descriptor, min(1 << 20, most + 1 - len(found)))
            if not piece:
                return bytes(found)
            found += piece
            if len(found) > most:
                raise StoredFileError(path, f"more than {most:,} bytes")
    finally:
        os.close(descriptor)


def read_text(path: Path | str, most: int) -> str:
    """The text of a plain file.

    Raises:
        OSError: it is missing, or refused.
        StoredFileError: see `read_bytes`; or not UTF-8.
    """
    return _text(read_bytes(path, most), path)


def _text(data: bytes, path: Path | str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StoredFileError(path, "not UTF-8 text; save it as UTF-8") from None


def bytes_given(path: Path, option: str, most: int = MOST_SECRET) -> bytes:
    """The content of a small file that an option names, or of a pipe, as `--token-file <(pass show m3bind)` makes one.

    Raises:
        ConfigError: it cannot be read, is too long, or a pipe that does not end: names option and file.
    """
    try:
        return _read(path, most, PIPE)
    except StoredFileError as error:
        reason = error.reason
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = in_words(error)
    raise ConfigError(f"{option}: {path} cannot be read ({reason})")


def read_given(path: Path, option: str, most: int = MOST_SECRET) -> str:
    """The text of a small file or pipe that an option names.

    Raises:
        ConfigError: see `bytes_given`; or not UTF-8.
    """
    try:
        return _text(bytes_given(path, option, most), path)
    except StoredFileError as error:
        raise ConfigError(f"{option}: {path} cannot be read ({error.reason})") from None


def lines_given(path: Path, option: str) -> list[str]:
    """The lines of a list that an option names, without empty ones.

    Raises:
        ConfigError: see `read_given`.
    """
    return [line for line in read_given(path, option, MOST_LIST).splitlines() if line.strip()]


def read_json(path: Path | str, most: int = MOST_JSON) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: it is missing, or refused.
        StoredFileError: see `read_bytes`; or no JSON, or nested too deeply.
    """
    return parse_json(read_bytes(path, most), path)


def parse_json(text: bytes | str, path: Path | str) -> Any:
    """The value of JSON text that stands in the file `path`.

    Raises:
        StoredFileError: no JSON, nested too deeply, or a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except _TwiceError as error:
        raise StoredFileError(path, str(error)) from None
    except json.JSONDecodeError as error:
        raise StoredFileError(path, f"not valid JSON ({error.msg}, line {error.lineno})") from None
    except (RecursionError, ValueError) as error:  # too deep; not UTF-8, or a number of thousands of digits
        deep = isinstance(error, RecursionError)
        raise StoredFileError(path, "nested too deeply" if deep else "not valid JSON (bytes or numbers)") from None


class _TwiceError(ValueError):
    """Readers differ in which of two equal keys they take."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _TwiceError(f"the key {twice[:40]!r} stands twice in one object")
    return made


def read_yaml(path: Path | str) -> Any:
    """The value in a YAML file, of plain types only.

    Raises:
        OSError: it is missing, or refused.
        StoredFileError: see `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, MOST_YAML), path)


def parse_yaml(text: str, path: Path | str) -> Any:
    """The value of YAML text that stands in `path`, of plain types only.

    Raises:
        StoredFileError: not YAML, a tag that makes objects, nested too deeply, or many times larger than it looks
            because its parts stand for one another.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST_NODES:
            raise StoredFileError(path, f"more than {MOST_NODES:,} values (aliases counted as what they stand for)")
        return loader.construct_document(node)
    except StoredFileError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise StoredFileError(path, f"not valid YAML ({error.problem}{line})") from None
    except RecursionError:
        raise StoredFileError(path, "nested too deeply, or in itself") from None
    except Exception as error:  # PyYAML's constructors raise anything for a value that does not fit its tag
        raise StoredFileError(path, "not valid YAML (a value that cannot be read)") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_parquet(path: Path, most: int) -> Any:
    """A Parquet table as Arrow, without the notes that other programs left in it for themselves.

    A text may be stored once and stand in every row: texts are read as numbers of texts and written out when it is
    known how long they become.

    Raises:
        StoredFileError: no plain file, more columns than tables have, or it unpacks to more than `most` bytes.
        Exception: pyarrow raises many kinds for what is no such table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise StoredFileError(path, "not a plain file")
    with pq.ParquetFile(path) as file:
        if file.metadata.num_columns > _MOST_COLUMNS:
            raise StoredFileError(path, f"{file.metadata.num_columns:,} columns, more than {_MOST_COLUMNS:,}")
        schema, groups = file.schema_arrow, [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
    texts = [field.name for field in schema if _is_text(field.type)]
    width = sum(_width(field.type) for field in schema if field.name not in texts)
    if sum(group.total_byte_size for group in groups) > most or width * sum(group.num_rows for group in groups) > most:
        raise StoredFileError(path, "unpacks to more than it may")
    nested = any(not _is_text(field.type) and not _width(field.type) for field in schema)
    largest = max((group.total_byte_size for group in groups), default=0) if nested else width
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        batches = []
        for batch in file.iter_batches(min(_MOST_ROWS, max(1, _AT_ONCE // max(largest, 1)))):
            most -= sum(map(_unpacked, batch.columns))
            if most < 0:
                raise StoredFileError(path, "unpacks to more than it may")
            batches.append(batch)
    table = pa.Table.from_batches(batches) if batches else schema.empty_table()
    return table.cast(schema).replace_schema_metadata(None)


def _is_text(kind: Any) -> bool:
    """Whether values of an Arrow type are letters or bytes of any number."""
    import pyarrow.types as kinds

    return any(
        is_one(kind) for is_one in (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
    )


def _width(kind: Any) -> int:
    """Bytes of a value of an Arrow type, 0 where they are not always as many."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 0


def _unpacked(column: Any) -> int:
    """Bytes of an Arrow array with every text written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, pa.DictionaryArray):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return 8 * len(column) + (pc.sum(lengths.take(column.indices)).as_py() or 0)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below a node, an alias counted as all that it stands for.

    Raises:
        RecursionError: it stands in itself.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def checked(kind: type[T], value: Any, path: Path | str) -> T:
    """A plain value as the type it must have: a dataclass, a pydantic model, or an annotated type.

    Raises:
        StoredFileError: names the key that is missing or does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoredFileError(path, f"{where + ': ' if where else ''}{first['msg']}") from None
    except RecursionError:
        raise StoredFileError(path, "nested too deeply") from None


def plain(value: Any) -> None:
    """Refuse values that are nested deeply or are huge, and numbers that are none.

    Raises:
        ValueError: which of them.
    """
    rest, values = [(value, 0)], 0
    while rest:
        item, depth = rest.pop()
        values += 1
        if depth > _DEEP or values > _MANY:
            raise ValueError("nested too deeply" if depth > _DEEP else f"more than {_MANY:,} values")
        if isinstance(item, dict):
            rest += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            rest += [(inner, depth + 1) for inner in item]
        elif isinstance(item, str) and len(item) > _LONG:
            raise ValueError(f"a text of {len(item):,} characters")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{item} is no number")


def inside(folder: Path | str, name: str) -> Path:
    """The path of `name` in `folder`.

    Files of a snapshot in the hub's cache are links into the `blobs` beside `snapshots`, which belong to it.

    Raises:
        ValueError: the name is absolute, has `..` in it, or is a link that leads out of the folder.
    """
    folder = Path(folder)
    relative = PurePosixPath(name)
    if not name or relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a path inside the folder")
    path, root = folder / relative, folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        leads = path.resolve()
    except (RuntimeError, OSError):  # a circle of links
        raise ValueError(f"{name!r} is a link that leads to itself") from None
    if not any(leads.is_relative_to(allowed) for allowed in roots):
        raise ValueError(f"{name!r} is a link that leads out of the folder; copy the file into it")
    return path
