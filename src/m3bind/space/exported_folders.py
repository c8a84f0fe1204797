"""Folders that `export` wrote: recognised when they are opened as a space.

* `read_export`: the `export.json` of a folder. * `refuse_foreign`: the error that names what opens it instead.
"""

from pathlib import Path
from typing import Any

from m3bind.core.stored import read_json
from m3bind.errors import SpaceError

MARKER, FORMAT = "export.json", "m3bind-export"


def read_export(folder: Path | str) -> dict[str, Any] | None:
    """The content of `export.json`; None if the folder is not an export."""
    try:
        about = read_json(Path(folder) / MARKER)
        return dict(about) if about["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_foreign(folder: Path | str) -> None:
    """Raise if the folder is an export of another kind than a space.

    Raises:
        SpaceError: names its kind and what opens it.
    """
    about = read_export(folder)
    if about is not None:
        raise SpaceError(f"{folder}: an export ({about['kind']}), not a space; open it with: {about['use']}")
