"""Hashes of output files, in `sums.json` beside them, to detect files that changed since they were written.

* `writing`: write files of one folder; their hashes are removed before and recorded after. * `record`: record only.
* `recorded`: the hashes. * `changed`: a sentence on each missing or changed file. * `check`: the same as an error.

They protect against accidents (an interrupted copy, an edited number), not against someone who also edits the hashes.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3bind.core.files import alone, sha256_file, write_json
from m3bind.core.stored import read_json
from m3bind.errors import ResultError

SUMS = "sums.json"


@contextlib.contextmanager
def writing(folder: Path, *names: str) -> Iterator[None]:
    """The block writes the files `names` of `folder`; the hashes of those that exist afterwards are recorded.

    A process killed in between leaves files without a hash, which `check` reports.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _update(folder, dict.fromkeys(names))
    yield
    record(folder, *names)


def record(folder: Path, *names: str) -> None:
    """Record the hashes of the files `names` of `folder`; missing files lose theirs."""
    _update(folder, {name: sha256_file(folder / name) if (folder / name).is_file() else None for name in names})


def _update(folder: Path, hashes: dict[str, str | None]) -> None:
    """Record hashes, and remove those that are None; one process at a time."""
    with alone(folder):
        old = recorded(folder)
        new = {name: digest for name, digest in (old | hashes).items() if digest is not None}
        if new != old:
            write_json(folder / SUMS, dict(sorted(new.items())))


def recorded(folder: Path) -> dict[str, str]:
    """File name -> hash; empty if none was recorded.

    Raises:
        ResultError: `sums.json` is damaged.
    """
    path = folder / SUMS
    try:
        hashes = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        hashes = None
    valid = isinstance(hashes, dict) and all(
        isinstance(digest, str) and name == os.path.basename(name) and name not in ("", ".", "..")
        for name, digest in hashes.items()
    )
    if not valid:
        raise ResultError(f"{path}: damaged; restore it, or delete it and run the command that wrote the folder again")
    return dict(hashes)


def changed(folder: Path, names: Sequence[str] = ()) -> list[str]:
    """A sentence on each recorded file (of `names`, default: all) that is missing or has changed."""
    faults = []
    for name, digest in recorded(folder).items():
        if names and name not in names:
            continue
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256_file(path) != digest:
            faults.append(f"{name} is not as it was written ({path.stat().st_size:,} bytes: altered or cut short)")
    return faults


def check(folder: Path, names: Sequence[str] = (), finished: Sequence[str] = ()) -> None:
    """Raise ResultError if recorded files (of `names`, default: all) have changed, or `finished` ones are not recorded.

    The message names every such file and what to do.
    """
    faults = changed(folder, names)
    known = recorded(folder)
    faults += [f"{name} is unfinished or was not written by a run" for name in finished if name not in known]
    if faults:
        raise ResultError(
            f"{folder}: {'; '.join(faults)}. "
            "Restore the file; or delete it and run the command that wrote it again, which repeats no finished step."
        )
