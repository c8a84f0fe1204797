"""Answers of several parts (multipart/related), written to disk as they come.

* `parts_to_files`: each part as a file of a folder, one after the other.

In memory is one block and the head of a part, whatever the server sends.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from m3bind.hospital.http import Passing, WebError

HEAD = 1 << 16  # bytes of a part's headers


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart answer.

    Raises:
        WebError: it is none.
    """
    found = re.search(r'boundary="?([^";,\s]{1,200})"?', content_type, re.IGNORECASE)
    if not content_type.lower().startswith("multipart/related") or not found:
        raise WebError("an answer that is not multipart/related; is this the DICOMweb root?")
    return found[1].encode("ascii", "replace")


def parts_to_files(blocks: Iterable[bytes], boundary: bytes, folder: Path, most: int) -> Iterator[Path | None]:
    """Write each part to a file of `folder` and yield it; None for one of more than `most` bytes, which is skipped.

    The caller removes a file when it has done with it.

    Raises:
        Passing: the answer ends before its last boundary.
        WebError: no multipart content.
    """
    source = iter(blocks)
    mark = b"\r\n--" + boundary
    data = _until(source, b"", b"--" + boundary)[1]
    number = 0
    while not data.startswith(b"--"):
        _, data = _until(source, data, b"\r\n\r\n", HEAD)
        path = folder / f"part{number:06d}.dcm"
        number += 1
        try:
            size, data = _copy(source, data, mark, path, most)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if size > most:
            path.unlink()
        yield path if size <= most else None


def _copy(source: Iterator[bytes], data: bytes, mark: bytes, path: Path, most: int) -> tuple[int, bytes]:
    """Write what stands before the next boundary, up to `most` bytes of it; its length, and what follows."""
    size = 0
    with open(path, "wb") as out:
        while True:
            at = data.find(mark)
            safe = data[:at] if at >= 0 else data[: max(0, len(data) - len(mark) + 1)]
            size += len(safe)
            if size <= most:
                out.write(safe)
            data = data[len(safe) :]
            if at >= 0:
                break
            data += _next(source)
    data = data[len(mark) :]
    while len(data) < 2:
        data += _next(source)
    return size, data


def _until(source: Iterator[bytes], data: bytes, end: bytes, most: int = HEAD) -> tuple[bytes, bytes]:
    """What stands before and after `end`, reading on until it comes."""
    while end not in data:
        if len(data) > most:
            raise WebError("a multipart answer without the boundary it announces")
        data += _next(source)
    before, _, after = data.partition(end)
    while len(after) < 2:
        after += _next(source)
    return before, after


def _next(source: Iterator[bytes]) -> bytes:
    for block in source:
        if block:
            return block
    raise Passing("an answer that ends early")
