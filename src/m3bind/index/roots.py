"""The folders whose files an index may show: those that its server was given, or that were encoded by this user.

* `Roots`: whether a path lies below them. * `remember`, `remembered`: the folders of an index that was built here.

An index names files of the machine it was built on, and may be third-party. The folders given to `encode`, `index`,
`listen` and `pull` are written beside their output, with an HMAC that only this user can compute (the key is a private
file in the folder of settings); an index without it shows only files in its own folder.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from m3bind.core.files import write_json
from m3bind.core.stored import StoredFileError, read_bytes, read_json
from m3bind.errors import DiskError
from m3bind.modalities.formats.signals_wfdb_header import header_of

NAME = "roots.json"
MAX_FOLDERS = 200  # stored one by one; more are replaced by their common parent
MAX_BYTES = 4 << 20  # of the file
KEY_BYTES = 32


class Roots:
    """Folders whose files may be shown; None: any file."""

    def __init__(self, folders: Iterable[Path] | None = None) -> None:
        self.folders = None if folders is None else sorted({Path(folder).resolve() for folder in folders})

    def allow(self, path: str) -> bool:
        """Whether a path, wherever its links lead, lies below one of the folders."""
        if self.folders is None:
            return True
        try:
            real = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        return any(real.is_relative_to(folder) for folder in self.folders)

    def allow_all(self, path: str) -> bool:
        """`allow` for all files that are read with a path: those in a folder, those that a WFDB header may name."""
        if self.folders is None:
            return True
        if not self.allow(path):
            return False
        place = Path(path)
        if place.is_dir():
            parts = [Path(base) / name for base, folders, files in os.walk(place) for name in (*folders, *files)]
        else:
            parts = list(place.parent.iterdir()) if header_of(place).exists() else []
        return all(self.allow(str(part)) for part in parts if part.is_symlink())


def remember(output: Path | str, folders: Iterable[Path | str]) -> None:
    """Store the folders of the files of an encoded archive or index; does nothing if `output` is not a folder."""
    if not Path(output).is_dir():
        return
    key = _key(create=True)
    if key is None:
        return
    given = {Path(folder).resolve() for folder in folders}
    given = {folder for folder in given if folder.parent != folder}  # never a whole disk
    topmost = sorted(folder for folder in given if not given.intersection(folder.parents))
    if len(topmost) > MAX_FOLDERS:
        topmost = [Path(os.path.commonpath(topmost))]
    names = [str(folder) for folder in topmost if folder.parent != folder]
    with contextlib.suppress(DiskError):
        write_json(Path(output) / NAME, {"roots": names, "seal": _seal(key, names)})


def remembered(output: Path | str) -> list[Path]:
    """The folders that `remember` stored as this user; empty if another user did, or the file was changed."""
    key = _key(create=False)
    try:
        stored = read_json(Path(output) / NAME, MAX_BYTES)
        names = [str(name) for name in stored["roots"]]
        if key is None or not hmac.compare_digest(_seal(key, names), str(stored["seal"])):
            return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [Path(name) for name in names]


def folder_of(path: Path | str) -> Path:
    """The path itself if it is a folder, else the folder of the file."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _seal(key: bytes, names: list[str]) -> str:
    return hmac.new(key, json.dumps(names).encode(), hashlib.sha256).hexdigest()


def _key(create: bool) -> bytes | None:
    """This user's key; None if it does not exist or others may read it."""
    path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "m3bind" / "key"
    try:
        if create and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}")
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        key = read_bytes(path, KEY_BYTES)
        private = not stat.S_IMODE(path.stat().st_mode) & 0o077
        return key if private and len(key) == KEY_BYTES else None
    except (OSError, RuntimeError, StoredFileError):  # RuntimeError: no home folder
        return None
