"""Hashes of finished files, in `sums.json` beside them, so that a reader knows whether they are as they were written.

* `writing`: write files of one folder; their hashes are dropped before and recorded after. `record`: after alone.
* `changed`: sentences on files that are missing or not as they were written. * `check`: the same as an error.

Made against accidents (a copy that broke off, an edited number), not against somebody who also edits the hashes.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3bind.core.files import sha256_file, write_json
from m3bind.core.stored import read_json
from m3bind.errors import ResultError

SUMS = "sums.json"


@contextlib.contextmanager
def writing(folder: Path, *names: str) -> Iterator[None]:
    """Between entering and leaving, the files `names` of `folder` are written; those that are there then are recorded.

    A process killed in between leaves files without a hash, which `check` names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _update(folder, dict.fromkeys(names))
    yield
    record(folder, *names)


def record(folder: Path, *names: str) -> None:
    """Record the hashes of the files `names` of `folder`; those that are not there are forgotten."""
    _update(folder, {name: sha256_file(folder / name) if (folder / name).is_file() else None for name in names})


def _update(folder: Path, hashes: dict[str, str | None]) -> None:
    """Record hashes, or forget those that are None; one process at a time."""
    with _alone(folder):
        old = recorded(folder)
        new = {name: digest for name, digest in (old | hashes).items() if digest is not None}
        if new != old:
            write_json(folder / SUMS, dict(sorted(new.items())))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def recorded(folder: Path) -> dict[str, str]:
    """File name -> hash; empty where nothing was recorded.

    Raises:
        ResultError: `sums.json` is damaged.
    """
    path = folder / SUMS
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(d, str) and _is_inside(n) for n, d in found.items()):
        raise ResultError(f"{path}: damaged; restore it, or delete it and run the command that wrote the folder again")
    return found


def _is_inside(name: str) -> bool:
    """Whether a name can be that of a file in the folder itself."""
    return name == os.path.basename(name) and name not in ("", ".", "..")


def changed(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """A sentence on each recorded file (of `names`, default: all) that is missing or was changed since."""
    found = []
    for name, digest in recorded(folder).items():
        if names and name not in names:
            continue
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256_file(path) != digest:
            found.append(f"{name} is not as it was written ({path.stat().st_size:,} bytes: altered or cut short)")
    return found


def check(folder: Path, names: Sequence[str] = (), finished: Sequence[str] = ()) -> None:
    """Refuse a folder whose recorded files (of `names`, default: all) are not as they were written.

    `finished`: files that must be recorded.

    Raises:
        ResultError: names every file at fault and what to do.
    """
    faults = changed(folder, names)
    there = recorded(folder)
    faults += [f"{name} is unfinished or was not written by a run" for name in finished if name not in there]
    if faults:
        raise ResultError(
            f"{folder}: {'; '.join(faults)}. "
            "Restore what was there; or delete it and run the command that wrote it again, which repeats no step."
        )
