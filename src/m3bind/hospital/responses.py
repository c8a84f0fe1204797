"""Answers of a DICOMweb server: their bytes, decompressed and bounded, and their faults without identifiers.

* `WebError`, `ServerFailureError`, `ServerUnavailableError`: a server that refuses, fails, or is absent.
  `TransientError`: worth a retry.
* `content`: the bytes of an answer. httpx decompresses without a limit on a block's output, so zlib is called here.
* `meaning`, `reason_of`, `printable`, `called`: a refusal as text. `seconds`: its Retry-After.
"""

import email.utils
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from m3bind.errors import M3BindError

if TYPE_CHECKING:
    from httpx import Response

VARIABLE = "M3BIND_DICOMWEB_AUTH"
BLOCK = 1 << 20  # decompressed bytes at a time
SAID, QUOTED = 4096, 160  # bytes of a server's reason that are read, characters that are quoted


class WebError(M3BindError):
    """A server that refuses, or whose answer cannot be used. The message has its address, never a path below."""

    def __init__(self, text: str, status: int = 0) -> None:
        """`status`: of the answer, 0 without one or if it does not fit the request."""
        super().__init__(text)
        self.status = status


class ServerFailureError(WebError):
    """A fault that may pass and did not: too slow, too busy, broken off; another request may go well."""


class ServerUnavailableError(M3BindError):
    """A server that cannot be reached after all tries; not a `WebError`, as it ends a run."""

    status = 0


class TransientError(Exception):
    """A fault that may pass; `after` is how many seconds the server asks for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def content(answer: "Response", maximum: int) -> Iterator[bytes]:
    """The bytes of an answer, decompressed in small pieces.

    Raises:
        TransientError: compressed, and damaged or cut short.
        WebError: more than `maximum`, or of an encoding that was not requested.
    """
    coding = answer.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise WebError("an answer with an encoding that was not requested; check the server's settings")
    size = 0
    for piece in answer.iter_raw() if coding in ("", "identity") else _unpacked(answer.iter_raw()):
        size += len(piece)
        if size > maximum:
            raise WebError(f"an answer of more than {maximum:,} bytes")
        yield piece


def _unpacked(blocks: Iterable[bytes]) -> Iterator[bytes]:
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for block in blocks:
            while piece := unpack.decompress(block, BLOCK):
                yield piece
                block = unpack.unconsumed_tail
    except zlib.error:
        raise TransientError("a compressed answer that is damaged") from None
    if not unpack.eof:
        raise TransientError("an answer that ends early")


def meaning(answer: "Response") -> str:
    """What a status means and what to do, and the server's reason."""
    import httpx

    status = answer.status_code
    if status in (401, 403):
        return f"; give credentials in {VARIABLE} or --auth-file"
    if 300 <= status < 400:
        return ", a redirection, which is not followed; give the address of the DICOMweb root itself"
    try:
        reason = reason_of(b"".join(content(answer, 1 << 14)), answer.headers.get("Content-Type", ""))
    except (TransientError, WebError, httpx.HTTPError):
        reason = ""
    quoted = f' ("{reason}")' if reason else ""
    return quoted + ("; check the address of the DICOMweb root" if status == 404 else "")


def seconds(text: str | None) -> float:
    """The seconds of a Retry-After, which is a number or a date; 0 for anything else."""
    text = (text or "")[:64].strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def reason_of(data: bytes, kind: str) -> str:
    """A server's reason as one short line: printable, without tags and possible identifiers."""
    textual = r"(text/(plain|html|xml)|application/([\w.-]+\+)?(json|xml))?\s*(;|$)"
    if not re.match(textual, kind.strip(), re.IGNORECASE):
        return ""
    text = data[:SAID].decode("utf-8", "replace")
    title = re.search(r"<title[^>]{0,99}>([^<]*)", text, re.IGNORECASE)
    return printable(title[1] if title else re.sub(r"<[^<>]*>", " ", text))


def printable(text: str) -> str:
    """One short line of a text, without numbers of four or more digits and without words in the form of DICOM names."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[:SAID]).replace('"', "'")
    text = re.sub(r"[0-9][0-9.\-]{3,}", "...", " ".join("..." if "^" in word else word for word in text.split()))
    return text if len(text) <= QUOTED else text[: QUOTED - 3] + "..."


def called(kind: str) -> str:
    """A content type as text."""
    kind = kind.partition(";")[0].strip().lower()
    return "a web page" if kind in ("text/html", "application/xhtml+xml") else f"{printable(kind) or 'something else'}"
