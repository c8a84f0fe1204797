"""Requests to a DICOMweb server that may be slow, busy or gone for a while.

* `Web`: a base address with credentials; `json` and `stream` try again, with growing pauses, where that can help.
* `authorization`: the credentials, from a file or the environment, never from the command line.
"""

import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from m3bind.errors import ConfigError, M3BindError, in_words

VARIABLE = "M3BIND_DICOMWEB_AUTH"
TRIES = 5
PAUSE, LONGEST = 0.5, 30.0  # seconds: the first pause, and the longest
ANSWER = 32 << 20  # bytes of a JSON answer
_PASSING = (408, 425, 429, 500, 502, 503, 504)
T = TypeVar("T")


class WebError(M3BindError):
    """A server that does not answer, or says no; the message has its address, never a path below."""


class Gone(WebError):
    """A server that did not answer, however often it was asked."""


class Passing(Exception):
    """A fault that may pass; `after` is how many seconds the server asks for."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def authorization(file: Path | None = None) -> str:
    """The value of the header Authorization ("Bearer ...", "Basic ..."), from `file` or M3BIND_DICOMWEB_AUTH; or "".

    Raises:
        ConfigError: the file is missing or empty.
    """
    if file is None:
        return os.environ.get(VARIABLE, "").strip()
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: no credentials can be read from it ({in_words(error)})") from error
    if not text:
        raise ConfigError(f"{file}: empty; write the value of the header Authorization into it")
    return text


class Web:
    """A server. Redirects are not followed, certificates are checked."""

    def __init__(self, url: str, auth: str = "", timeout: float = 60.0, tries: int = TRIES) -> None:
        """`url`: of the DICOMweb root, e.g. http://127.0.0.1:8042/dicom-web.

        Raises:
            ConfigError: no such address, or credentials that would travel unencrypted to another machine.
        """
        import httpx

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(f"{parts.scheme}: give a DICOMweb address, https://HOST/PATH, without a user name")
        if auth and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(f"{parts.hostname}: credentials go over https only; use an https address")
        self.host, self._tries, self._url = parts.netloc, tries, url.rstrip("/")
        headers = {"Authorization": auth} if auth else {}
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def json(self, path: str, query: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The list a search answers; [] for 204.

        Raises:
            WebError: no such answer, after all tries.
        """

        def read(answer: Any) -> list[dict[str, Any]]:
            data = bytearray()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > ANSWER:
                    raise WebError(f"{self.host}: a search answer of more than {ANSWER:,} bytes; lower --page")
            try:
                found = json.loads(bytes(data)) if data else []
            except ValueError:
                raise WebError(f"{self.host}: an answer that is no JSON; is this the DICOMweb root?") from None
            if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
                raise WebError(f"{self.host}: an answer that is no list; is this the DICOMweb root?")
            return found

        return self.request("GET", path, read, {"Accept": "application/dicom+json"}, query)

    def request(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
    ) -> T:
        """What `read` makes of an answer's stream, tried again where a fault may pass (also one inside `read`).

        Raises:
            WebError: the server says no.
        Gone: it does not answer after all tries.
        """
        import httpx

        pause = PAUSE
        for attempt in range(1, self._tries + 1):
            try:
                with self._client.stream(
                    method, f"{self._url}/{path}", headers=headers, params=query, content=body
                ) as answer:
                    if answer.status_code in _PASSING:
                        raise Passing(f"status {answer.status_code}", _seconds(answer.headers.get("Retry-After")))
                    if answer.status_code not in (200, 202, 204, 206):
                        raise WebError(f"{self.host}: answers {answer.status_code}{_meaning(answer.status_code)}")
                    return read(answer)
            except (httpx.TransportError, httpx.DecodingError, Passing) as error:
                reason = str(error) if isinstance(error, Passing) else _broken(error)
                if attempt == self._tries:
                    raise Gone(f"{self.host}: {reason}, {attempt} times; look at the server, then go on") from None
                wait = max(getattr(error, "after", 0.0), pause * (0.5 + random.random()))
                logging.getLogger(__name__).info("%s: %s; again in %.1f s", self.host, reason, wait)
                time.sleep(min(wait, LONGEST))
                pause *= 2
        raise AssertionError

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdigit() else 0.0


def _broken(error: Exception) -> str:
    """What broke, in words."""
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    if isinstance(error, httpx.NetworkError | httpx.ProxyError):
        return "the connection broke"
    return "its answer is not proper HTTP"


def _meaning(status: int) -> str:
    if status in (401, 403):
        return f"; give credentials in {VARIABLE} or --auth-file"
    return "; check the address of the DICOMweb root" if status == 404 else ""
