"""Every error m3bind raises on purpose: one small hierarchy.

Each message says what happened, in which file, row or setting, and what to do about it.
`exit_code` is what the command line returns: 1 for work that failed, 2 for wrong use.
"""

import difflib
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable

from m3bind.privacy import redact_path

_WORDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (  # the first that fits counts
    ((EOFError,), "it ends early"),
    ((UnicodeError,), "it holds bytes that are no text of its encoding"),
    ((zlib.error, lzma.LZMAError, zipfile.BadZipFile), "its compressed data are damaged"),
    ((ImportError,), "a library that it needs is not installed"),
    ((RecursionError,), "it is nested too deeply"),
    ((NotImplementedError,), "it is of a kind that its decoder does not know"),
    ((MemoryError,), "it needs more memory than there is"),
    ((TimeoutError,), "no answer in time"),
    ((ConnectionError,), "the connection broke"),
    ((ArithmeticError,), "a number in its header is zero or out of range"),
    ((LookupError,), "an entry that its format demands is missing, or points to nothing"),
    ((AttributeError, TypeError, ValueError, AssertionError, struct.error), "a value is not what its format demands"),
)


def in_words(error: BaseException) -> str:
    """What an unexpected exception of a library means for a file or an answer, as one clause for people.

    Neither the exception's name, which means nothing to them, nor its words, which may quote the file.
    """
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    if type(error).__name__ == "BadGzipFile":  # an OSError without a number
        return "its compressed data are damaged"
    return next((words for kinds, words in _WORDS if isinstance(error, kinds)), "it cannot be decoded")


class M3BindError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(M3BindError):
    """A setting is missing, unknown or contradicts another one."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name (of a modality, model, method, prompt set, preset) that nobody registered; offers the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """`kind` is what was looked for ("modality"), `known` the names that exist."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names) or 'none'}."
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.known = kind, name, names


class ManifestError(M3BindError):
    """A manifest cannot be used at all (single bad rows are set aside instead)."""


class ReadError(M3BindError):
    """A file cannot be read as its modality. `path` is the file, `reason` one short clause without identifiers.

    Messages end in logs, so this one masks names in the path that could be a person's (`m3bind.privacy.redact_path`).
    """

    def __init__(self, path: object, reason: str, hint: str = "") -> None:
        """`hint` says what the user can do."""
        super().__init__(f"{redact_path(str(path))}: {reason}" + (f"; {hint}" if hint else ""))
        self.path, self.reason, self.hint = str(path), reason, hint


class CheckpointError(M3BindError):
    """Weights that do not fit, are damaged, or would need unsafe unpickling."""


class NotFiniteError(M3BindError):
    """A loss or gradient became NaN or infinite; training stopped and overwrote nothing."""


class DiskError(M3BindError):
    """Writing failed (disk full, no permission); what stood there before is untouched."""


class ResultError(M3BindError):
    """Results, settings or records of a run are missing, damaged, or not as they were written."""


class BusyError(ConfigError):
    """Another process works on the same folder."""


class SpaceError(M3BindError):
    """A bundle is incomplete, damaged or asked for something it does not hold."""
