"""Repairs a damaged index: derived files are written again, readable items retained, lost items counted.

* `repair`. Adding the encoded archive again restores lost items.
"""

import os
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from m3bind.core.stored import StoredFileError
from m3bind.errors import ConfigError, SpaceError
from m3bind.index import ann, flat, segment
from m3bind.index.base import KEY, Mask
from m3bind.index.embedded import EmbeddedIndex
from m3bind.index.segment import BLOCK, GONE, ITEMS, KEYS, VECTORS, IndexDamageError, Segment, SegmentEntry, Sums
from m3bind.index.store import COPY, CURRENT, PARTS, IndexState, IndexStore, decode_state, locked

STORED = (VECTORS, ITEMS, KEYS, GONE)  # files of a part; the others are derived and written again


@dataclass
class Repaired:
    """The result of a repair."""

    damaged: list[str] = field(default_factory=list)  # files, relative to the index
    lost: int = 0  # items that could not be read
    revived: bool = False  # a list of deletions was lost: deleted items may have returned

    def __str__(self) -> str:
        if not self.damaged:
            return "nothing is damaged"
        lines = [f"damaged: {', '.join(self.damaged)}"]
        lines.append(f"{self.lost} items lost; add the encoded archive again" if self.lost else "no item lost")
        if self.revived:
            lines.append("deletions were lost: delete those items again")
        return "\n".join(lines)


def repair(folder: Path | str) -> Repaired:
    """Repair a damaged index.

    Raises:
        SpaceError: there is no index, or neither CURRENT nor its copy can be read: build again.
        ConfigError: another process is writing.
        DiskError: the file system refused.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SpaceError(f"{folder}: no index")
    report = Repaired()
    if (folder / PARTS).is_symlink():
        raise ConfigError(f"{folder / PARTS} is a link; to keep an index elsewhere, link its whole folder")
    store = IndexStore(folder, locked(folder), _state(folder, report))
    try:
        _rewrite(store, report)
    except (IndexDamageError, StoredFileError, OSError) as error:
        place = error.filename if isinstance(error, OSError) else error.path
        reason = error.strerror if isinstance(error, OSError) else error.reason
        raise SpaceError(f"{place}: {reason}; cannot be repaired, build the index again into a new folder") from error
    finally:
        store.close()
    return report


def _rewrite(store: IndexStore, report: Repaired) -> None:
    """If a file is damaged, write all readable rows as one part."""
    folder = store.folder
    salvaged = [_salvaged(folder / PARTS / part["name"], part, store.state.dim, report) for part in store.state.parts]
    if not report.damaged and store.state.parts:
        report.damaged += _unusable(folder, store.state)
    if not report.damaged:
        return
    index = EmbeddedIndex(store, [part for part, _ in salvaged])
    unreadable = np.concatenate([np.empty(0, bool), *(rows for _, rows in salvaged)])
    report.lost = index.forget(unreadable)
    if report.revived:
        index.forget(_older(index))
    index.rewrite()
    index.close()


def _state(folder: Path, report: Repaired) -> IndexState:
    """The state in CURRENT, or else in its copy."""
    states = []
    for name in (CURRENT, COPY):
        try:
            states.append(decode_state(folder / name))
        except IndexDamageError:
            report.damaged.append(name)
    if not states:
        raise SpaceError(f"{folder}: neither {CURRENT} nor {COPY} can be read; build the index again into a new folder")
    return states[0]


def _unusable(folder: Path, state: IndexState) -> list[str]:
    """Derived files of the first part that cannot be used although their checksums are correct."""
    entry = state.parts[0]
    part = Segment(folder / PARTS / entry["name"], entry, state.dim, check=False)
    try:
        ann.open_near(part, flat.open_codes(part))
    except (IndexDamageError, StoredFileError) as error:
        return [str(error.path.relative_to(folder))]
    except FileNotFoundError as error:
        return [str(Path(error.filename).relative_to(folder))]
    finally:
        part.close()
    return []


def _salvaged(folder: Path, entry: SegmentEntry, dim: int, report: Repaired) -> tuple[Segment, Mask]:
    """A part with its readable files, and which of its rows are unreadable."""
    damage = {name: _bad_blocks(folder / name, expected) for name, expected in entry["files"].items()}
    bad = {name: blocks for name, blocks in damage.items() if blocks}
    report.damaged += [f"{PARTS}/{folder.name}/{name}" for name in bad]
    files = {name: expected for name, expected in entry["files"].items() if name in STORED and name not in bad}
    unreadable = np.zeros(entry["rows"], bool)
    if ITEMS in bad:
        unreadable[:] = True
        files = {name: expected for name, expected in files.items() if name == GONE}
    elif ITEMS in files:
        if VECTORS in bad:
            (folder / VECTORS).touch()
            os.truncate(folder / VECTORS, entry["files"][VECTORS]["bytes"])
            for block in bad[VECTORS]:
                unreadable[block * BLOCK // (4 * dim) : -(-(block + 1) * BLOCK // (4 * dim))] = True
        if KEYS in bad:
            segment.write_keys(folder, segment.read_items(folder))
        files |= {name: entry["files"][name] for name in (VECTORS, KEYS)}
    report.revived |= GONE in bad
    readable = SegmentEntry(name=entry["name"], rows=entry["rows"], files=files)
    return Segment(folder, readable, dim, check=False), unreadable


def _bad_blocks(path: Path, expected: Sums) -> list[int]:
    """Numbers of the damaged blocks of a file."""
    found = segment.checksums(path) if path.exists() else Sums(bytes=-1, crc=[])
    if found == expected:
        return []
    pairs = zip_longest(expected["crc"], found["crc"])
    return [number for number, (right, now) in enumerate(pairs) if right != now] or [len(expected["crc"])]


def _older(index: EmbeddedIndex) -> Mask:
    """Rows whose id a later row repeats: the list that replaced them is lost."""
    ids = [part.table[KEY].to_pylist() if part.table is not None else [""] * part.rows for part in index.parts]
    table = pd.Series([*chain.from_iterable(ids)], dtype=object)
    older: Mask = (table.duplicated(keep="last") & (table != "")).to_numpy()
    return older
