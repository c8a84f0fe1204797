"""Errors as answers: {"error": {"code", "message"}} with a fitting status, without identifiers.

* `Refusal`: an answer with an error status, raised anywhere. * `refusal_of`: any exception as one.
* `answer`: sends it. `body_of`: its JSON. * `ANSWERS`: all statuses, for the OpenAPI description.

Messages of our own errors may hold paths of the machine, ids and texts of queries, so few of them are passed on.
"""

import errno
import logging
import traceback
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from m3bind.errors import ConfigError, DiskError, M3BindError, NotFiniteError, ReadError, UnknownNameError
from m3bind.modalities.formats.limits import VARIABLE

log = logging.getLogger("m3bind.serve")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        """`code` is one word for programs, `message` tells people what happened and what to do."""
        super().__init__(code)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        lines = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return lines | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class Problem(BaseModel):
    """An error."""

    code: str = Field(description="one word for programs")
    message: str = Field(description="what happened and what to do, for people")


class ErrorAnswer(BaseModel):
    """Every answer with an error status."""

    error: Problem


_MEANINGS = {
    400: "the request is inconsistent",
    401: "a token is needed",
    403: "a request of another site, or under another host name",
    404: "not found",
    405: "no such method at this address",
    408: "the request was sent too slowly",
    413: "too large",
    415: "unsupported media type",
    422: "an invalid value, or an unreadable file",
    500: "an error of the service",
    503: "busy, not ready or stopping; try again",
    507: "no room on a disk of the service",
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in _MEANINGS.items()
}


def body_of(refusal: Refusal) -> dict[str, dict[str, str]]:
    """The JSON of an answer."""
    return {"error": {"code": refusal.code, "message": refusal.message}}


async def answer(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a refusal as JSON."""
    await JSONResponse(body_of(refusal), refusal.status, refusal.headers())(scope, receive, send)


def refusal_of(error: BaseException) -> Refusal:
    """The answer to an exception; an unexpected one is logged by its type and place, without its message."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ReadError):
        hint = "" if VARIABLE in error.hint else error.hint
        return Refusal(422, "unreadable", "; ".join(filter(None, (f"The file cannot be read: {error.reason}", hint))))
    if isinstance(error, UnknownNameError):
        if error.kind.startswith(("id in", "item")):
            return Refusal(404, "no_item", "No such item in this archive; it may have been removed.")
        known = f"known: {', '.join(error.known)}" if error.known else "none is known here"
        return Refusal(400, "unknown", f"There is no such {error.kind}; {known}.")
    if isinstance(error, NotFiniteError):
        return Refusal(422, "not_finite", "The embedding of this file is not finite; check the file.")
    if isinstance(error, ConfigError):
        return Refusal(400, "bad_question", "The request is invalid; check its values.")
    if isinstance(error, TimeoutError):
        return Refusal(503, "timeout", "This took too long and was cancelled; request less, or try again later.", 5)
    if isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno in FULL):
        _log(error)
        return Refusal(507, "no_room", "The service has no room for files now; its operator should free space.", 60)
    if isinstance(error, M3BindError):
        _log(error)
        return Refusal(503, "unavailable", "The space or index cannot answer this; its operator should check it.", 30)
    _log(error)
    return Refusal(500, "internal", "An error of the service; it was logged without your data.")


def _log(error: BaseException) -> None:
    """Type and places of an exception: its message may quote files and queries."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    log.error("error %s at %s", type(error).__name__, places or "an unknown place")
