"""WFDB records (.hea with .dat or .mat) of PhysioNet and its challenges, of one or several segments.

Sizes are checked by the header before memory is allocated (`signals_wfdb_header`).
"""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.errors import ReadError
from m3bind.modalities.formats.recording import AGAIN, Recording, Signal, decoding
from m3bind.modalities.formats.signals_wfdb_header import FLAC, Header, cut_short, header_of, read_header


def read_wfdb(path: Path) -> Recording:
    """A WFDB record; signals of several samples per frame have their own rate.

    Raises:
        ReadError: damaged, cut short, no rate, a signal file or a segment that is missing or outside the folder.
    """
    with decoding(path, "WFDB record"):
        place = header_of(path)
        header = read_header(path, place)
        return _joined(path, place.parent, header) if header.segments else _one_segment(path, place, header)


def _one_segment(path: Path, place: Path, header: Header) -> Recording:
    """The signals of a record, or of one segment of it."""
    try:
        record, wide = _decoded(place, header)
    except (MemoryError, ReadError):
        raise
    except Exception:
        _check_flac(path, place.parent, header)
        raise
    found = Recording([], warnings=header.doubts + _contradictions(record, header, wide))
    columns = record.dac(expanded=wide, inplace=False) if wide else record.dac(inplace=False).T
    signals = []
    for line, name, values in zip(header.signals, record.sig_name, columns, strict=True):
        own = line.name.encode("ascii", "ignore").decode().strip()
        name = line.name if own == (name or "").strip() else name  # wfdb drops letters that are not ASCII
        rate = header.base_rate * line.frames
        signals.append(Signal(name or "", values, line.unit, rate, fault=line.fault))
    found.signals = signals
    if header.odd:
        found.steps.append("read with a corrected copy of its header (a name, length, gain or letter of it)")
    if turned := sum((line.gain or 0) < 0 for line in header.signals):
        found.warnings.append(f"{turned} signals of negative gain, inverted accordingly")
    return found


def _decoded(place: Path, header: Header) -> tuple[Any, bool]:
    """wfdb's record of stored samples, and whether signals are lists as some have several samples per frame."""
    import wfdb  # slow to import

    wide = max(line.frames for line in header.signals) > 1
    if not (header.odd or header.dated):
        stem = str(place.with_suffix("").absolute())
        return wfdb.rdrecord(stem, smooth_frames=not wide, physical=False), wide
    with tempfile.TemporaryDirectory(prefix="m3bind-") as folder:
        stem = str(_corrected_copy(header, place.parent, Path(folder)))
        return wfdb.rdrecord(stem, smooth_frames=not wide, physical=False), wide


def _contradictions(record: Any, header: Header, wide: bool) -> list[str]:
    """A warning if samples do not match the header's checksums and first values, of which 0 means not stated."""
    columns = record.e_d_signal if wide else record.d_signal.T
    bad = []
    for k, (line, values) in enumerate(zip(header.signals, columns), 1):
        first, checksum = line.evidence
        total = int(values.sum(dtype=np.int64))
        if (checksum and (total - checksum) % 65536) or (first and not line.skew and first != values[0]):
            bad.append(str(k))
    if not bad:
        return []
    which = "all signals" if len(bad) == len(header.signals) else f"signals {', '.join(bad)}"
    return [f"checksum or first value in the header do not match {which}: damaged, edited or of another record?"]


def _corrected_copy(header: Header, source: Path, folder: Path) -> Path:
    """Write a header that wfdb can read to `folder`, with links to the signal files; returns the record's stem."""
    names: dict[str, str] = {}
    lines = [f"record {len(header.signals)} {header.rate}" + (f" {header.length}" if header.length else "")]
    for line in header.signals:
        if line.file not in names:
            names[line.file] = f"signal{len(names)}.dat"
            (folder / names[line.file]).symlink_to((source / line.file).absolute())
        lines.append(line.corrected(names[line.file]))
    (folder / "record.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
    return folder / "record"


def _check_flac(path: Path, folder: Path, header: Header) -> None:
    """Raise ReadError after a failure if a compressed signal file ends early."""
    for name in dict.fromkeys(line.file for line in header.signals if line.form in FLAC):
        frames = max(line.frames for line in header.signals if line.file == name)
        stored = _flac_samples(folder / name)
        if stored < header.length * frames:
            raise ReadError(path, cut_short(header.length, stored // frames), AGAIN)


def _flac_samples(file: Path) -> int:
    """The number of samples of each channel that can be decoded."""
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        """A file that is read sequentially: seeking in a truncated file fails immediately."""

        def seekable(self) -> bool:
            return False

    count = 0
    with contextlib.suppress(soundfile.SoundFileError, RuntimeError), Stream(file) as stream:
        while block := len(stream.read(512, dtype="int32")):
            count += block
    return count


# --- several segments -------------------------------------------------------------------------------------------------


def _joined(path: Path, folder: Path, header: Header) -> Recording:
    """The concatenated segments of a record, NaN where a signal or a whole segment is missing."""
    parts: list[tuple[int, Recording]] = []
    at = 0
    for name, length in header.segments:
        if name != "~" and length:  # a segment without samples only declares the signals
            parts.append((at, _segment(path, folder, name, length, header)))
        at += length
    if not parts:
        raise ReadError(path, "a record of several segments without samples", AGAIN)
    signals: dict[tuple[str, int], Signal] = {}
    for begin, part in parts:
        seen: dict[str, int] = {}
        for signal in part.signals:
            key = signal.name, seen.get(signal.name, 0)
            seen[signal.name] = key[1] + 1
            frames = round(signal.rate / header.base_rate)
            if key not in signals:
                empty = np.full(at * frames, np.nan)
                signals[key] = Signal(signal.name, empty, signal.unit, signal.rate, fault=signal.fault)
            whole = signals[key]
            if (signal.unit, signal.rate) != (whole.unit, whole.rate):
                raise ReadError(path, "a signal whose unit or rate changes from segment to segment", AGAIN)
            whole.values[begin * frames : begin * frames + len(signal.values)] = signal.values
            whole.fault = whole.fault or signal.fault
    found = Recording(list(signals.values()), [f"{len(header.segments)} segments joined"])
    for _, part in parts:
        found.steps += [step for step in part.steps if step not in found.steps]
        found.warnings += [warning for warning in part.warnings if warning not in found.warnings]
    return found


def _segment(path: Path, folder: Path, name: str, length: int, header: Header) -> Recording:
    """One segment."""
    place = folder / f"{name}.hea"
    if not place.is_file():
        raise ReadError(path, "a segment named by the header is missing", "copy all files of the record together")
    part = read_header(path, place)
    if part.segments:
        raise ReadError(path, "a segment that has segments itself", "damaged, or malicious")
    if part.length not in (0, length) or part.base_rate != header.base_rate:
        raise ReadError(path, "a segment whose length or rate differs from the record's declaration", AGAIN)
    return _one_segment(path, place, part)
