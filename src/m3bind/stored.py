"""Reading small files that m3bind wrote, in a folder that anybody may have made or changed.

* `read_bytes`: of a plain file, bounded. * `read_json`, `read_yaml`, `parse_yaml`: plain values, bounded.
* `checked`: plain values as the type they must have; names the key that does not fit.

Everything that is wrong with such a file is a `StoredFileError` that names it.
"""

import json
import stat
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from m3bind.errors import M3BindError

T = TypeVar("T")
MOST_JSON, MOST_YAML = 256 << 20, 256 << 10  # bytes of a file
MOST_NODES = 200_000  # of a YAML file, what stands for other nodes counted with all of these


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
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise StoredFileError(path, "not a plain file")
    if status.st_size > most:
        raise StoredFileError(path, f"{status.st_size:,} bytes, more than {most:,}")
    return Path(path).read_bytes()


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
        StoredFileError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StoredFileError(path, f"not valid JSON ({error.msg}, line {error.lineno})") from None
    except (RecursionError, ValueError) as error:  # too deep; not UTF-8, or a number of thousands of digits
        deep = isinstance(error, RecursionError)
        raise StoredFileError(path, "nested too deeply" if deep else "not valid JSON (bytes or numbers)") from None


def read_yaml(path: Path | str) -> Any:
    """The value in a YAML file, of plain types only.

    Raises:
        OSError: it is missing, or refused.
        StoredFileError: see `read_bytes` and `parse_yaml`.
    """
    data = read_bytes(path, MOST_YAML)
    try:
        return parse_yaml(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError:
        raise StoredFileError(path, "not UTF-8 text; save it as UTF-8") from None


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
