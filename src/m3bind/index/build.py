"""Fills an index from an encoded archive.

* `build_index`: block by block; if it is killed, the same call resumes after the last stored block.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from m3bind.core.files import sha256_file
from m3bind.core.progress import progress
from m3bind.core.stored import checked
from m3bind.errors import ConfigError, SpaceError
from m3bind.index.base import KEY, Index
from m3bind.index.calibration import calibrate
from m3bind.index.uri import create_index, exists, open_index

if TYPE_CHECKING:
    from m3bind.encode.job import Encoded

ROWS = 16384  # items per block
BUILDING = "building"  # metadata of an unfinished build: which archive, how many rows are stored
EAGER = 8  # commit if more than 1 / EAGER of the items changed


class _Begun(TypedDict):
    """The metadata of an unfinished build."""

    source: str
    done: Annotated[int, Field(ge=0)]


def build_index(encoded: "Encoded", uri: Path | str, *, add: bool = False, rows: int = ROWS) -> Index:
    """Store an encoded archive in an index, commit, and calibrate its scores (`calibrate`); returned open for writing.

    Args:
        encoded: the opened archive.
        uri: of the index (see `uri`): a new one, or one whose build was interrupted.
        add: allow an index that holds items; those of the same id are replaced. It is committed if more than an
            eighth of it changed: until then new items are searched exactly, beside the graph.
        rows: items per block.

    Raises:
        ConfigError: the index exists and `add` is not set, or another process is writing.
        SpaceError: the index belongs to another space or gap correction than the archive.
        DiskError: the file system refused; finished blocks are retained.
    """
    index = (
        open_index(uri, writable=True)
        if exists(uri)
        else create_index(uri, encoded.embeddings.shape[1], encoded.fingerprint, encoded.gap_corrected)
    )
    try:
        _fill(index, encoded, add, rows)
        if not add or index.pending * EAGER > len(index):
            index.commit()
        calibrate(index)
        index.set_metadata(BUILDING, None)
    except BaseException:
        index.close()
        raise
    return index


def _fill(index: Index, encoded: "Encoded", add: bool, rows: int) -> None:
    """Upsert the missing blocks."""
    if (index.fingerprint, index.gap_corrected) != (encoded.fingerprint, encoded.gap_corrected):
        raise SpaceError(f"{index.uri} belongs to another space or gap correction than {encoded.folder}")
    table = encoded.items.drop(columns="row", errors="ignore")
    if KEY not in table.columns:
        raise SpaceError(f"{encoded.folder} has no column {KEY!r}; encode it again")
    source = sha256_file(encoded.folder / "encoded.json")
    begun = checked(
        _Begun, index.metadata.get(BUILDING) or {"source": "", "done": 0}, f"{index.uri}, note {BUILDING!r}"
    )
    resumed = begun["source"] == source
    if len(index) and not add and not resumed:
        raise ConfigError(f"{index.uri} holds {len(index)} items already; add to it, or choose another place")
    done = begun["done"] if resumed else 0
    with progress(f"index into {index.uri}", len(encoded), done=done) as bar:
        for start in range(done, len(encoded), rows):
            stop = min(start + rows, len(encoded))
            index.set_metadata(BUILDING, {"source": source, "done": start})
            index.upsert(np.asarray(encoded.embeddings[start:stop]), table.iloc[start:stop])
            bar.advance(stop - start)
    index.set_metadata(BUILDING, {"source": source, "done": len(encoded)})
