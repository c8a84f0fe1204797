"""Requests to a DICOMweb server that may be slow, busy, broken or gone for a while, or that lies.

* `Web`: a base address with credentials; `search` and `request` try again, with growing pauses, where that can help.
* `Bounds`: what a server may cost.
* `authorization`: the credentials, from a file or the environment, never from the command line.

Every answer ends: no byte for some seconds, fewer bytes per second than a modem sends, more bytes or time than
allowed end its connection, whatever part of it is waited for (`m3bind.hospital.watch`).
"""

import json
import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from m3bind.core.stored import read_given
from m3bind.errors import ConfigError
from m3bind.hospital.answers import (
    VARIABLE,
    Failing,
    ServerUnavailableError,
    TransientError,
    WebError,
    called,
    content,
    meaning,
    printable,
    seconds,
)
from m3bind.hospital.watch import AnswerTimer

PAUSE, LONGEST = 0.5, 30.0  # seconds: the first pause, and the longest
OPENED = 1_000_000  # brackets of a JSON answer: what it may cost in memory
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_ROOT = "is this the DICOMweb root, and does it want a login?"
_OWN = ("127.0.0.1", "::1", "localhost")
T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """What a server may cost."""

    tries: int = 5  # of a request; two where it does not answer at all
    silence: float = 60.0  # seconds without a byte
    rate: float = 1000.0  # bytes per second, on average after twice as long
    seconds: float = 3600.0  # of one request, all tries together
    answer: int = 32 << 20  # bytes of a JSON answer
    pages: int = 10_000  # of a search
    parts: int = 100_000  # of an answer of several parts


@dataclass(frozen=True)
class Page:
    """What a search answered."""

    items: list[dict[str, Any]]
    more: bool  # the server says that there is more


def authorization(file: Path | None = None) -> str:
    """The value of the header Authorization ("Bearer ...", "Basic ..."), from `file` or M3BIND_DICOMWEB_AUTH; or "".

    Raises:
        ConfigError: the file is missing or empty, or the value is none that a header can hold.
    """
    text = (read_given(file, "--auth-file") if file else os.environ.get(VARIABLE, "")).strip()
    where = file or VARIABLE
    if file and not text:
        raise ConfigError(f"{file}: empty; write the value of the header Authorization into it")
    if text and not re.fullmatch(r"[\x20-\x7e]+", text):
        raise ConfigError(f"{where}: not one line of plain characters; give the value of the header Authorization")
    return text


class Web:
    """A server. Redirects are not followed, certificates are checked.

    Proxies of the environment (HTTPS_PROXY, NO_PROXY) are used for https to other machines only, where they see neither
    credentials nor objects; http goes straight to the address that was given.
    """

    def __init__(
        self, url: str, auth: str = "", bounds: Bounds | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """`url`: of the DICOMweb root, e.g. http://127.0.0.1:8042/dicom-web. `tls`: own certificates, or whom to trust.

        Raises:
            ConfigError: no such address, credentials that would travel unencrypted to another machine, or settings of a
                proxy in the environment that cannot be used.
        """
        import httpx

        self.bounds = bounds or Bounds()
        host, secure = _address(url)
        if auth and not secure and host not in _OWN:
            raise ConfigError(f"{host}: credentials go over https only; use an https address")
        self.host, self._url = urlsplit(url).netloc, url.rstrip("/")
        self._stream: Any = None  # of the newest connection, for who ends it
        try:
            self._client = httpx.Client(
                headers={"Authorization": auth} if auth else {},
                timeout=self.bounds.silence,
                follow_redirects=False,
                trust_env=secure and host not in _OWN,
                verify=tls or True,
                limits=httpx.Limits(max_connections=1),
            )
        except (ValueError, ImportError, httpx.InvalidURL, OSError) as error:
            raise ConfigError(f"the environment's proxies or certificates cannot be used ({error})") from None

    def search(self, path: str, query: Mapping[str, Any] | None = None, tries: int = 0) -> Page:
        """What a search answers; nothing for 204. What is no object of the list is an empty one.

        Raises:
            WebError: no such answer, after all tries.
        """

        def read(answer: Any) -> Page:
            data = b"".join(content(answer, self.bounds.answer))
            said = answer.headers.get("Warning", "")
            more = answer.status_code == 206 or (said.strip().startswith("299") and "additional results" in said)
            return Page(self._listed(data, answer.headers.get("Content-Type", "")), more)

        headers = {"Accept": "application/dicom+json", "Accept-Encoding": "gzip"}
        return self.request("GET", path, read, headers, query, tries=tries)

    def _listed(self, data: bytes, kind: str) -> list[dict[str, Any]]:
        if not data.strip():
            return []
        if data.count(b"{") + data.count(b"[") > OPENED:
            raise WebError(f"{self.host}: a search answer of more than {OPENED:,} entries; lower --page")
        try:
            found = json.loads(data.decode(json.detect_encoding(data), "replace"), parse_int=_integer)
        except (ValueError, RecursionError):
            raise WebError(f"{self.host}: answers {called(kind)} in place of DICOM JSON; {_ROOT}") from None
        if not isinstance(found, list):
            raise WebError(f"{self.host}: an answer that is no list; {_ROOT}")
        return [item if isinstance(item, dict) else {} for item in found]

    def request(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        also: tuple[int, ...] = (),
        tries: int = 0,
        end: float = 0.0,
    ) -> T:
        """What `read` makes of an answer's stream, tried again where a fault may pass (also one inside `read`).

        Args:
            method: GET or POST.
            path: below the root.
            read: takes an answer of status 200, 204 or 206, or of one in `also`.
            headers: of the request, beside the credentials.
            query: parameters.
            body: bytes to send.
            also: other statuses that `read` understands.
            tries: in place of those of the bounds.
            end: `time.monotonic()` at which it is over; 0: the seconds of the bounds from now.

        Raises:
            WebError: the server says no.
            Failing: a fault that could have passed.
            ServerUnavailableError: it cannot be reached.
        """
        import httpx

        end = end or time.monotonic() + self.bounds.seconds
        pause, silent = PAUSE, 0
        for attempt in range(1, (tries or self.bounds.tries) + 1):
            try:
                return self._once(method, path, read, headers, query, body, (200, 204, 206, *also), end)
            except (httpx.HTTPError, httpx.InvalidURL, TransientError) as error:
                self._refuse_at_once(error)
                reason, kind = _said(error, self.bounds)
                silent += isinstance(error, httpx.TimeoutException)
                wait = max(getattr(error, "after", 0.0), pause * (0.5 + random.random()))
                wait = min(wait, LONGEST)
                if attempt == (tries or self.bounds.tries) or silent == 2 or time.monotonic() + wait > end:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise kind(f"{self.host}: {reason}, {times}; look at the server, then go on") from None
                logging.getLogger(__name__).info("%s: %s; again in %.1f s", self.host, reason, wait)
                time.sleep(wait)
                pause *= 2
        raise AssertionError

    def _once(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        headers: Mapping[str, str] | None,
        query: Mapping[str, Any] | None,
        body: bytes | None,
        good: tuple[int, ...],
        end: float,
    ) -> T:
        import httpx

        with AnswerTimer(2 * self.bounds.silence, self.bounds.rate, end, self._stream) as watch:
            try:
                with self._client.stream(
                    method,
                    f"{self._url}/{path}",
                    headers=headers,
                    params=query,
                    content=body,
                    extensions={"trace": watch.trace},
                ) as answer:
                    watch.answer = answer
                    status = answer.status_code
                    if status in good:
                        return read(answer)
                    if status in _PASSING:
                        raise TransientError(
                            f"status {status}{meaning(answer)}", seconds(answer.headers.get("Retry-After"))
                        )
                    raise WebError(f"{self.host}: answers {status}{meaning(answer)}", status)
            except (httpx.HTTPError, TransientError, WebError):
                if watch.late:
                    raise Failing(f"{self.host}: {watch.late}") from None
                raise
            finally:
                self._stream = watch.stream

    def _refuse_at_once(self, error: BaseException) -> None:
        """Raise what another try cannot mend."""
        import httpx

        found = next((one for one in _causes(error) if isinstance(one, ssl.SSLError)), None)
        if isinstance(found, ssl.SSLCertVerificationError):
            raise WebError(
                f"{self.host}: its certificate is not trusted ({found.verify_message}); name the certificates that "
                "sign it with --tls-ca FILE, and call the server by a name that stands in its certificate"
            ) from None
        if found is not None and (isinstance(error, httpx.ConnectError) or "CERTIFICATE" in str(found.reason)):
            said = str(found.reason).lower().replace("_", " ")
            raise WebError(
                f"{self.host}: no TLS connection ({said}); is it an http address, or does the server ask for a "
                "certificate (--tls-cert, --tls-key)?"
            ) from None
        if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
            raise WebError(f"{self.host}: the request cannot be sent ({error})") from None
        if isinstance(error, httpx.ProxyError):
            raise WebError(f"{self.host}: the proxy of the environment refuses ({printable(str(error))})") from None

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _address(url: str) -> tuple[str, bool]:
    """(host, whether by https) of an address.

    Raises:
        ConfigError: it is none.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        raise ConfigError("no address; give a DICOMweb address, https://HOST:PORT/PATH") from None
    if not good or not parts.hostname or parts.username or parts.query or parts.fragment or " " in url:
        raise ConfigError(
            f"{parts.scheme}: give a DICOMweb address, https://HOST/PATH, without a user name or question"
        )
    return parts.hostname, parts.scheme == "https"


def _integer(digits: str) -> int:
    """A number of a JSON answer; -1 in place of one that nobody counts to."""
    return int(digits) if len(digits) <= 18 else -1


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException, bounds: Bounds) -> tuple[str, type[WebError]]:
    """A fault of a connection in words, and what it is."""
    import httpx

    if isinstance(error, TransientError):
        return str(error), Failing
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {bounds.silence:g} s", ServerUnavailableError
    if isinstance(error, httpx.ConnectError):
        told = next((one.strerror for one in _causes(error) if isinstance(one, OSError) and one.strerror), "refused")
        return f"no connection ({told})", ServerUnavailableError
    if isinstance(error, httpx.TimeoutException):
        return f"no byte for {bounds.silence:g} s", Failing
    if isinstance(error, httpx.ProtocolError):
        return "an answer that is broken off, or no HTTP", Failing
    return "the connection broke", Failing
