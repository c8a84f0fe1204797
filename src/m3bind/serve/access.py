"""Authorization: the token of the service, as a header or as the cookie that a login sets.

* `Access`: compares in constant time. * `read_token`: from the environment or a file.

The cookie holds a time and its HMAC under the token, not the token: it expires by itself and with a new token.
"""

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from m3bind.core.stored import read_given
from m3bind.errors import ConfigError

VARIABLE = "M3BIND_TOKEN"
COOKIE = "m3bind"
SHORTEST = 16  # characters of a token


class Access:
    """The token, or None: then every client may send requests."""

    def __init__(self, token: str | None, seconds: float, clock: Callable[[], float] = time.time) -> None:
        """A login lasts `seconds`."""
        self._token = token.encode() if token else None
        self.seconds, self._clock = seconds, clock

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return self._token is None

    def fits(self, token: str) -> bool:
        """Whether the token is right."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token)

    def allows(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these header lines (names in lower case) may be answered."""
        if self._token is None:
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.fits(token.strip())
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and self._is_ours(morsel.value)

    def cookie(self) -> str:
        """A value for the cookie."""
        until = str(int(self._clock() + self.seconds))
        return f"{until}.{self._sign(until)}"

    def _sign(self, until: str) -> str:
        return hmac.new(self._token or b"", f"{COOKIE} {until}".encode(), hashlib.sha256).hexdigest()

    def _is_ours(self, value: str) -> bool:
        until, _, signature = value.partition(".")
        genuine = hmac.compare_digest(signature.encode(), self._sign(until).encode())
        return genuine and until.isdigit() and int(until) > self._clock()


def read_token(file: Path | None) -> str | None:
    """The token in a file, or in the environment variable M3BIND_TOKEN; None without both.

    Never a value of the command line, which every user of the machine can read.

    Raises:
        ConfigError: the file cannot be read, or the token is too short to be safe.
    """
    if file is not None:
        token, place = read_given(file, "--token-file").strip(), f"--token-file {file}"
    else:
        token, place = os.environ.get(VARIABLE, "").strip(), VARIABLE
        if not token:
            return None
    if len(token) < SHORTEST:
        raise ConfigError(
            f"{place}: the token has {len(token)} characters, at least {SHORTEST} are needed; make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token
