"""Every error m3bind raises on purpose: one small hierarchy.

Each message says what happened, in which file, row or setting, and what to do about it.
`exit_code` is what the command line returns: 1 for work that failed, 2 for wrong use.
"""

import difflib
from collections.abc import Iterable

from m3bind.privacy import shown


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

    Messages end in logs, so this one masks names in the path that could be a person's (`m3bind.privacy.shown`).
    """

    def __init__(self, path: object, reason: str, hint: str = "") -> None:
        """`hint` says what the user can do."""
        super().__init__(f"{shown(str(path))}: {reason}" + (f"; {hint}" if hint else ""))
        self.path, self.reason, self.hint = str(path), reason, hint


class CheckpointError(M3BindError):
    """Weights that do not fit, are damaged, or would need unsafe unpickling."""


class NotFiniteError(M3BindError):
    """A loss or gradient became NaN or infinite; training stopped and overwrote nothing."""


class DiskError(M3BindError):
    """Writing failed (disk full, no permission); what stood there before is untouched."""


class SpaceError(M3BindError):
    """A bundle is incomplete, damaged or asked for something it does not hold."""
