"""The folder of an export: written as a whole, with export.json, which has a hash of each file.

* `export_folder`: a folder to fill. * `verify`: checks its hashes.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3bind.core.files import atomic_path, sha256_file, write_json
from m3bind.errors import ConfigError
from m3bind.space.exported_folders import FORMAT, MARKER, read_export
from m3bind.space.folder import guard_folder, versions
from m3bind.space.reader import damaged

VERSION = 1


@contextlib.contextmanager
def export_folder(out: Path | str, kind: str, use: str, facts: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes `out`, with hashes, when the block ends without an error.

    Args:
        out: final folder; an older export there is replaced.
        kind: its format.
        use: one line of code that opens it.
        facts: further JSON values of export.json (fingerprint of the space, dimension, licences).

    Raises:
        ConfigError: `out` exists and is not an export.
        DiskError: the file system refused; an older export there is left unchanged.
    """
    out = Path(os.path.abspath(out))
    guard_folder(out, MARKER, "an export")
    with atomic_path(out, directory=True) as temporary:
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): sha256_file(path) for path in files}
        about = {"format": FORMAT, "version": VERSION, "kind": kind, "use": use, **facts}
        write_json(temporary / MARKER, {**about, "versions": versions(), "files": hashes})


def verify(folder: Path | str) -> dict[str, Any]:
    """Check every file of an export against its hash; returns the content of export.json.

    Raises:
        ConfigError: not an export.
        SpaceError: a file is missing or damaged; names it.
    """
    folder = Path(folder)
    about = read_export(folder)
    if about is None:
        raise ConfigError(f"{folder}: not an export, it holds no readable {MARKER}")
    for name, digest in about["files"].items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise damaged(folder / name, "export again")
    return about
