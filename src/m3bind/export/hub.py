"""A whole space in the layout of a model repository, with a model card; `m3bind.load` opens it.

The repository's root is the space's own folder (space.json, weights/, assets/), so `m3bind.load` takes the folder, or
the repository's id once it is uploaded. Embeddings and fingerprint are those of the space. Paths in its settings, which
could identify people or machines, are omitted.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from m3bind.core.files import write_json, write_text
from m3bind.export.card import EvaluationResult, model_card
from m3bind.space.bundle import Space
from m3bind.space.folder import write_folder

_PATH_KEYS = ("manifest", "root", "path", "folder", "extra_texts", "sets", "file", "cache")


def write(space: Space, folder: Path, results: Sequence[EvaluationResult]) -> None:
    """Write the folder; `results` become the evaluation table and `results.json`."""
    contents = space._contents
    info = dataclasses.replace(contents.info, config=without_paths(contents.info.config))
    write_folder(dataclasses.replace(contents, info=info), folder)
    if results:
        write_json(folder / "results.json", [dataclasses.asdict(result) for result in results])
    write_text(folder / "README.md", model_card(space, results))


def without_paths(value: Any, key: str = "") -> Any:
    """JSON values without file names: values of keys for files, and texts that look like a local path."""
    if isinstance(value, Mapping):
        return {name: without_paths(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner, key) for inner in value]
    if isinstance(value, str) and (key in _PATH_KEYS or _is_local(value)):
        return "(left out)"
    return value


def _is_local(text: str) -> bool:
    """Absolute, in the home folder or below the current one; a hub id like owner/name is none of these."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or "\\" in text
    return absolute or text.startswith(("~", "./", "../")) or text.count("/") > 1 or Path(text).exists()
