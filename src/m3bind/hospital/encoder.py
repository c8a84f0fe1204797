"""The way of complete units from the spool into the index.

    unit -> decoded in a child process -> embedded -> kept files, where asked for -> index.upsert -> out of the spool

* `Encoder`: a step at a time, or until it is told to stop.

A process that is killed anywhere between leaves the objects in the spool, and the next one goes on; an item that was
written twice is the same item. Objects that made an item already are not encoded again. What comes after its series was
encoded is put together with the kept files, or, where none are kept, set aside until the whole series comes again.
"""

import logging
import os
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from m3bind.errors import DiskError, M3BindError, UnknownNameError, in_words
from m3bind.hospital.spool import SUFFIX, Spool
from m3bind.hospital.tags import SERIES, STORAGE
from m3bind.modalities import Cut
from m3bind.space._decode_pool import Prepared, ahead
from m3bind.space.bundle import Space
from m3bind.space.calibrate import calibrate
from m3bind.space.compute import Array, correct_gap
from m3bind.space.index.base import Index

log = logging.getLogger(__name__)
BATCH = 16  # items written to the index at once
INPUTS = 16  # inputs per forward pass
WORKERS = 2  # decoding processes
EAGER = 8  # publish when more than one in so many items changed
PAUSE = 0.1  # seconds between looks at the spool
AGAIN = 5.0  # seconds after which a disk that refused is tried again


class Encoder:
    """Turns complete units of a spool into items of an index. One thread calls it."""

    def __init__(self, space: Space, index: Index, spool: Spool, keep: Path | None = None) -> None:
        """`index`: open for writing. `keep`: folder for the de-identified files, so that items have pictures."""
        self._space, self._index, self._spool, self._keep = space, index, spool, keep
        self._changed = 0
        self.counts: Counter[str] = Counter()  # items per modality; "set aside", "repeated"

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
        """Encode at most `BATCH` units; how many there were.

        Raises:
            DiskError: the index or the folder of kept files cannot be written; the units wait again.
        """
        units = self._spool.ready(at_once)[:BATCH]
        try:
            self._encode({unit: path for unit in units if (path := self._source(unit, self._spool.take(unit)))})
        except Exception:
            for unit in units:
                self._spool.give_back(unit)
            raise
        return len(units)

    def _encode(self, sources: dict[str, Path]) -> None:
        """Decode, embed and write taken units; those that cannot be used are set aside."""
        if not sources:
            return
        rows = [(unit, {"path": str(path), "modality": _modality(path), "fault": ""}) for unit, path in sources.items()]
        vectors, items = [], []
        for unit, prepared in ahead(self._space, rows, Cut(), WORKERS, 2 * WORKERS):
            found = prepared.reason or self._embedded(prepared)
            if isinstance(found, str):
                self._spool.set_aside(unit, prepared.modality, found)
                self.counts["set aside"] += 1
            else:
                vectors.append(found)
                items.append({"id": unit, "modality": prepared.modality, **_described(sources[unit])})
        self._write(vectors, items, sources)

    def _source(self, unit: str, files: list[Path]) -> Path | None:
        """The file or folder to decode; None for what is done already, or cannot be done."""
        try:
            return self._wanted(unit, files)
        except (ValueError, KeyError, AttributeError, EOFError) as error:  # a disk that lost a part of our own file
            self._spool.set_aside(unit, "", f"its file in the spool cannot be read ({in_words(error)})")
            self.counts["set aside"] += 1
            return None

    def _wanted(self, unit: str, files: list[Path]) -> Path | None:
        """`_source`, of files that can be read."""
        names = {path.stem for path in files}
        done = self._spool.done(unit) if self._known(unit) else set()
        if not names or names <= done:
            self.counts["repeated"] += bool(names)
            self._spool.drop(unit)
            return None
        folder = self._spool.work / unit
        for name in done - names:
            kept = self._kept(_modality(files[0]), unit, True) / f"{name}{SUFFIX}" if self._keep else None
            if kept is None or not kept.is_file():
                reason = f"{len(names)} objects came after their series was encoded; send the whole series again"
                self._spool.set_aside(unit, _modality(files[0]), reason)
                self.counts["set aside"] += 1
                return None
            _link(kept, folder / kept.name)
        return folder if _class(files[0]) in SERIES else files[0]

    def settled(self, unit: str) -> bool:
        """Whether a unit is in the index, or in the list of what could not be used."""
        return self._known(unit) or self._spool.is_listed(unit)

    def _known(self, unit: str) -> bool:
        try:
            return len(self._index.items([unit])) == 1
        except UnknownNameError:
            return False

    def _embedded(self, prepared: Prepared) -> Array | str:
        """The unit row (d,) of an item, the mean of its parts; or why there is none."""
        try:
            parts = [
                self._space.encode_inputs(prepared.inputs[start : start + INPUTS], prepared.modality)
                for start in range(0, len(prepared.inputs), INPUTS)
            ]
        except Exception:  # a network may refuse what its reader let pass
            return "cannot be embedded: its network does not take it"
        rows = np.concatenate(parts)
        if self._index.gap_corrected:
            rows = correct_gap(rows, self._space.image_mean(prepared.modality))
        mean = rows.mean(axis=0, dtype=np.float64)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)

    def _kept(self, modality: str, unit: str, series: bool) -> Path:
        assert self._keep is not None
        return self._keep / modality / (unit if series else f"{unit}{SUFFIX}")

    def _write(self, vectors: list[Array], items: list[dict[str, str]], sources: dict[str, Path]) -> None:
        """Files first, then the index, then the spool: killed anywhere between, all is done again."""
        if not items:
            return
        for item in items:
            source = sources[item["id"]]
            if self._keep is not None:
                target = self._kept(item["modality"], item["id"], source.is_dir())
                _keep(source, target)
                item["path"] = str(target.resolve())
        self._index.upsert(np.stack(vectors), pd.DataFrame(items))
        for item in items:
            folder = self._spool.work / item["id"]
            self._spool.finish(item["id"], [path.stem for path in folder.glob(f"*{SUFFIX}")])
            self.counts[item["modality"]] += 1
        self._changed += len(items)
        if self._changed * EAGER > len(self._index):
            self._index.publish()
            calibrate(self._index)
            self._changed = 0


def _header(path: Path) -> dict[str, str]:
    """Entries of one of our own files, or of the first in a folder."""
    import pydicom

    file = min(path.glob(f"*{SUFFIX}")) if path.is_dir() else path
    keywords = ["SOPClassUID", "PatientID", "StudyDate"]
    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(keywords))
    return {keyword: str(dataset.get(keyword) or "") for keyword in keywords}


def _class(path: Path) -> str:
    return _header(path)["SOPClassUID"]


def _modality(path: Path) -> str:
    return STORAGE[_class(path)]


def _described(path: Path) -> dict[str, str]:
    """What the index says of an item beside id and modality: whose it is by pseudonym, and when, if dates are kept."""
    header = _header(path)
    day = header["StudyDate"]
    return {"patient": header["PatientID"], "date": f"{day[:4]}-{day[4:6]}-{day[6:8]}" if len(day) == 8 else ""}


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
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
