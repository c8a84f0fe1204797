"""The errors that m3bind raises on purpose.

* `in_words`: what an unexpected exception of a library means. * `is_lasting`: whether a file would fail again.

Each message states what happened, in which file, row or setting, and what to do.
`exit_code` is what the command line returns: 1 for work that failed, 2 for wrong use.
"""

import difflib
import errno
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable

from m3bind.privacy import redact_path

_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (  # the first match counts
    ((EOFError,), "it ends early"),
    ((UnicodeError,), "it contains bytes that are invalid in its encoding"),
    ((zlib.error, lzma.LZMAError, zipfile.BadZipFile), "its compressed data are damaged"),
    ((ImportError,), "a library that it needs is not installed"),
    ((RecursionError,), "it is nested too deeply"),
    ((NotImplementedError,), "its decoder does not support this variant"),
    ((MemoryError,), "it needs more memory than is available"),
    ((TimeoutError,), "no answer in time"),
    ((ConnectionError,), "the connection broke"),
    ((ArithmeticError,), "a number in its header is zero or out of range"),
    ((LookupError,), "an entry that its format requires is missing or invalid"),
    ((AttributeError, TypeError, ValueError, AssertionError, struct.error), "a value does not fit its format"),
)


def in_words(error: BaseException) -> str:
    """What an unexpected exception of a library means for a file or an answer, as one clause for users.

    It contains neither the exception's name, which users do not know, nor its message, which may quote the file.
    """
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    if type(error).__name__ == "BadGzipFile":  # an OSError without a number
        return "its compressed data are damaged"
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), "it cannot be decoded")


class M3BindError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(M3BindError):
    """A setting is missing, unknown, or contradicts another setting."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name (of a modality, model, method, prompt set, preset) is not registered; suggests the nearest names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        """`kind` is the kind of name ("modality"), `known` the registered names."""
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names) or 'none'}."
        super().__init__(f"unknown {kind} {name!r}; {hint}")
        self.kind, self.name, self.known = kind, name, names


class ManifestError(M3BindError):
    """A manifest cannot be used at all (single bad rows are quarantined instead)."""


class ReadError(M3BindError):
    """A file cannot be read as its modality. `path` is the file, `reason` one short clause without identifiers.

    Messages reach logs, so names in the path that could be a person's are masked (`m3bind.privacy.redact_path`).
    """

    def __init__(self, path: object, reason: str, hint: str = "", lasting: bool | None = None) -> None:
        """`hint` tells the user what to do. `lasting`: what `is_lasting` returns; None: that of the error's cause."""
        super().__init__(f"{redact_path(str(path))}: {reason}" + (f"; {hint}" if hint else ""))
        self.path, self.reason, self.hint, self.lasting = str(path), reason, hint, lasting

    @property
    def advice(self) -> str:
        """The reason, and what to do."""
        return self.reason + (f"; {self.hint}" if self.hint else "")


def is_lasting(error: BaseException) -> bool:
    """Whether the same file would fail again, at any time.

    False if an error of the operating system (disk, network) or a missing package caused it, directly or through other
    errors.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ReadError) and cause.lasting is not None:
            return cause.lasting
        # EINVAL: damaged files lead to an offset before their start
        if isinstance(cause, ImportError) or (isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL)):
            return False
        cause = cause.__cause__ or cause.__context__
    return True


class CheckpointError(M3BindError):
    """Weights do not fit, are damaged, or would need unsafe unpickling."""


class NotFiniteError(M3BindError):
    """A loss or gradient became NaN or infinite; training stopped without overwriting a checkpoint."""


class DiskError(M3BindError):
    """Writing failed (disk full, no permission); the previous content is unchanged."""


class DeviceMemoryError(M3BindError):
    """One input alone does not fit the memory of the device."""

    def __init__(self, device: str, modality: str) -> None:
        super().__init__(
            f"the memory of {device} is too small for one input of {modality}; end other programs that use it (see "
            "nvidia-smi), or choose another --device; finished work is retained"
        )


class DownloadError(M3BindError):
    """A file cannot be downloaded: no address has it, or its sum is not the published one."""


class ResultError(M3BindError):
    """Results, settings or records of a run are missing, damaged, or changed since they were written."""


class BusyError(ConfigError):
    """Another process is using the same folder."""


class SpaceError(M3BindError):
    """A bundle is incomplete or damaged, or does not contain the requested part."""
