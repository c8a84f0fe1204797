"""Complete units of the spool into the index.

    unit -> checked (`spool_files`) -> with earlier objects of the item -> decoded in a child process -> embedded
         -> files stored, if enabled -> index.upsert -> out of the spool

* `SpoolEncoder`: a step at a time, or until a stop event is set.

If the process is killed in between, the objects stay in the spool and the next one resumes; an item that is written
twice is the same item. Objects that were encoded before are not encoded again, unless their content changed. Objects
that arrive after their series was encoded are merged with the files of the item (stored ones, or those held by the
spool for a day), and the item is replaced; if these are gone, they are quarantined until the whole series comes again.
The column `incomplete` of an item states why it may lack a part.
"""

import contextlib
import errno
import filecmp
import logging
import os
import shutil
import threading
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from m3bind.encode.decode_pool import DecodedItem, ahead
from m3bind.errors import DiskError, M3BindError, UnknownNameError
from m3bind.hospital.spool import REPLACED, SUFFIX, Spool
from m3bind.hospital.spool_files import ObjectFacts, SpoolFileError, counted, doubts, inspect
from m3bind.hospital.tags import SERIES
from m3bind.index.base import DOUBTS, INCOMPLETE, KEY, Index
from m3bind.index.calibration import calibrate
from m3bind.modalities import Cut
from m3bind.models.embedding import Array, correct_gap
from m3bind.space.bundle import Space
from m3bind.space.unlike import UNLIKE, unlike_of

log = logging.getLogger(__name__)
BATCH = 16  # items written to the index at once
INPUTS = 16  # inputs per forward pass
EAGER = 8  # commit when more than one in so many items changed
PAUSE = 0.1  # seconds between checks of the spool
AGAIN = 5.0  # seconds until a retry after a refusal of the disk
MAX_DOUBTS = 300  # characters of an item's doubts
OTHERS = ("incomplete", "repeated", "replaced", "quarantined")  # counts beside those of modalities
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)  # not the fault of a unit
UNEXPECTED = "an unexpected error while it was encoded; the log has its kind and place"


@dataclass(frozen=True)
class _Taken:
    """A unit to encode."""

    path: Path  # a file, or the folder of a series
    objects: dict[str, str]  # object -> digest
    first: ObjectFacts
    incomplete: str  # why it may be; "" if nothing is missing

    def item(self, unit: str, modality: str) -> dict[str, str]:
        """Its row of the index: with the patient's pseudonym, and the date, if dates are stored."""
        day = self.first.day
        date = f"{day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 else ""
        row = {KEY: unit, "modality": modality, "patient": self.first.patient, "date": date}
        return row | ({INCOMPLETE: self.incomplete} if self.incomplete else {})


class SpoolEncoder:
    """Turns complete units of a spool into items of an index. One thread calls it."""

    def __init__(self, space: Space, index: Index, spool: Spool, keep: Path | None = None, workers: int = 2) -> None:
        """`index`: open for writing. `keep`: folder for the de-identified files, so that items have images.

        `workers`: decoding processes.
        """
        self._space, self._index, self._spool, self._keep, self._workers = space, index, spool, keep, workers
        self._changed = 0
        self.counts: Counter[str] = Counter()  # items per modality, and `OTHERS`

    def run(self, stop: threading.Event) -> None:
        """Encode units that become complete until `stop` is set, then those that are complete at that moment."""
        while not stop.is_set():
            try:
                busy = self.step()
            except M3BindError as error:  # a full disk, an index that cannot be reached
                log.error("%s; accepted objects wait in the spool", error)
                stop.wait(AGAIN)
                continue
            if not busy:
                stop.wait(PAUSE)

    def drain(self, at_once: bool = False) -> None:
        """Encode all complete units, or, `at_once`, all waiting ones.

        Raises:
            DiskError: the index cannot be written; accepted objects stay in the spool.
        """
        while self.step(at_once):
            pass

    def step(self, at_once: bool = False) -> int:
        """Encode up to `BATCH` units; their number. A unit that cannot be encoded is quarantined.

        Raises:
            DiskError: the index, the spool or the folder of stored files cannot be written; the units wait again.
        """
        units = self._spool.ready(at_once)[:BATCH]
        try:
            self._encode(units)
        except M3BindError:
            raise
        except Exception:  # a fault of one unit must not stop the others
            for unit in units:
                self._alone(unit)
        return len(units)

    def _alone(self, unit: str) -> None:
        """Encode one unit; quarantine it after an unexpected error."""
        try:
            self._encode([unit])
        except M3BindError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            log.error("a unit of the spool is quarantined: %s at %s", type(error).__name__, place)
            if self._spool.take(unit):
                self._reject(unit, "", UNEXPECTED)

    def _encode(self, units: Sequence[str]) -> None:
        """Take units, decode, embed and write them; unusable ones are quarantined. After any error, they wait again."""
        try:
            taken = {unit: found for unit in units if (found := self._take(unit)) is not None}
            vectors: list[Array] = []
            items: list[dict[str, str]] = []
            rows = [
                (unit, {"path": str(found.path), "modality": found.first.modality, "fault": ""})
                for unit, found in taken.items()
            ]
            for unit, prepared in ahead(self._space, rows, Cut(), self._workers, 2 * self._workers) if rows else ():
                row, unlike = (prepared.reason, "") if prepared.reason else self._embedded(prepared)
                if isinstance(row, str):
                    self._reject(unit, prepared.modality, row)
                else:
                    vectors.append(row)
                    noted = {DOUBTS: "; ".join(prepared.doubts)[:MAX_DOUBTS]} if prepared.doubts else {}
                    noted |= {UNLIKE: unlike} if unlike else {}
                    items.append(taken[unit].item(unit, prepared.modality) | noted)
            self._write(vectors, items, taken)
        except Exception as error:
            for unit in units:
                self._spool.give_back(unit)
            if isinstance(error, OSError) and error.errno in DISK:
                raise DiskError(f"{self._spool.folder}: the disk refuses ({error.strerror})") from error
            raise

    def _reject(self, unit: str, modality: str, reason: str) -> None:
        try:
            self._spool.reject(unit, modality, reason)
        except DiskError:
            self._spool.give_back(unit)
            raise
        self.counts["quarantined"] += 1

    # -- out of the spool ----------------------------------------------------------------------------------------------

    def _take(self, unit: str) -> _Taken | None:
        """A unit out of the spool, with earlier objects of its item; None if it is encoded already, or unusable."""
        noted = self._spool.doubts(unit)
        received, lost = self._inspected(unit, self._spool.take(unit))
        if not received:
            self._spool.drop(unit)
            return None
        known = self._known(unit)
        done = self._spool.database.done(unit) if known is not None else {}
        first = next(iter(received.values()))
        together = first.sop_class in SERIES
        objects = {**self._earlier(unit, first.modality, known is not None), **received} if together else received
        digests = {name: facts.digest for name, facts in objects.items()}
        if together:
            noted += doubts(list(objects.values()), self._spool.expected(unit))
            noted += [f"{counted(lost, 'object')} could not be read"] * bool(lost)
        incomplete = "; ".join(noted)[:MAX_DOUBTS]
        if all(done.get(name) in ("", facts.digest) for name, facts in objects.items()):
            self.counts["repeated"] += 1
            self._set_incomplete(unit, known or "", incomplete if done.keys() <= digests.keys() else known or "")
            self._spool.finish(unit, done | digests, self._holds(together))
            return None
        if not done.keys() <= digests.keys():
            self._too_late(unit, first.modality, len(received), known or "")
            return None
        if any(digest not in ("", digests.get(name, "")) for name, digest in done.items()):
            self.counts["replaced"] += 1
            self._spool.quarantine.note(unit, first.modality, REPLACED)
        folder = self._spool.work / unit
        for name, facts in objects.items():
            _link(facts.path, folder / f"{name}{SUFFIX}")
        return _Taken(folder if together else first.path, digests, first, incomplete)

    def _inspected(self, unit: str, files: Sequence[Path]) -> tuple[dict[str, ObjectFacts], int]:
        """The objects of a unit, and the number of unusable ones, which are quarantined."""
        found, lost = {}, 0
        for path in files:
            try:
                found[path.stem] = inspect(path)
            except SpoolFileError as damaged:
                self._spool.quarantine.take_file(path, unit, damaged.reason)
                lost += 1
        return found, lost

    def _earlier(self, unit: str, modality: str, known: bool) -> dict[str, ObjectFacts]:
        """Earlier objects of a series: stored, held, or quarantined because they were too few."""
        files = self._spool.earlier(unit, known)
        if self._keep is not None and known:
            stored = (self._keep / modality / unit).glob(f"*{SUFFIX}")
            files = {file.stem: file for file in sorted(stored)} | files
        found = {}
        for name, path in files.items():
            with contextlib.suppress(SpoolFileError):  # it stays in its place; its gap is found by number or position
                found[name] = inspect(path)
        return found

    def _known(self, unit: str) -> str | None:
        """The column `incomplete` of an item ("" if empty); None if the index has no such item."""
        try:
            return str(self._index.items([unit]).iloc[0].get(INCOMPLETE, ""))
        except UnknownNameError:
            return None

    def place(self, unit: str) -> Literal["index", "list", ""]:
        """Where a unit is that has left the spool: in the index, in the list of quarantined ones, or nowhere."""
        return "index" if self._known(unit) is not None else "list" if (self._spool.aside / unit).exists() else ""

    def _set_incomplete(self, unit: str, before: str, now: str) -> None:
        """Change the column `incomplete` of an item."""
        if before != now:
            items = self._index.items([unit])
            items[INCOMPLETE] = now
            self._index.upsert(self._index.vectors([unit]), items)

    def _too_late(self, unit: str, modality: str, count: int, before: str) -> None:
        """Quarantine objects for an item whose files are gone, and mark the item as incomplete."""
        late = f"{counted(count, 'object')} came"
        self._set_incomplete(unit, before, f"{late} too late to be merged with it")
        reason = f"{late} after their series was encoded, and its files are gone; send the whole series again"
        self._reject(unit, modality, reason)

    # -- into the index ------------------------------------------------------------------------------------------------

    def _embedded(self, prepared: DecodedItem) -> tuple[Array | str, str]:
        """The unit row (d,) of an item, the mean of its parts, or the reason for a failure; and why it is unusual."""
        try:
            parts = [
                self._space.examine_inputs(prepared.inputs[start : start + INPUTS], prepared.modality)
                for start in range(0, len(prepared.inputs), INPUTS)
            ]
        except M3BindError as error:
            return f"cannot be embedded: {error}", ""
        except Exception as error:  # a network may refuse a sample that its reader accepts
            log.error("the model of %s refuses an item (%s)", prepared.modality, type(error).__name__)
            return "cannot be embedded: its network refuses it", ""
        rows = np.concatenate([part for part, _ in parts])
        if self._index.gap_corrected:
            rows = correct_gap(rows, self._space.image_mean(prepared.modality))
        mean = rows.mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean))
        if not np.isfinite(length) or length < 1e-9:
            return "its embedding has no direction: not finite, or zero", ""
        unlike = unlike_of([reason for _, reasons in parts for reason in reasons])
        return np.asarray(mean / length, np.float32), unlike

    def _holds(self, together: bool) -> bool:
        """Whether the spool holds an item's files: if late objects may come and `keep` does not store the files."""
        return together and self._keep is None

    def _write(self, vectors: list[Array], items: list[dict[str, str]], taken: dict[str, _Taken]) -> None:
        """Files first, then the index, then the spool: if the process is killed in between, all is repeated."""
        if not items:
            return
        for item in items:
            source = taken[item[KEY]].path
            if self._keep is not None:
                name = item[KEY] if source.is_dir() else f"{item[KEY]}{SUFFIX}"
                target = self._keep / item["modality"] / name
                _store(source, target)
                item["path"] = str(target.resolve())
        self._index.upsert(np.stack(vectors), pd.DataFrame(items))
        for item in items:
            unit = item[KEY]
            self._spool.finish(unit, taken[unit].objects, self._holds(taken[unit].path.is_dir()))
            self.counts[item["modality"]] += 1
            if INCOMPLETE in item:
                self.counts["incomplete"] += 1
        self._changed += len(items)
        if self._changed * EAGER > len(self._index):
            self._index.commit()
            calibrate(self._index)
            self._changed = 0


def _store(source: Path, target: Path) -> None:
    """Link or copy a file, or the files of a folder, to `target`. DiskError: the file system refused."""
    try:
        for file in sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]:
            place = target / file.name if source.is_dir() else target
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _link(file, place)
    except OSError as error:
        raise DiskError(f"{target.parent}: files cannot be stored there ({error.strerror})") from error


def _link(source: Path, target: Path) -> None:
    """`target` with the content of `source`: a hard link on the same file system, else a flushed copy."""
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
    os.replace(temporary, target)
