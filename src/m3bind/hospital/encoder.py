"""The way of complete units from the spool into the index.

    unit -> looked at (spooled) -> with what made the item before -> decoded in a child process -> embedded
         -> kept files, where asked for -> index.upsert -> out of the spool

* `SpoolEncoder`: a step at a time, or until it is told to stop.

A process that is killed anywhere between leaves the objects in the spool, and the next one resumes; an item that was
written twice is the same item. Objects that made an item already are not encoded again, unless their content changed.
What comes after its series was encoded is put together with the files of the item (those kept, or held by the spool
for a day), and the item is replaced; where these are gone it is quarantined until the whole series comes again.
An item that may lack a part says so in its column `incomplete`.
"""

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
from m3bind.hospital.spooled import ObjectFacts, SpoolFileError, counted, doubts, look
from m3bind.hospital.tags import SERIES
from m3bind.index.base import DOUBTS, INCOMPLETE, KEY, Index
from m3bind.index.calibration import calibrate
from m3bind.modalities import Cut
from m3bind.models.embedding import Array, correct_gap
from m3bind.space.bundle import Space

log = logging.getLogger(__name__)
BATCH = 16  # items written to the index at once
INPUTS = 16  # inputs per forward pass
WORKERS = 2  # decoding processes
EAGER = 8  # commit when more than one in so many items changed
PAUSE = 0.1  # seconds between looks at the spool
AGAIN = 5.0  # seconds after which a disk that refused is tried again
MOST_DOUBTS = 300  # characters of what is said of an item
OTHERS = ("incomplete", "repeated", "replaced", "set aside")  # counts beside those of modalities
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)  # not the fault of a unit
UNEXPECTED = "an error that nobody expected while it was encoded; the log has its kind and place"


@dataclass(frozen=True)
class _Taken:
    """A unit that is to be encoded: where its files are, and what they say."""

    path: Path  # a file, or the folder of a series
    objects: dict[str, str]  # object -> digest
    first: ObjectFacts
    incomplete: str  # why it may be; "" where nothing speaks against it

    def item(self, unit: str, modality: str) -> dict[str, str]:
        """What the index says of it: whose it is by pseudonym, and when, if dates are kept."""
        day = self.first.day
        date = f"{day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 else ""
        found = {KEY: unit, "modality": modality, "patient": self.first.patient, "date": date}
        return found | ({INCOMPLETE: self.incomplete} if self.incomplete else {})


class SpoolEncoder:
    """Turns complete units of a spool into items of an index. One thread calls it."""

    def __init__(self, space: Space, index: Index, spool: Spool, keep: Path | None = None) -> None:
        """`index`: open for writing. `keep`: folder for the de-identified files, so that items have pictures."""
        self._space, self._index, self._spool, self._keep = space, index, spool, keep
        self._changed = 0
        self.counts: Counter[str] = Counter()  # items per modality, and `OTHERS`

    def run(self, stop: threading.Event) -> None:
        """Encode what becomes complete until `stop` is set, then what is complete at that moment."""
        while not stop.is_set():
            try:
                busy = self.step()
            except M3BindError as error:  # a full disk, an index that cannot be reached
                log.error("%s; what was accepted waits in the spool", error)
                stop.wait(AGAIN)
                continue
            if not busy:
                stop.wait(PAUSE)

    def drain(self, at_once: bool = False) -> None:
        """Encode all that is complete, or, `at_once`, all that waits.

        Raises:
            DiskError: the index cannot be written; what was accepted stays in the spool.
        """
        while self.step(at_once):
            pass

    def step(self, at_once: bool = False) -> int:
        """Encode at most `BATCH` units; how many there were. A unit that cannot be encoded is quarantined.

        Raises:
            DiskError: the index, the spool or the folder of kept files cannot be written; the units wait again.
        """
        units = self._spool.ready(at_once)[:BATCH]
        try:
            self._encode(units)
        except M3BindError:
            raise
        except Exception:  # one of them, whatever it is, must not stop the others
            for unit in units:
                self._alone(unit)
        return len(units)

    def _alone(self, unit: str) -> None:
        """Encode one unit; quarantine it where that raises what nobody expected."""
        try:
            self._encode([unit])
        except M3BindError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            log.error("a unit of the spool is quarantined: %s at %s", type(error).__name__, place)
            if self._spool.take(unit):
                self._set_aside(unit, "", UNEXPECTED)

    def _encode(self, units: Sequence[str]) -> None:
        """Take units, decode, embed and write them; those that cannot be used are quarantined.

        Raises:
            DiskError: see `step`. Whatever is raised, the units wait again.
        """
        try:
            taken = {unit: found for unit in units if (found := self._take(unit)) is not None}
            vectors: list[Array] = []
            items: list[dict[str, str]] = []
            rows = [
                (unit, {"path": str(one.path), "modality": one.first.modality, "fault": ""})
                for unit, one in taken.items()
            ]
            for unit, prepared in ahead(self._space, rows, Cut(), WORKERS, 2 * WORKERS) if rows else ():
                row = prepared.reason or self._embedded(prepared)
                if isinstance(row, str):
                    self._set_aside(unit, prepared.modality, row)
                else:
                    vectors.append(row)
                    said = {DOUBTS: "; ".join(prepared.doubts)[:MOST_DOUBTS]} if prepared.doubts else {}
                    items.append(taken[unit].item(unit, prepared.modality) | said)
            self._write(vectors, items, taken)
        except Exception as error:
            for unit in units:
                self._spool.give_back(unit)
            if isinstance(error, OSError) and error.errno in DISK:
                raise DiskError(f"{self._spool.folder}: the disk refuses ({error.strerror})") from error
            raise

    def _set_aside(self, unit: str, modality: str, reason: str) -> None:
        try:
            self._spool.set_aside(unit, modality, reason)
        except DiskError:
            self._spool.give_back(unit)
            raise
        self.counts["set aside"] += 1

    # -- what there is to encode ---------------------------------------------------------------------------------------

    def _take(self, unit: str) -> _Taken | None:
        """A unit out of the spool, with what belongs to it; None for what is done already, or cannot be done."""
        said = self._spool.doubts(unit)
        came, lost = self._looked_at(unit, self._spool.take(unit))
        if not came:
            self._spool.drop(unit)
            return None
        known = self._known(unit)
        done = self._spool.done(unit) if known is not None else {}
        first = next(iter(came.values()))
        together = first.sop_class in SERIES
        objects = {**self._earlier(unit, first.modality, known is not None), **came} if together else came
        digests = {name: facts.digest for name, facts in objects.items()}
        if together:
            said += doubts(list(objects.values()), self._spool.expected(unit))
            said += [f"{counted(lost, 'object')} could not be read"] * bool(lost)
        incomplete = "; ".join(said)[:MOST_DOUBTS]
        if all(done.get(name) in ("", facts.digest) for name, facts in objects.items()):
            self.counts["repeated"] += 1
            self._say(unit, known or "", incomplete if done.keys() <= digests.keys() else known or "")
            self._spool.finish(unit, done | digests, self._holds(together))
            return None
        if not done.keys() <= digests.keys():
            self._too_late(unit, first.modality, len(came), known or "")
            return None
        self._note_changed(unit, first.modality, done, digests)
        folder = self._spool.work / unit
        for name, facts in objects.items():
            _link(facts.path, folder / f"{name}{SUFFIX}")
        return _Taken(folder if together else first.path, digests, first, incomplete)

    def _looked_at(self, unit: str, files: Sequence[Path]) -> tuple[dict[str, ObjectFacts], int]:
        """The objects of a unit; those that cannot be used are quarantined and counted."""
        found, lost = {}, 0
        for path in files:
            try:
                found[path.stem] = look(path)
            except SpoolFileError as damaged:
                self._spool.quarantine.take_file(path, unit, damaged.reason)
                lost += 1
        return found, lost

    def _earlier(self, unit: str, modality: str, known: bool) -> dict[str, ObjectFacts]:
        """Objects that came for a series before: kept, held, or quarantined because they were too few."""
        files = self._spool.earlier(unit, known)
        if self._keep is not None and known:
            kept = self._kept(modality, unit, True).glob(f"*{SUFFIX}")
            files = {file.stem: file for file in sorted(kept)} | files
        found = {}
        for name, path in files.items():
            try:
                found[name] = look(path)
            except SpoolFileError:  # it lies where it lies; what was lost with it is missed by its number or place
                continue
        return found

    def _known(self, unit: str) -> str | None:
        """What the index says of an item that may be incomplete ("": nothing); None where it has no such item."""
        try:
            return str(self._index.items([unit]).iloc[0].get(INCOMPLETE, ""))
        except UnknownNameError:
            return None

    def place(self, unit: str) -> Literal["index", "list", ""]:
        """Where a unit is that has left the spool: in the index, in the list of what could not be used, or nowhere."""
        return "index" if self._known(unit) is not None else "list" if self._spool.is_listed(unit) else ""

    def _say(self, unit: str, before: str, now: str) -> None:
        """Have the index say something else of an item that stays as it is."""
        if before != now:
            items = self._index.items([unit])
            items[INCOMPLETE] = now
            self._index.upsert(self._index.vectors([unit]), items)

    def _too_late(self, unit: str, modality: str, count: int, before: str) -> None:
        """Quarantine what came for an item whose files are gone, and have the item say that it lacks them."""
        self._say(unit, before, f"{counted(count, 'object')} came too late to be put together with it")
        reason = (
            f"{counted(count, 'object')} came after their series was encoded, and its files are not there any more; "
            "send the whole series again"
        )
        self._set_aside(unit, modality, reason)

    def _note_changed(self, unit: str, modality: str, done: dict[str, str], digests: dict[str, str]) -> None:
        changed = [name for name, digest in done.items() if digest not in ("", digests.get(name, ""))]
        if changed:
            self.counts["replaced"] += 1
            self._spool.note(unit, modality, REPLACED)

    # -- into the index ------------------------------------------------------------------------------------------------

    def _embedded(self, prepared: DecodedItem) -> Array | str:
        """The unit row (d,) of an item, the mean of its parts; or why there is none."""
        try:
            parts = [
                self._space.encode_inputs(prepared.inputs[start : start + INPUTS], prepared.modality)
                for start in range(0, len(prepared.inputs), INPUTS)
            ]
        except M3BindError as error:
            return f"cannot be embedded: {error}"
        except Exception as error:  # a network may refuse what its reader let pass
            log.error("the model of %s refuses an item (%s)", prepared.modality, type(error).__name__)
            return "cannot be embedded: its network does not take it"
        rows = np.concatenate(parts)
        if self._index.gap_corrected:
            rows = correct_gap(rows, self._space.image_mean(prepared.modality))
        mean = rows.mean(axis=0, dtype=np.float64)
        length = float(np.linalg.norm(mean))
        if not np.isfinite(length) or length < 1e-9:
            return "its embedding is no direction: not finite, or zero"
        return np.asarray(mean / length, np.float32)

    def _kept(self, modality: str, unit: str, series: bool) -> Path:
        assert self._keep is not None
        return self._keep / modality / (unit if series else f"{unit}{SUFFIX}")

    def _holds(self, together: bool) -> bool:
        """Whether the spool holds the files of an item: where late objects may come and nothing else keeps them."""
        return together and self._keep is None

    def _write(self, vectors: list[Array], items: list[dict[str, str]], taken: dict[str, _Taken]) -> None:
        """Files first, then the index, then the spool: killed anywhere between, all is done again."""
        if not items:
            return
        for item in items:
            source = taken[item[KEY]].path
            if self._keep is not None:
                target = self._kept(item["modality"], item[KEY], source.is_dir())
                _keep(source, target)
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


def _keep(source: Path, target: Path) -> None:
    """A file, or the files of a folder, also at `target`.

    Raises:
        DiskError: the file system refused.
    """
    try:
        for file in sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]:
            place = target / file.name if source.is_dir() else target
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _link(file, place)
    except OSError as error:
        raise DiskError(f"{target.parent}: files cannot be kept there ({error.strerror})") from error


def _link(source: Path, target: Path) -> None:
    """`target` with the content of `source`: the same file where both are on one file system, else a flushed copy."""
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
