"""A whole space in the layout of a model repository: what `m3bind.load` opens, and a model card.

The repository's root is the space's own folder (space.json, weights/, assets/), so `m3bind.load` takes the folder, or
the repository's id once it is uploaded. Embeddings and fingerprint are those of the space. Paths in its settings, which
could name people or machines, are left out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from m3bind.core.files import write_json, write_text
from m3bind.export.card import Figure, model_card
from m3bind.space.bundle import Space
from m3bind.space.folder import write_folder

_PATH_KEYS = ("manifest", "root", "path", "folder", "extra_texts", "sets", "file", "cache")


def write(space: Space, folder: Path, figures: Sequence[Figure]) -> None:
    """Fill an empty folder; `figures` make the evaluation table and `results.json`."""
    contents = space._contents
    info = dataclasses.replace(contents.info, config=without_paths(contents.info.config))
    write_folder(dataclasses.replace(contents, info=info), folder)
    if figures:
        write_json(folder / "results.json", [dataclasses.asdict(figure) for figure in figures])
    write_text(folder / "README.md", model_card(space, figures))


def without_paths(value: Any, key: str = "") -> Any:
    """JSON values without file names: whatever stands under a key that means files, or looks like a local path."""
    if isinstance(value, Mapping):
        return {name: without_paths(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner, key) for inner in value]
    if isinstance(value, str) and (key in _PATH_KEYS or _is_local(value)):
        return "(left out)"
    return value


def _is_local(text: str) -> bool:
    """Absolute, from home or below the present folder; an id like owner/name of a hub is none of these."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or "\\" in text
    return absolute or text.startswith(("~", "./", "../")) or text.count("/") > 1 or Path(text).exists()
