"""What a DICOMweb server answers: its bytes, unpacked and bounded, and its faults in words that name nobody.

* `WebError`, `Failing`, `ServerUnavailableError`, `TransientError` (worth a retry): what can fail.
* `content`: the bytes of an answer. * `meaning`, `reason_of`, `called`, `seconds`: what a refusal says.
"""

import email.utils
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from m3bind.errors import M3BindError

VARIABLE = "M3BIND_DICOMWEB_AUTH"
BLOCK = 1 << 20  # bytes that are unpacked at a time
SAID, QUOTED = 4096, 160  # bytes of a server's reason that are looked at, characters that are quoted


class WebError(M3BindError):
    """A server that says no, or what nobody can use. The message has its address, never a path below."""

    def __init__(self, text: str, status: int = 0) -> None:
        """`status`: of the answer, 0 where there was none or it was no answer to the question."""
        super().__init__(text)
        self.status = status


class Failing(WebError):
    """A fault that may pass and did not: too slow, too busy, broken off; another request may go well."""


class ServerUnavailableError(WebError):
    """A server that cannot be reached, however often it was tried."""


class TransientError(Exception):
    """A fault that may pass; `after` is how many seconds the server asks for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def content(answer: Any, most: int) -> Iterator[bytes]:
    """The bytes of an answer, unpacked in small pieces.

    Raises:
        TransientError: packed, and damaged or cut short.
        WebError: more than `most`, or packed in a way that was not asked for.
    """
    coding = answer.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise WebError("an answer packed in a way that was not asked for; look at the server's settings")
    size = 0
    for piece in answer.iter_raw() if coding in ("", "identity") else _unpacked(answer.iter_raw()):
        size += len(piece)
        if size > most:
            raise WebError(f"an answer of more than {most:,} bytes")
        yield piece


def _unpacked(blocks: Iterable[bytes]) -> Iterator[bytes]:
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for block in blocks:
            while piece := unpack.decompress(block, BLOCK):
                yield piece
                block = unpack.unconsumed_tail
    except zlib.error:
        raise TransientError("a packed answer that is damaged") from None
    if not unpack.eof:
        raise TransientError("an answer that ends early")


def meaning(answer: Any) -> str:
    """What a status means and what to do, and the reason that came with it."""
    import httpx

    status = answer.status_code
    if status in (401, 403):
        return f"; give credentials in {VARIABLE} or --auth-file"
    if 300 <= status < 400:
        return ", a redirection, which is not followed; give the address of the DICOMweb root itself"
    try:
        said = reason_of(b"".join(content(answer, 1 << 14)), answer.headers.get("Content-Type", ""))
    except (TransientError, WebError, httpx.HTTPError):
        said = ""
    told = f' ("{said}")' if said else ""
    return told + ("; check the address of the DICOMweb root" if status == 404 else "")


def seconds(text: str | None) -> float:
    """What Retry-After asks for: a number of seconds or a date; 0 for anything else."""
    text = (text or "")[:64].strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def reason_of(data: bytes, kind: str) -> str:
    """A server's reason as one short line: printable, without tags and without what may be an identifier."""
    if not re.match(
        r"(text/(plain|html|xml)|application/([\w.-]+\+)?(json|xml))?\s*(;|$)", kind.strip(), re.IGNORECASE
    ):
        return ""
    text = data[:SAID].decode("utf-8", "replace")
    title = re.search(r"<title[^>]{0,99}>([^<]*)", text, re.IGNORECASE)
    return printable(title[1] if title else re.sub(r"<[^<>]*>", " ", text))


def printable(text: str) -> str:
    """One short line of a text, without numbers of four digits and more and without what is written like a name."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[:SAID]).replace('"', "'")
    text = re.sub(r"[0-9][0-9.\-]{3,}", "...", " ".join("..." if "^" in word else word for word in text.split()))
    return text if len(text) <= QUOTED else text[: QUOTED - 3] + "..."


def called(kind: str) -> str:
    """A content type in words."""
    kind = kind.partition(";")[0].strip().lower()
    return "a web page" if kind in ("text/html", "application/xhtml+xml") else f"{printable(kind) or 'something else'}"
