"""Files -> embeddings on disk: interrupted runs resume, unreadable files are quarantined.

* `encode_files`: writes the folder that `encoded` describes. * `encode_share`: one machine's part of it.
* From `encoded` and `assemble`: `open_encoded`, `Encoded`, `merge`.

    rows (items) -> prefetched by child processes (decode_pool) -> batches by modality and shape, towers in threads
    (towers) -> shards (draft, journal) -> the final folder (assemble)

Shards are cut at fixed positions and no batch spans two of them, so a killed run resumes with the next shard and ends
with the same bytes, whatever the number of workers, processes and machines. Memory does not grow with the number of
files.

Shapes: n items, d dimension of the space.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

import torch
from torch import Tensor

from m3bind.core.children import usable_cores
from m3bind.core.device import may_round, memory
from m3bind.core.launcher import processes
from m3bind.core.progress import progress
from m3bind.core.stored import read_json
from m3bind.encode.assemble import archive_hash, assemble, merge
from m3bind.encode.decode_pool import DecodedItem, ahead
from m3bind.encode.encoded import MARKER, Encoded, open_encoded
from m3bind.encode.items import Item, Listing, Source, rows_of, version_of
from m3bind.encode.journal import Journal, head_of, write_shard
from m3bind.encode.shard import ShardDraft
from m3bind.encode.towers import (
    ON_DEVICE,
    Batches,
    Embedded,
    Precision,
    TowerRunner,
    Towers,
    arithmetic,
    batch_size,
    choose,
)
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.modalities import Cut
from m3bind.modalities.base import get
from m3bind.models.embedding import evaluating
from m3bind.space.bundle import Space
from m3bind.space.folder import guard_folder
from m3bind.space.unlike import UNLIKE

__all__ = ["MARKER", "Cut", "Encoded", "Item", "Options", "encode_files", "encode_share", "merge",
           "open_encoded"]  # fmt: skip

SHARD = 512  # items per shard
POLL = 0.5  # seconds between checks for the shards of other processes


class Options(TypedDict, total=False):
    """Settings of an encoding; all have defaults."""

    batch: int  # inputs per forward pass, fewer where they are large; on a CPU 8 or 16 by default, on a GPU 64
    gap_correct: bool  # store embeddings without their modality's mean, for image-to-image search only
    keep: Sequence[str]  # fields of the records to store ("id", "label"); none by default: they may identify people
    workers: int  # decoding processes; one per usable core by default
    precision: Precision  # of the towers; "auto": bfloat16 where it is faster and keeps every cosine >= 0.999
    cut: Cut  # how many tiles of a slide and windows of a recording are averaged, and how long windows are
    part_embeddings: bool  # also store the embedding of every tile and window


def encode_files(
    space: Space, sources: Iterable[Source], out: Path | str, modality: str | None = None, **options: Unpack[Options]
) -> Encoded:
    """Encode files into the folder `out`, quarantining unusable ones; the same call resumes an interrupted run.

    Under a launcher of several processes (accelerate, torchrun) each takes its share of the shards; a process whose
    share is finished waits for the others without a time limit.

    Args:
        space: a saved space, on the device that is to compute; `load` opens it on the GPU of the process's local rank.
        sources: paths (folders are searched), records of a manifest, or its bad rows, which are quarantined.
        out: folder to write; an older encoding there is replaced at the end. Until then shards are in `out`.parts.
        modality: of paths, recognised if None; of records, only those of this modality are encoded.
        options: see `Options`.

    Raises:
        ConfigError: nothing to encode, a field no record has, invalid settings, or `out` is not an encoded archive.
        UnknownNameError: the space does not hold a modality.
        SpaceError: the space was never saved, or holds no mean for the gap correction.
        DiskError: the file system refused; finished shards are retained.
    """
    out = Path(os.path.abspath(out))
    rank, world = processes()  # which share the folder of shards and need no process group
    with _listed(space, sources, out, modality, options) as listing:
        job = _EncodingJob(space, out, listing, options)
        if not job.is_done():
            with job.journal.begun():
                job.run(range(rank, len(listing.names), world), f"encode into {out.name}")
                if rank == 0:
                    job.finish()
        elif rank == 0:
            job.finish()  # a run killed at its end leaves its parts
        while not job.is_done():
            time.sleep(POLL)
    return open_encoded(out)


def encode_share(
    space: Space,
    sources: Iterable[Source],
    out: Path | str,
    share: tuple[int, int],
    modality: str | None = None,
    **options: Unpack[Options],
) -> tuple[int, int]:
    """The i-th of n shares (i from 1) of `encode_files`, for one of n machines, written to `out`.parts; see `merge`.

    Args:
        space: as for `encode_files`; all arguments but `share` are the same on every machine.
        sources: in the same order everywhere.
        out: as for `encode_files`.
        share: (i, n).
        modality: as for `encode_files`.
        options: see `Options`.

    Returns:
        How many files of the share were encoded and how many quarantined.

    Raises:
        ConfigError: an invalid share. Other errors as `encode_files`.
    """
    out = Path(os.path.abspath(out))
    rank, world = processes()
    index, of = share
    if not 1 <= index <= of:
        raise ConfigError(f"share {index}/{of}: give i/n with i from 1 to n, e.g. 2/8")
    with _listed(space, sources, out, modality, options) as listing:
        job = _EncodingJob(space, out, listing, options)
        mine = range((index - 1) * world + rank, len(listing.names), of * world)
        with job.journal.begun():
            job.run(mine, f"encode share {index} of {of}")
        return job.counts(mine)


def _listed(space: Space, sources: Iterable[Source], out: Path, modality: str | None, options: Options) -> Listing:
    """The rows to encode.

    Raises:
        M3BindError: as `encode_files`, before anything is computed or written.
    """
    guard_folder(out, MARKER, "an encoded archive")
    listing = Listing(rows_of(sources, modality, options.get("keep", ()), space.modalities), SHARD)
    if not listing.count:
        raise ConfigError("nothing to encode: no files given or found" + (f" for {modality}" if modality else ""))
    named = sorted(listing.modalities - {""})
    for name in named:
        space.model(name)
    if options.get("gap_correct"):
        for name in space.modalities if "" in listing.modalities else named:
            space.image_mean(name)
    return listing


def _settings(space: Space, options: Options) -> dict[str, Any]:
    """Everything but the files that the result depends on, as JSON values."""
    cut, precision = options.get("cut") or Cut(), options.get("precision", "auto")
    size = options.get("batch")
    batch = {name: batch_size(space, name) if size is None else size for name in space.modalities}
    if min(batch.values()) < 1 or cut.most < 1 or not cut.seconds > 0:
        raise ConfigError("batch, number of parts and seconds of a window must be positive")
    if precision not in get_args(Precision):
        raise UnknownNameError("precision", precision, get_args(Precision))
    return {
        "space": space.fingerprint,
        "synthetic_space": space.synthetic,
        "dim": space.dim,
        "readers": {name: get(name).version for name in space.modalities},
        "batch": batch,
        "shard": SHARD,
        "gap_correct": options.get("gap_correct", False),
        "keep": list(options.get("keep", ())),
        "precision": precision,
        "cut": asdict(cut),
        "part_embeddings": options.get("part_embeddings", False),
        **({UNLIKE: True} if space.measures else {}),
    }


Place = tuple[ShardDraft, int, int]  # shard, position of the item in it, number of the input of the item


class _EncodingJob:
    """One encoding: its settings, rows and journal."""

    def __init__(self, space: Space, out: Path, listing: Listing, options: Options) -> None:
        self._space, self._out, self._listing = space, out, listing
        self._settings, self.journal = _settings(space, options), Journal.beside(out)
        self.journal.plan(self._settings, listing.count, listing.names)
        self._workers = options.get("workers") or usable_cores()
        self._versions = [version_of(rows) for _, rows in listing.shards()]
        self._bad = 0

    def is_done(self) -> bool:
        """Whether the result exists already."""
        try:
            content = read_json(self._out / MARKER)
            return isinstance(content, dict) and content.get("job") == archive_hash(self.journal, self._versions)
        except (OSError, ValueError):
            return False

    def finish(self) -> None:
        """Assemble all shards as soon as every process has written its own."""
        if not self.is_done():
            for number in range(len(self._versions)):
                while not self._finished(number):
                    time.sleep(POLL)
            assemble(self.journal, self._out)
        self.journal.remove()

    def counts(self, mine: Iterable[int]) -> tuple[int, int]:
        """(encoded, quarantined) files of finished shards."""
        heads = [head_of(self.journal.path(number)) for number in mine]
        counts = [head[1] for head in heads if head is not None]
        return sum(count["items"] for count in counts), sum(count["bad"] for count in counts)

    def _finished(self, number: int) -> bool:
        head = head_of(self.journal.path(number))
        return head is not None and head[0] == self._versions[number]

    def run(self, mine: Sequence[int], label: str) -> None:
        """Encode the unfinished shards of `mine`."""
        todo = {number for number in mine if not self._finished(number)}
        total = sum(map(self._listing.size, mine))
        done = total - sum(map(self._listing.size, todo))
        device = self._space.device
        on_cpu = device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else ON_DEVICE
        tf32 = not on_cpu and self._settings["precision"] == "auto" and may_round()
        parts = [*self._space._contents.models.values(), *self._space._contents.bridges.values()]
        with (
            progress(label, total, done=done, memory=partial(memory, device)) as bar,
            evaluating(*parts),
            arithmetic(1 if on_cpu else torch.get_num_threads(), tf32),
            Towers[Place](self._tower, threads) as towers,
        ):
            batches = Batches[Place](self._settings["batch"])
            try:
                for (draft, position), prepared in self._prepared(todo):
                    self._take(draft, position, prepared, towers, batches)
                    bar.advance(1, note=f"{self._bad} bad")
            finally:  # running batches may complete a shard
                self._keep(towers.rest())

    def _take(
        self, draft: ShardDraft, position: int, prepared: DecodedItem, towers: Towers[Place], batches: Batches[Place]
    ) -> None:
        """Pass the inputs of one item to the towers."""
        self._bad += bool(prepared.reason)
        for number, value in enumerate(draft.take(position, prepared)):
            for batch in batches.add(prepared.modality, (draft, position, number), value):
                self._keep(towers.run(batch))
        if draft.full:
            for batch in batches.flush():
                self._keep(towers.run(batch))
            self._write_if_done(draft)

    def _prepared(self, todo: set[int]) -> Iterator[tuple[tuple[ShardDraft, int], DecodedItem]]:
        """Every item of the shards `todo`, decoded."""
        rows = (
            ((draft, position), row)
            for number, shard in self._listing.shards()
            if number in todo
            for draft in [ShardDraft(number, shard, self._versions[number])]
            for position, row in enumerate(shard)
        )
        limit = 2 * max(self._settings["batch"].values()) + self._workers
        return ahead(self._space, rows, Cut(**self._settings["cut"]), self._workers, limit)

    def _tower(self, modality: str, inputs: Sequence[Tensor]) -> TowerRunner:
        """The tower of a modality, as stored in the journal or measured now."""
        decision = self.journal.decided(modality)
        if decision is None:
            measured, why = choose(self._space, modality, inputs, self._settings["precision"])
            print(f"precision of {why}", file=sys.stderr)
            decision = self.journal.decide(modality, measured)
        return TowerRunner(self._space, modality, decision, inputs[0])

    def _keep(self, results: Iterable[tuple[Place, Embedded | str]]) -> None:
        for (draft, position, number), value in results:
            draft.put(position, number, value)
            self._bad += isinstance(value, str)
            self._write_if_done(draft)

    def _write_if_done(self, draft: ShardDraft) -> None:
        if draft.full and not draft.missing:
            write_shard(self.journal.path(draft.number), draft.finish(self._space, self._settings))
