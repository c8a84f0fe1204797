"""Errors as answers: {"error": {"code", "message"}} with a fitting status, and nothing in them that names anybody.

* `Refusal`: an answer that is no success, raised anywhere. * `refusal_of`: any exception as one.
* `body_of`: its JSON. * `ANSWERS`: the statuses there are, for the OpenAPI description.

Messages of our own errors may hold paths of the machine, ids and texts of questions, so few of them are passed on.
"""

import errno
import logging
import traceback
from typing import Any

from pydantic import BaseModel, Field

from m3bind.errors import ConfigError, DiskError, M3BindError, NotFiniteError, ReadError, UnknownNameError
from m3bind.modalities.formats.limits import VARIABLE

log = logging.getLogger("m3bind.serve")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        """`code` is one word for programs, `message` says to people what happened and what to do."""
        super().__init__(code)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    def headers(self) -> dict[str, str]:
        """Further header lines of the answer."""
        lines = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return lines | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class Problem(BaseModel):
    """What went wrong."""

    code: str = Field(description="one word for programs")
    message: str = Field(description="what happened and what to do, for people")


class ErrorAnswer(BaseModel):
    """Every answer that is no success."""

    error: Problem


_MEANINGS = {
    400: "the question makes no sense",
    401: "a token is needed",
    403: "another site asks, or under another name",
    404: "no such thing",
    405: "no such method here",
    408: "the request came too slowly",
    413: "too large",
    415: "of a kind that is not taken",
    422: "a value is not what it should be, or a file cannot be read",
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


def refusal_of(error: BaseException) -> Refusal:
    """The answer to an exception; one that nobody expected is logged by its type and place, without its words."""
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
        return Refusal(422, "not_finite", "The embedding of this file is not finite; look at the file.")
    if isinstance(error, ConfigError):
        return Refusal(400, "bad_question", "This cannot be asked; look at the values.")
    if isinstance(error, TimeoutError):
        return Refusal(503, "timeout", "This took too long and was given up; ask for less, or later.", 5)
    if isinstance(error, DiskError) or (isinstance(error, OSError) and error.errno in FULL):
        _log(error)
        return Refusal(507, "no_room", "The service has no room for files just now; its operator should make some.", 60)
    if isinstance(error, M3BindError):
        _log(error)
        return Refusal(503, "unavailable", "The space or index cannot answer this; its operator should look at it.", 30)
    _log(error)
    return Refusal(500, "internal", "An error of the service; it was logged without your data.")


def _log(error: BaseException) -> None:
    """Type and places of an exception: its words may quote files and questions."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    log.error("error %s at %s", type(error).__name__, places or "an unknown place")
