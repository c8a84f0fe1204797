"""WFDB records (.hea with .dat or .mat), of PhysioNet and its challenges.

Everything is refused by what the header declares before it is allocated; its comments never leave this module.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from m3bind.errors import ReadError
from m3bind.modalities import _images, _limits
from m3bind.modalities._recording import AGAIN, MAX_HEADER, Recording, Signal, check_size, decoding

WFDB_SUFFIXES = (".hea", ".dat", ".mat")


def record_stem(path: Path | str) -> Path:
    """The WFDB record a path names: the path without the ending of one of its files."""
    path = Path(path)
    ending = _images.ending(path, WFDB_SUFFIXES)
    return path.with_name(path.name[: -len(ending)]) if ending else path


def header_of(path: Path | str) -> Path:
    """Where the header of the WFDB record that a path names has to be."""
    stem = record_stem(path)
    return stem.with_name(stem.name + ".hea")


@dataclass
class _Header:
    """What has to be known of a WFDB header before its signal files are opened."""

    lines: list[str]  # record line first, without comments
    files: list[str]
    frames: list[int]  # samples per frame of each signal
    without_gain: int
    odd: bool  # wfdb cannot read it as it is


def read_wfdb(path: Path) -> Recording:
    """A WFDB record of one segment; signals of several samples per frame keep their own rate.

    Raises:
        ReadError: damaged, several segments, no rate, a signal file that is missing or outside the folder.
    """
    import wfdb  # slow to import

    stem = record_stem(path)
    with decoding(path, "WFDB record"):
        header = _wfdb_header(path)
        if header.odd:
            with tempfile.TemporaryDirectory(prefix="m3bind-") as folder:
                place = _corrected_copy(header, stem.parent, Path(folder))
                record = wfdb.rdrecord(str(place), smooth_frames=max(header.frames) == 1)
        else:
            record = wfdb.rdrecord(str(stem.absolute()), smooth_frames=max(header.frames) == 1)
        columns = record.p_signal.T if max(header.frames) == 1 else record.e_p_signal
        signals = [
            Signal(name or "", values, unit or "", float(record.fs) * count)
            for name, values, unit, count in zip(record.sig_name, columns, record.units, header.frames)
        ]
    found = Recording(signals)
    if header.odd:
        found.steps.append(
            "read with a corrected copy of its header (a name, length or letter that wfdb does not take)"
        )
    if header.without_gain:
        found.warnings.append(
            f"{header.without_gain} signals have no gain in the header; 200 ADC units per mV assumed, as WFDB does"
        )
    return found


def _wfdb_header(path: Path) -> _Header:
    """The header of a record, checked.

    Raises:
        ReadError: see `read_wfdb`.
    """
    place = header_of(path)
    if place.stat().st_size > MAX_HEADER:
        raise ReadError(path, f"a header of more than {MAX_HEADER:,} bytes", "damaged, or made to harm")
    data = place.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    first = lines[0].split() if lines else []
    if first and re.search(r"/\d+$", first[0]):
        raise ReadError(path, "a record of several segments", "cut out one segment as a record of its own")
    rate = re.match(r"\d*\.?\d+(?:[eE][-+]?\d+)?|\d+", first[2]) if len(first) > 2 else None
    if rate is None or not first[1].isdecimal() or int(first[1]) < 1 or not float(rate[0]):
        raise ReadError(path, "not a readable WFDB record: the header names no signals or no sampling rate", AGAIN)
    if len(lines) - 1 != int(first[1]):
        raise ReadError(path, f"the header declares {first[1][:9]} signals and describes {len(lines) - 1}", AGAIN)
    length = int(first[3]) if len(first) > 3 and first[3].isdecimal() else 0
    header = _Header(lines, [], [], 0, not re.fullmatch(r"[-\w]+", first[0], re.ASCII) or length == 0)
    header.odd |= any(not line.isascii() for line in lines)  # wfdb drops such letters: µV would become V
    header.lines[0] = f"record {first[1]} {first[2]}" + (f" {length}" if length else "")
    for line in lines[1:]:
        _check_signal_line(path, line, header, length)
    for name in set(header.files):
        file = place.parent / name
        if not file.is_file():
            raise ReadError(path, "a signal file named by the header is missing", "copy .hea and .dat together")
        _limits.check_bytes(file)
        if not length:
            check_size(file, 1)
        with open(file, "rb") as handle:
            if handle.read(6) == b"MATLAB":
                reason = "its signal file is of MATLAB 5 or later, whose samples a WFDB header cannot point to"
                raise ReadError(path, reason, "save it with -v4, as PhysioNet does")
    _limits.check_count(path, max(length, 1) * sum(header.frames), "samples")
    return header


def _check_signal_line(path: Path, line: str, header: _Header, length: int) -> None:
    """Add what one signal line says to `header`."""
    name, _, rest = line.partition(" ")
    if "/" in name or "\\" in name or ":" in name or name.startswith("..") or "\0" in name:
        raise ReadError(path, "the header names a signal file outside its folder", "damaged, or made to harm")
    form = re.match(r"\s*(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?(?:\s+(\S+))?", rest)
    if form is None:
        raise ReadError(path, "not a readable WFDB record: a signal line without a format", AGAIN)
    if int(form[3] or 0) > max(length, 0):
        raise ReadError(path, "a signal is shifted by more than the record's length", "damaged, or made to harm")
    gain = re.match(r"[-+]?\d*\.?\d*(?:e[-+]?\d+)?", form[5] or "", re.IGNORECASE)
    header.without_gain += gain is None or not gain[0] or not float(gain[0])
    header.files.append(name)
    header.frames.append(int(form[2] or 1))


def _corrected_copy(header: _Header, source: Path, folder: Path) -> Path:
    """A header wfdb can read in `folder`, with links to the signal files; returns the record's stem."""
    names: dict[str, str] = {}
    lines = header.lines[:1]
    for name, line in zip(header.files, header.lines[1:]):
        if name not in names:
            names[name] = f"signal{len(names)}.dat"
            (folder / names[name]).symlink_to((source / name).absolute())
        rest = line.partition(" ")[2].replace("µ", "u").replace("μ", "u")
        lines.append(f"{names[name]} {rest.encode('ascii', 'ignore').decode()}")
    (folder / "record.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
    return folder / "record"
