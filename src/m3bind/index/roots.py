"""Below which folders the files of an index may be shown: those that whoever serves it named, or encoded.

* `Roots`: tells whether a path lies below. * `remember`, `remembered`: the folders of an index that was made here.

An index names files of the machine it was made on, and may come from anybody. What `encode`, `index`, `listen` and
`pull` were given is written beside their output, under a seal that only this user can make (the key is a private file
in the folder of settings); an index without such a seal shows no file but those in its own folder.
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
MOST = 200  # folders that are remembered one by one
LARGEST = 4 << 20  # bytes of the file
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
        """`allow` for all files that are read with one: those in a folder, those that a WFDB header may name."""
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


def remember(made: Path | str, folders: Iterable[Path | str]) -> None:
    """Write down below which folders the files of an encoded archive or index lie; nothing where there is no folder."""
    if not Path(made).is_dir():
        return
    key = _key(make=True)
    if key is None:
        return
    given = {Path(folder).resolve() for folder in folders}
    found = _topmost({folder for folder in given if folder.parent != folder})  # never all of a disk
    if len(found) > MOST:
        found = [Path(os.path.commonpath(found))]
    names = [str(folder) for folder in found if folder.parent != folder]
    with contextlib.suppress(DiskError):
        write_json(Path(made) / NAME, {"roots": names, "seal": _seal(key, names)})


def remembered(made: Path | str) -> list[Path]:
    """The folders `remember` wrote down, as this user; none where somebody else did, or changed them."""
    key = _key(make=False)
    try:
        found = read_json(Path(made) / NAME, LARGEST)
        names = [str(name) for name in found["roots"]]
        if key is None or not hmac.compare_digest(_seal(key, names), str(found["seal"])):
            return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [Path(name) for name in names]


def folder_of(path: Path | str) -> Path:
    """The folder that is meant by a path: itself, or that of a file."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _topmost(folders: set[Path]) -> list[Path]:
    """Without those that lie below another one."""
    return sorted(folder for folder in folders if not folders.intersection(folder.parents))


def _seal(key: bytes, names: list[str]) -> str:
    return hmac.new(key, json.dumps(names).encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes | None:
    """This user's key; None where there is none, or where others may read it."""
    path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "m3bind" / "key"
    try:
        if make and not path.exists():
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
    except (OSError, RuntimeError, StoredFileError):  # RuntimeError: nobody's home
        return None
