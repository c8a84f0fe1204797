"""Reading small files: those of m3bind, in folders that anyone may have created or changed, and those of options.

* `read_bytes`, `read_text`: a regular file of bounded size.
* `bytes_given`, `read_given`, `lines_given`: a file or pipe that an option names.
* `read_json`, `parse_json`, `read_yaml`, `parse_yaml`, `read_parquet`: plain values and tables of bounded size.
* `Strict`: a pydantic model that rejects unknown keys. * `checked`: plain values validated as a type.
* `plain`: rejects oversized settings. * `inside`: a path that cannot leave its folder.

Every defect of such a file is a `StoredFileError` that names the file.
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
MAX_JSON, MAX_YAML = 256 << 20, 256 << 10  # bytes of a file
MAX_SECRET, MAX_LIST = 64 << 10, 256 << 20  # bytes of a token or key, and of a list, named by an option
PIPE = 10.0  # seconds until a pipe must end
_DEEP, _MANY, _LONG = 32, 2_000_000, 1 << 20  # maximum levels, values, and characters of one text in settings
_BATCH_BYTES, _BATCH_ROWS = 1 << 28, 65536  # of a table, unpacked at a time
_MAX_COLUMNS = 4096  # of a table
MAX_NODES = 200_000  # of a YAML file, aliases counted as all nodes they refer to


class Strict(BaseModel):
    """A pydantic model in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class StoredFileError(M3BindError, ValueError):
    """A file is not as m3bind writes it: damaged, altered, or malicious. Attributes: `path`, `reason`."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason


def read_bytes(path: Path | str, maximum: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: missing, or no permission.
        StoredFileError: not a regular file, or larger than `maximum` bytes.
    """
    return _read(path, maximum)


def _read(path: Path | str, maximum: int, pipe: float = 0.0) -> bytes:
    """The content of a regular file, or of a pipe that ends within `pipe` seconds."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # never blocks on a pipe without a writer
    try:
        status = os.fstat(descriptor)
        is_pipe = bool(pipe) and stat.S_ISFIFO(status.st_mode)
        if not stat.S_ISREG(status.st_mode) and not is_pipe:
            raise StoredFileError(path, "neither a plain file nor a pipe" if pipe else "not a plain file")
        if status.st_size > maximum:
            raise StoredFileError(path, f"{status.st_size:,} bytes, more than {maximum:,}")
        content, end = bytearray(), time.monotonic() + pipe
        while True:
            if is_pipe and not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise StoredFileError(path, f"a pipe that does not end within {pipe:g} s")
            piece = os.read(descriptor, min(1 << 20, maximum + 1 - len(content)))
            if not piece:
                return bytes(content)
            content += piece
            if len(content) > maximum:
                raise StoredFileError(path, f"more than {maximum:,} bytes")
    finally:
        os.close(descriptor)


def read_text(path: Path | str, maximum: int) -> str:
    """The text of a regular file.

    Raises:
        OSError: missing, or no permission.
        StoredFileError: see `read_bytes`; or not UTF-8.
    """
    return _text(read_bytes(path, maximum), path)


def _text(data: bytes, path: Path | str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StoredFileError(path, "not UTF-8 text; save it as UTF-8") from None


def bytes_given(path: Path, option: str, maximum: int = MAX_SECRET) -> bytes:
    """The content of a small file that an option names, or of a pipe such as `--token-file <(pass show m3bind)`.

    Raises:
        ConfigError: unreadable, too long, or a pipe that does not end; names option and file.
    """
    try:
        return _read(path, maximum, PIPE)
    except StoredFileError as error:
        reason = error.reason
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = in_words(error)
    raise ConfigError(f"{option}: {path} cannot be read ({reason})")


def read_given(path: Path, option: str, maximum: int = MAX_SECRET) -> str:
    """The text of a small file or pipe that an option names.

    Raises:
        ConfigError: see `bytes_given`; or not UTF-8.
    """
    try:
        return _text(bytes_given(path, option, maximum), path)
    except StoredFileError as error:
        raise ConfigError(f"{option}: {path} cannot be read ({error.reason})") from None


def lines_given(path: Path, option: str) -> list[str]:
    """The non-empty lines of a list that an option names.

    Raises:
        ConfigError: see `read_given`.
    """
    return [line for line in read_given(path, option, MAX_LIST).splitlines() if line.strip()]


def read_json(path: Path | str, maximum: int = MAX_JSON) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: missing, or no permission.
        StoredFileError: see `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, maximum), path)


def parse_json(text: bytes | str, path: Path | str) -> Any:
    """The value of JSON text; `path` is the file that errors name.

    Raises:
        StoredFileError: not JSON, nested too deeply, or a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        raise StoredFileError(path, str(error)) from None
    except json.JSONDecodeError as error:
        raise StoredFileError(path, f"not valid JSON ({error.msg}, line {error.lineno})") from None
    except (RecursionError, ValueError) as error:  # too deep; not UTF-8, or a number of thousands of digits
        deep = isinstance(error, RecursionError)
        raise StoredFileError(path, "nested too deeply" if deep else "not valid JSON (bytes or numbers)") from None


class _DuplicateKeyError(ValueError):
    """Parsers differ in which of two equal keys they take."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _DuplicateKeyError(f"the key {key[:40]!r} occurs twice in one object")
    return values


def read_yaml(path: Path | str) -> Any:
    """The value in a YAML file, of plain types only.

    Raises:
        OSError: missing, or no permission.
        StoredFileError: see `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, MAX_YAML), path)


def parse_yaml(text: str, path: Path | str) -> Any:
    """The value of YAML text, of plain types only; `path` is the file that errors name.

    Raises:
        StoredFileError: not YAML, a tag that creates objects, nested too deeply, or too large with aliases expanded.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_NODES:
            raise StoredFileError(path, f"more than {MAX_NODES:,} values (aliases counted as the nodes they refer to)")
        return loader.construct_document(node)
    except StoredFileError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise StoredFileError(path, f"not valid YAML ({error.problem}{line})") from None
    except RecursionError:
        raise StoredFileError(path, "nested too deeply, or contains itself") from None
    except Exception as error:  # PyYAML's constructors raise anything for a value that does not fit its tag
        raise StoredFileError(path, "not valid YAML (a value that cannot be read)") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_parquet(path: Path, maximum: int) -> Any:
    """A Parquet table as Arrow, without the metadata of other programs.

    One stored text may fill every row: texts are read dictionary-encoded and expanded once their total size is known.

    Raises:
        StoredFileError: not a regular file, too many columns, or it unpacks to more than `maximum` bytes.
        Exception: pyarrow raises many types for files that are not such a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise StoredFileError(path, "not a plain file")
    with pq.ParquetFile(path) as file:
        if file.metadata.num_columns > _MAX_COLUMNS:
            raise StoredFileError(path, f"{file.metadata.num_columns:,} columns, more than {_MAX_COLUMNS:,}")
        schema, groups = file.schema_arrow, [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
    texts = [field.name for field in schema if _is_text(field.type)]
    width = sum(_width(field.type) for field in schema if field.name not in texts)
    rows = sum(group.num_rows for group in groups)
    if sum(group.total_byte_size for group in groups) > maximum or width * rows > maximum:
        raise StoredFileError(path, f"unpacks to more than {maximum:,} bytes")
    nested = any(not _is_text(field.type) and not _width(field.type) for field in schema)
    largest = max((group.total_byte_size for group in groups), default=0) if nested else width
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        batches = []
        left = maximum
        for batch in file.iter_batches(min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(largest, 1)))):
            left -= sum(map(_unpacked, batch.columns))
            if left < 0:
                raise StoredFileError(path, f"unpacks to more than {maximum:,} bytes")
            batches.append(batch)
    table = pa.Table.from_batches(batches) if batches else schema.empty_table()
    return table.cast(schema).replace_schema_metadata(None)


def _is_text(kind: Any) -> bool:
    """Whether values of an Arrow type are texts or bytes of variable length."""
    import pyarrow.types as kinds

    checks = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
    return any(check(kind) for check in checks)


def _width(kind: Any) -> int:
    """Bytes of a value of an Arrow type, 0 if they vary."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 0


def _unpacked(column: Any) -> int:
    """Bytes of an Arrow array once its dictionary is expanded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, pa.DictionaryArray):
        return int(column.nbytes)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return 8 * len(column) + (pc.sum(lengths.take(column.indices)).as_py() or 0)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of nodes from a node down, aliases expanded; RecursionError if it contains itself."""
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
    """A plain value validated as a dataclass, a pydantic model, or an annotated type.

    Raises:
        StoredFileError: names the key that is missing or invalid.
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
    """Raise ValueError for values that are nested too deeply or too large, and for numbers that are not finite."""
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
            raise ValueError(f"{item} is not a finite number")


def inside(folder: Path | str, name: str) -> Path:
    """The path of `name` in `folder`.

    Links of a snapshot in the hub's cache into the `blobs` beside `snapshots` are allowed.

    Raises:
        ValueError: the name is absolute, contains `..`, or is a link that leads out of the folder.
    """
    folder = Path(folder)
    relative = PurePosixPath(name)
    if not name or relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a path inside the folder")
    path, root = folder / relative, folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        target = path.resolve()
    except (RuntimeError, OSError):  # a cycle of links
        raise ValueError(f"{name!r} is a link that leads to itself") from None
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise ValueError(f"{name!r} is a link that leads out of the folder; copy the file into it")
    return path
