"""Folders that `export` wrote: recognised by a space, which names what opens them instead.

* `read_export`: what a folder says of itself, or None. * `refuse_foreign`: the error where a space was expected.
"""

from pathlib import Path
from typing import Any

from m3bind.core.stored import read_json
from m3bind.errors import SpaceError

MARKER, FORMAT = "export.json", "m3bind-export"


def read_export(folder: Path | str) -> dict[str, Any] | None:
    """What is written in an export about itself; None where the folder is no export."""
    try:
        about = read_json(Path(folder) / MARKER)
        return dict(about) if about["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_foreign(folder: Path | str) -> None:
    """Say what an export is when it is opened as a space and is none.

    Raises:
        SpaceError: `folder` is an export of another kind than a space.
    """
    about = read_export(folder)
    if about is not None:
        raise SpaceError(f"{folder}: an export ({about['kind']}), not a space; open it with: {about['use']}")
