"""A multipart body into files of a private folder as it arrives: memory never holds more than a piece of it.

* `receive`: a request's body -> `Form`, its files and fields. The parser is python-multipart's; Starlette's forms
  would drop the files' names and write them to the system's temporary folder.

Names are reduced to plain letters, so that none leaves the folder; a WFDB header still finds its signals by name.
"""

import re
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from m3bind.serve.errors import Refusal

FIELD_BYTES = 1024  # of a field that is not a file
HEADER_BYTES = 4096  # of the head of one part
NAME_CHARS = 100


@dataclass
class Form:
    """The received files in order of arrival, and fields."""

    files: list[Path] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


class _Receiver:
    """Callbacks of the parser."""

    def __init__(self, folder: Path, max_files: int) -> None:
        self.form, self._folder, self._max_files, self.complete = Form(), folder, max_files, False
        self._head, self._name, self._value = 0, b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._file: IO[bytes] | None = None
        self._field, self._text = "", b""

    def callbacks(self) -> dict[str, object]:
        """By the names of the parser."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        return {f"on_{name}": getattr(self, name) for name in (*names, "headers_finished", "end")}

    def end(self) -> None:
        self.complete = True

    def part_begin(self) -> None:
        self._headers, self._head, self._name, self._value, self._text = {}, 0, b"", b"", b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count(end - start)

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def _count(self, n: int) -> None:
        self._head += n
        if self._head > HEADER_BYTES:
            raise _malformed()

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise _malformed()
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in (b"binary", b"8bit", b"7bit"):
            raise Refusal(415, "encoded", "Send the bytes of a file without a transfer encoding.")
        self._field = options[b"name"].decode("utf-8", "replace")
        if b"filename" not in options:
            return
        if len(self.form.files) >= self._max_files:
            raise Refusal(413, "too_many_files", f"The maximum is {self._max_files} files in one upload.")
        path = self._folder / self._plain(options[b"filename"].decode("utf-8", "replace"))
        self._file = open(path, "xb")  # noqa: SIM115  closed at the end of the part
        self.form.files.append(path)

    def _plain(self, name: str) -> str:
        """A free name in the folder."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", re.split(r"[/\\]", name)[-1])[-NAME_CHARS:].lstrip(".-_")
        plain, number = plain or "file", 0
        while (self._folder / (name := f"{number}_{plain}" if number else plain)).exists():
            number += 1
        return name

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise Refusal(413, "too_large", f"The field is longer than {FIELD_BYTES} bytes.")

    def part_end(self) -> None:
        if self._file is not None:
            self.close()
        elif len(self.form.fields) < 16:
            self.form.fields[self._field] = self._text.decode("utf-8", "replace")

    def close(self) -> None:
        """Close the current file."""
        if self._file is not None:
            self._file.close()
            self._file = None


async def receive(content_type: str, body: AsyncIterable[bytes], folder: Path, max_files: int) -> Form:
    """Write the files of a multipart body into `folder`.

    Raises:
        Refusal: not multipart, malformed, without a file, or over a limit.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(415, "no_form", "Send files as multipart/form-data with a boundary.")
    receiver = _Receiver(folder, max_files)
    try:
        parser = MultipartParser(options[b"boundary"], receiver.callbacks())  # type: ignore[arg-type]
        async for piece in body:
            parser.write(piece)
        parser.finalize()
    except (FormParserError, ValueError):
        raise _malformed() from None
    finally:
        receiver.close()
    if not receiver.complete:
        raise _malformed()
    if not receiver.form.files:
        raise Refusal(400, "no_file", "This upload has no file; name the parts 'file'.")
    return receiver.form


def _malformed() -> Refusal:
    return Refusal(400, "malformed", "The body is not well-formed multipart/form-data; send it again.")
