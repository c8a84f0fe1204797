"""Where weights are: a local path, or a hub id downloaded at a pinned revision.

* `resolve`: a file or folder as it is; `owner/name` or `owner/name:file` as a local copy.
"""

import re
from pathlib import Path

from m3bind.errors import CheckpointError, ConfigError
from m3bind.models.weights.weight_files import INDEX, SUFFIXES, choose

_SMALL_FILES = ("*.json", "*.txt", "*.model")


def resolve(source: Path | str, revision: str = "", weights: bool = True) -> Path:
    """`source` as a local path: an existing file or folder as it is, otherwise a hub id downloaded at `revision`.

    Args:
        source: path, `owner/name`, or `owner/name:file` for one of several files of weights.
        revision: commit, for a hub id.
        weights: whether to download weights, or only the small files beside them (configuration, tokenizer).

    Raises:
        ConfigError: a hub id without a revision (a branch moves; results could not be repeated).
        CheckpointError: neither a local path nor a hub repository that can be reached; or several files of weights
            in it and none was named.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    text = str(source).removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-][\w./-]*)?", text) or ".." in text:
        raise CheckpointError(
            f"{source}: no such file or folder; give a local path or a hub id 'owner/name' or 'owner/name:file'."
        )
    if not revision:
        raise ConfigError(
            f"{source} is not a local path; to take it from the hub, pin it: revision='<commit>' (a branch moves)."
        )
    name, _, file = text.partition(":")
    folder = _download(name, revision, file, weights)
    if file and not (folder / file).is_file():
        raise CheckpointError(f"{text}@{revision}: the repository has no such file.")
    return folder / file if file else folder


def _download(name: str, revision: str, file: str, weights: bool) -> Path:
    """A local folder with the small files and only the file of weights that will be read."""
    from huggingface_hub import snapshot_download

    patterns = [file] if file else _hub_weights(name, revision) if weights else []
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*_SMALL_FILES, *patterns]))
    except Exception as error:  # offline, not found, gated, HTTP: no common base
        raise CheckpointError(
            f"{name}@{revision}: cannot be fetched from the hub; check the name, the revision "
            "and the connection, or download the folder yourself and give its path."
        ) from error


def _hub_weights(name: str, revision: str) -> list[str]:
    """Patterns of the weights to download; of all weights if the hub is offline (its local copy is complete)."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(name, revision=revision)
    except Exception:
        return [f"*{suffix}" for suffix in (*SUFFIXES, ".zip")]
    chosen = choose(files, f"{name}@{revision}", f"'{name}:FILE'")
    return [f"*{Path(chosen.removesuffix(INDEX)).suffix}"] if chosen.endswith(INDEX) else [chosen]
