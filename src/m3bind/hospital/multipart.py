"""Objects of an answer, written to disk as they arrive.

* `objects_to_files`: of an answer with one object, or with several parts (multipart/related).
* `boundary_of`: the boundary in a content type. * `parts_to_files`: each part as a file of a folder, in order.

Memory holds one block and the head of a part, whatever the server sends. Deviations of real servers are accepted:
boundaries with blanks or commas, quoted or not, or not announced at all; lines that end in LF only; text before the
first boundary; parts without a head. `email` would need the whole answer in memory, and python-multipart (of the
extra `serve`) refuses these deviations, so the parser is our own.
"""

import re
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path

from m3bind.hospital.responses import TransientError, WebError

HEAD = 1 << 16  # bytes of a part's headers
PARTS = 100_000  # of an answer
LONGEST = 1000  # characters of a content type, and more than any boundary with its line has
_UNDECIDED = re.compile(rb"[ \t]{0,64}\r?|-")  # what may follow a boundary, cut short
_SINGLE = ("application/dicom", "application/octet-stream")


def objects_to_files(
    blocks: Iterable[bytes], content_type: str, folder: Path, maximum: int, parts: int = PARTS
) -> Iterator[Path | None]:
    """Write each object of an answer to a file of `folder` and yield it; None for one of more than `maximum` bytes.

    The caller removes each file after use.

    Raises:
        TransientError: the answer ends before its last boundary.
        WebError: no objects, or more than `parts`.
    """
    if content_type.partition(";")[0].strip().lower() in _SINGLE:
        path = folder / "part000000.dcm"
        size, _ = _written(((block, True) for block in blocks), path, maximum)
        yield path if size <= maximum else None
    else:
        yield from parts_to_files(blocks, boundary_of(content_type), folder, maximum, parts)


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart answer, b"" if it is not announced.

    Raises:
        WebError: the answer is not multipart.
    """
    message = Message()
    message["Content-Type"] = "".join(letter for letter in content_type[:LONGEST] if letter.isprintable())
    if message.get_content_maintype() != "multipart":
        raise WebError("an answer that holds no DICOM objects (not multipart/related); is this the DICOMweb root?")
    return (message.get_boundary() or "").encode("ascii", "replace")


def parts_to_files(
    blocks: Iterable[bytes], boundary: bytes, folder: Path, maximum: int, parts: int = PARTS
) -> Iterator[Path | None]:
    """`objects_to_files` of an answer of several parts; `boundary` b"": that of its first line."""
    source = _Source(blocks)
    mark, newline = _first(source, boundary)
    for number in range(parts if newline else 0):
        source.head(newline)
        path = folder / f"part{number:06d}.dcm"
        size, last = _written(source.part(newline + mark, newline), path, maximum)
        yield path if size <= maximum else None
        if last:
            return
    if newline:
        raise WebError(f"an answer of more than {parts:,} parts")


def _written(pieces: Iterable[tuple[bytes, bool]], path: Path, maximum: int) -> tuple[int, bool]:
    """Write up to `maximum` bytes, or no file if there are more; the bytes received, and the last piece's flag."""
    size, last = 0, True
    try:
        with open(path, "wb") as out:
            for piece, ends in pieces:
                size, last = size + len(piece), ends
                if size <= maximum:
                    out.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if size > maximum:
        path.unlink()
    return size, last


def _first(source: "_Source", boundary: bytes) -> tuple[bytes, bytes]:
    """Read to the end of the first boundary; it and the line ending, b"" if it is the last boundary as well."""
    mark = rb"(--" + re.escape(boundary) + rb")(?:[ \t]{0,64}(\r?\n)|--)"
    first = re.compile(rb"(?:^|\n)" + (mark if boundary else rb"(--[!-~]{1,200})[ \t]{0,64}(\r?\n)"))
    found = source.until(first, "an answer that ends without the boundary it announces")
    return found[1], found[2] or b""


class _Source:
    """Bytes that arrive in blocks, and those that are not used yet."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self.data = iter(blocks), b""

    def more(self, otherwise: str = "an answer that ends early") -> None:
        """Read the next block. TransientError: the answer has ended."""
        for block in self._blocks:
            if block:
                self.data += block
                return
        raise TransientError(otherwise)

    def until(self, mark: re.Pattern[bytes], otherwise: str = "an answer that ends early") -> re.Match[bytes]:
        """Drop all bytes up to the end of `mark`. WebError: it is missing."""
        start = 0
        while (found := mark.search(self.data, start)) is None:
            start = max(0, len(self.data) - LONGEST)
            if len(self.data) > HEAD:
                raise WebError("a multipart answer without the boundary it announces, or a part's head without end")
            self.more(otherwise)
        self.data = self.data[found.end() :]
        return found

    def head(self, newline: bytes) -> None:
        """Drop the head of a part, which may be empty."""
        while len(self.data) < len(newline):
            self.more()
        if self.data.startswith(newline):
            self.data = self.data[len(newline) :]
        else:
            self.until(re.compile(re.escape(newline * 2)))

    def part(self, start: bytes, newline: bytes) -> Iterator[tuple[bytes, bool]]:
        """The bytes before the next boundary; with the last piece, whether that boundary is the last."""
        after = re.compile(rb"[ \t]{0,64}" + newline + rb"|--")
        while True:
            at = self.data.find(start)
            length = at if at >= 0 else max(0, len(self.data) - len(start) + 1)
            piece, self.data = self.data[:length], self.data[length:]
            if at < 0:
                yield piece, False
                self.more()
                continue
            while _UNDECIDED.fullmatch(self.data, len(start)):
                self.more()
            found = after.match(self.data, len(start))
            if found:
                self.data = self.data[found.end() :]
                yield piece, found[0] == b"--"
                return
            yield piece + self.data[:1], False  # only the same first bytes as a boundary
            self.data = self.data[1:]
