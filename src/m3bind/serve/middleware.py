"""Checks of a request before its body is read, and the security headers of every answer.

* `Guard`: an ASGI application around another one.

Refused: an unknown name in the Host header (DNS rebinding), a request that another site makes its visitor's browser
send, a compressed body, and a missing token.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3bind.serve.access import Access
from m3bind.serve.errors import Refusal, answer

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/healthz", "/readyz", "/api/login")  # beside /static/
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LINES = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_RAW = [(name.encode(), value.encode()) for name, value in LINES.items()]


class Guard:
    """Passes accepted requests to `app`."""

    def __init__(self, app: ASGIApp, access: Access, hosts: Collection[str] | None) -> None:
        """`hosts`: names of the service; None: any, if a token is needed anyway."""
        self.app, self.access = app, access
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                lines = list(message.get("headers", ()))
                names = {name.lower() for name, _ in lines}
                lines += [line for line in _RAW if line[0] not in names]
                if b"cache-control" not in names:
                    lines.append((b"cache-control", b"no-store"))
                message = {**message, "headers": lines}
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is None:
            await self.app(scope, receive, safe)
        else:
            await answer(refusal, scope, receive, safe)

    def _refusal(self, method: str, path: str, headers: dict[str, str]) -> Refusal | None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            reason = "This service does not have that host name; start it with --allow-host NAME if it should."
            return Refusal(403, "host", reason)
        if _is_cross_site(method, path, host, headers):
            return Refusal(403, "cross_site", "Another site made this request; open the service's own page.")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            return Refusal(415, "packed", "Send the body uncompressed, without Content-Encoding.")
        if path not in OPEN and not path.startswith("/static/") and not self.access.allows(headers):
            return Refusal(401, "token", "A token is needed: Authorization: Bearer TOKEN, or log in on the page.")
        return None


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_cross_site(method: str, path: str, host: str, headers: dict[str, str]) -> bool:
    """Whether a page of another site makes a browser request data, or change state."""
    if method in ("GET", "HEAD") and not path.startswith("/api/"):
        return False
    if headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != host.strip().lower()
