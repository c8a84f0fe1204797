"""Requests to a DICOMweb server that may be slow, busy, broken, temporarily absent, or that returns false data.

* `Web`: a base address with credentials; `search` and `request` retry with growing pauses where that can help.
* `Request`: what is sent. * `Bounds`: what a server may cost. * `Page`: the result of a search.
* `authorization`: the credentials, from a file or the environment, never from the command line.

Every request ends: no byte for some seconds, a rate below a modem's, or more bytes or time than allowed close its
connection in any phase of the answer (`m3bind.hospital.answer_timer`). httpx limits only the time between two bytes and
retries only failed connections, so both are done here.
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
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from m3bind.core.stored import read_given
from m3bind.errors import ConfigError, M3BindError
from m3bind.hospital import responses
from m3bind.hospital.answer_timer import AnswerTimer
from m3bind.hospital.responses import VARIABLE, ServerFailureError, ServerUnavailableError, TransientError, WebError

if TYPE_CHECKING:
    from httpx import Response

PAUSE, LONGEST = 0.5, 30.0  # seconds: the first pause, and the longest
OPENED = 1_000_000  # brackets of a JSON answer, which bound its memory
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_ROOT = "is this the DICOMweb root, and does it want a login?"
_OWN = ("127.0.0.1", "::1", "localhost")
T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """What a server may cost."""

    tries: int = 5  # of a request; two if it does not answer at all
    silence: float = 60.0  # seconds without a byte
    rate: float = 1000.0  # bytes per second, on average after twice as long
    seconds: float = 3600.0  # of one request, all tries together
    answer: int = 32 << 20  # bytes of a JSON answer
    pages: int = 10_000  # of a search
    parts: int = 100_000  # of a multipart answer


@dataclass(frozen=True)
class Page:
    """One page of a search."""

    items: list[dict[str, Any]]
    more: bool  # the server reports further results


@dataclass(frozen=True)
class Request:
    """A request below the root; `also`: statuses beside 200, 204 and 206 that its reader accepts."""

    method: str  # GET or POST
    path: str
    headers: Mapping[str, str]  # beside the credentials
    query: Mapping[str, Any] | None = None
    body: bytes | None = None
    also: tuple[int, ...] = ()


def authorization(file: Path | None = None) -> str:
    """The value of the header Authorization ("Bearer ...", "Basic ..."), from `file` or M3BIND_DICOMWEB_AUTH; or "".

    Raises:
        ConfigError: the file is missing or empty, or the value is not valid in a header.
    """
    text = (read_given(file, "--auth-file") if file else os.environ.get(VARIABLE, "")).strip()
    if file and not text:
        raise ConfigError(f"{file}: empty; write the value of the header Authorization into it")
    if text and not re.fullmatch(r"[\x20-\x7e]+", text):
        where = file or VARIABLE
        raise ConfigError(f"{where}: not one line of plain characters; give the value of the header Authorization")
    return text


class Web:
    """A server. Redirects are not followed, certificates are checked.

    Proxies of the environment (HTTPS_PROXY, NO_PROXY) are used for https to other machines only, where they see neither
    credentials nor objects; http goes straight to the given address.
    """

    def __init__(
        self, url: str, auth: str = "", bounds: Bounds | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """`url`: the DICOMweb root, e.g. http://127.0.0.1:8042/dicom-web. `tls`: own and trusted certificates.

        Raises:
            ConfigError: an invalid address, credentials that would travel unencrypted to another machine, or unusable
                proxy settings in the environment.
        """
        import httpx

        self.bounds = bounds or Bounds()
        host, secure = _address(url)
        if auth and not secure and host not in _OWN:
            raise ConfigError(f"{host}: credentials go over https only; use an https address")
        self.host, self._url = urlsplit(url).netloc, url.rstrip("/")
        self._stream: Any = None  # of the newest connection, for the timer that closes it
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
        """The results of a search; none for 204. An entry that is not an object becomes an empty one.

        Raises:
            WebError: no such answer, after all tries.
        """

        def read(answer: "Response") -> Page:
            data = b"".join(responses.content(answer, self.bounds.answer))
            warning = answer.headers.get("Warning", "")
            more = answer.status_code == 206 or (warning.strip().startswith("299") and "additional results" in warning)
            return Page(self._listed(data, answer.headers.get("Content-Type", "")), more)

        headers = {"Accept": "application/dicom+json", "Accept-Encoding": "gzip"}
        return self.request(Request("GET", path, headers, query), read, tries)

    def _listed(self, data: bytes, kind: str) -> list[dict[str, Any]]:
        if not data.strip():
            return []
        if data.count(b"{") + data.count(b"[") > OPENED:
            raise WebError(f"{self.host}: a search answer of more than {OPENED:,} entries; lower --page")
        try:
            items = json.loads(
                data.decode(json.detect_encoding(data), "replace"),
                parse_int=lambda digits: int(digits) if len(digits) <= 18 else -1,  # long ones take quadratic time
            )
        except (ValueError, RecursionError):
            raise WebError(f"{self.host}: answers {responses.called(kind)} in place of DICOM JSON; {_ROOT}") from None
        if not isinstance(items, list):
            raise WebError(f"{self.host}: an answer that is not a list; {_ROOT}")
        return [item if isinstance(item, dict) else {} for item in items]

    def request(self, request: Request, read: Callable[["Response"], T], tries: int = 0, end: float = 0.0) -> T:
        """The result of `read` on an answer's stream, retried after faults that may pass (also inside `read`).

        Args:
            request: what to send.
            read: takes an answer of status 200, 204 or 206, or of one in `request.also`.
            tries: in place of those of the bounds.
            end: `time.monotonic()` of the deadline; 0: the seconds of the bounds from now.

        Raises:
            WebError: the server refuses.
            ServerFailureError: a fault that could have passed.
            ServerUnavailableError: it cannot be reached.
        """
        import httpx

        end, tries = end or time.monotonic() + self.bounds.seconds, tries or self.bounds.tries
        pause, silent = PAUSE, 0
        for attempt in range(1, tries + 1):
            try:
                return self._once(request, read, end)
            except (httpx.HTTPError, httpx.InvalidURL, TransientError) as error:
                self._refuse_at_once(error)
                reason, kind = _described(error, self.bounds)
                silent += isinstance(error, httpx.TimeoutException)
                wait = min(max(getattr(error, "after", 0.0), pause * (0.5 + random.random())), LONGEST)
                if attempt == tries or silent == 2 or time.monotonic() + wait > end:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise kind(f"{self.host}: {reason}, {times}; check the server, then run it again") from None
                logging.getLogger(__name__).info("%s: %s; again in %.1f s", self.host, reason, wait)
                time.sleep(wait)
                pause *= 2
        raise AssertionError

    def _once(self, request: Request, read: Callable[["Response"], T], end: float) -> T:
        import httpx

        with AnswerTimer(2 * self.bounds.silence, self.bounds.rate, end, self._stream) as watch:
            try:
                with self._client.stream(
                    request.method,
                    f"{self._url}/{request.path}",
                    headers=request.headers,
                    params=request.query,
                    content=request.body,
                    extensions={"trace": watch.trace},
                ) as answer:
                    watch.answer = answer
                    status = answer.status_code
                    if status in (200, 204, 206, *request.also):
                        return read(answer)
                    if status in _TRANSIENT:
                        wait = responses.seconds(answer.headers.get("Retry-After"))
                        raise TransientError(f"status {status}{responses.meaning(answer)}", wait)
                    raise WebError(f"{self.host}: answers {status}{responses.meaning(answer)}", status)
            except (httpx.HTTPError, TransientError, WebError):
                if watch.late:
                    raise ServerFailureError(f"{self.host}: {watch.late}") from None
                raise
            finally:
                self._stream = watch.stream

    def _refuse_at_once(self, error: BaseException) -> None:
        """Raise where another try cannot help."""
        import httpx

        fault = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
        if isinstance(fault, ssl.SSLCertVerificationError):
            raise WebError(
                f"{self.host}: its certificate is not trusted ({fault.verify_message}); name the certificates that "
                "sign it with --tls-ca FILE, and call the server by a name that stands in its certificate"
            ) from None
        if fault is not None and (isinstance(error, httpx.ConnectError) or "CERTIFICATE" in str(fault.reason)):
            reason = str(fault.reason).lower().replace("_", " ")
            raise WebError(
                f"{self.host}: no TLS connection ({reason}); is it an http address, or does the server ask for a "
                "certificate (--tls-cert, --tls-key)?"
            ) from None
        if isinstance(error, (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
            raise WebError(f"{self.host}: the request cannot be sent ({error})") from None
        if isinstance(error, httpx.ProxyError):
            raise WebError(
                f"{self.host}: the proxy of the environment refuses ({responses.printable(str(error))})"
            ) from None

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(url: str) -> tuple[str, bool]:
    """(host, whether by https) of an address. ConfigError: it is invalid."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isprintable()
    except ValueError:
        raise ConfigError("no address; give a DICOMweb address, https://HOST:PORT/PATH") from None
    if not good or not parts.hostname or parts.username or parts.query or parts.fragment or " " in url:
        raise ConfigError(f"{parts.scheme}: give a DICOMweb address, https://HOST/PATH, without a user name or query")
    return parts.hostname, parts.scheme == "https"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _described(error: BaseException, bounds: Bounds) -> tuple[str, type[M3BindError]]:
    """A connection's fault as a clause, and the class to raise."""
    import httpx

    if isinstance(error, TransientError):
        return str(error), ServerFailureError
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {bounds.silence:g} s", ServerUnavailableError
    if isinstance(error, httpx.ConnectError):
        reasons = (cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror)
        return f"no connection ({next(reasons, 'refused')})", ServerUnavailableError
    if isinstance(error, httpx.TimeoutException):
        return f"no byte for {bounds.silence:g} s", ServerFailureError
    if isinstance(error, httpx.ProtocolError):
        return "an answer that is broken off, or no HTTP", ServerFailureError
    return "the connection broke", ServerFailureError
