"""The header of a WFDB record, checked before a signal file is opened; its comments never leave this module.

name[/segments] signals rate [length ...]                                  the record line
file format[xframes][:skew][+offset] [gain[(baseline)][/unit]] ...  name   one line of each signal
"""

import codecs
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from m3bind.errors import ReadError
from m3bind.modalities.formats import images, limits
from m3bind.modalities.formats.recording import AGAIN, MAX_HEADER, check_size
from m3bind.modalities.formats.signals_units import number

WFDB_SUFFIXES = (".hea", ".dat", ".mat")
FLAC = ("508", "516", "524")
_BYTES = {"8": 1.0, "80": 1.0, "16": 2.0, "61": 2.0, "160": 2.0, "212": 1.5, "310": 4 / 3, "311": 4 / 3, "24": 3.0,
          "32": 4.0}  # of a sample  # fmt: skip
_PLAIN = re.compile(r"-?\d*\.?\d*(?:e[-+]?\d+)?(?:\(-?\d+\))?(?:/[\w^%/-]+)?", re.ASCII)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SPARE = 3  # frames after the last one that pad a word of formats 310 and 311, or a block
_UNREADABLE = "not a readable WFDB record: "


def record_stem(path: Path | str) -> Path:
    """The WFDB record of a path: the path without the extension of one of its files."""
    path = Path(path)
    ending = images.ending(path, WFDB_SUFFIXES)
    return path.with_name(path.name[: -len(ending)]) if ending else path


def header_of(path: Path | str) -> Path:
    """The path of the header of the WFDB record that a path names."""
    stem = record_stem(path)
    place = stem.with_name(stem.name + ".hea")
    return place if place.is_file() else place.with_name(_in_folder(place.parent, place.name))


def _in_folder(folder: Path, name: str) -> str:
    """`name`, or the only file of the folder whose name differs in case only, as on discs with names in capitals."""
    if (folder / name).is_file() or not folder.is_dir():
        return name
    alike = [other for other in os.listdir(folder) if other.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else name


@dataclass
class SignalLine:
    """The header line of one signal."""

    file: str
    form: str  # of its samples
    frames: int  # samples per frame
    skew: int
    offset: int  # bytes before the first sample
    gain: float | None  # per unit; None: not a number
    baseline: str  # "": that of the converter
    unit: str
    rest: str  # resolution, zero ... name
    plain: bool  # whether wfdb can parse gain, baseline and unit
    fault: str = ""  # why the stored numbers have no calibration

    @property
    def name(self) -> str:
        """The text after the numbers."""
        words = self.rest.split(None, 5)
        return words[5] if len(words) > 5 else ""

    @property
    def evidence(self) -> tuple[int, int]:
        """First value and checksum (16 bits) of the samples by the header; 0: not stated."""
        words = [*self.rest.split()[2:4], "0", "0"]
        first, checksum = (int(word) if re.fullmatch(r"-?\d{1,10}", word, re.ASCII) else 0 for word in words[:2])
        return first, checksum

    def corrected(self, file: str) -> str:
        """The line in a form that wfdb reads: ASCII, with a valid gain."""
        form = f"{self.form}x{self.frames}:{self.skew}+{self.offset}"
        gain = 1.0 if self.fault or not self.gain else self.gain
        baseline = f"({self.baseline})" if self.baseline and not self.fault else ""
        return f"{file} {form} {gain!r}{baseline}/mV {self.rest.encode('ascii', 'ignore').decode()}"


@dataclass
class Header:
    """A record's header, without comments."""

    name: str
    rate: str
    length: int  # samples of each signal, or frames; 0: all samples in the files
    signals: list[SignalLine] = field(default_factory=list)
    segments: list[tuple[str, int]] = field(default_factory=list)  # of a record of several: name and length of each
    odd: bool = False  # wfdb cannot read it unchanged
    dated: bool = False  # with a time or a date after the length, which wfdb may not parse
    doubts: list[str] = field(default_factory=list)

    @property
    def base_rate(self) -> float:
        """Frames per second."""
        return float(re.match(r"[\d.]+(?:[eE][-+]?\d+)?", self.rate)[0])  # type: ignore[index]


def header_lines(place: Path) -> list[str]:
    """The lines of a header file without comments, the record line first."""
    data = place.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def named_files(place: Path) -> set[str]:
    """Names of the files of a record by its header; empty if the file is not a header."""
    if not place.is_file() or place.stat().st_size > MAX_HEADER:
        return set()
    lines = header_lines(place)
    several = bool(lines) and re.match(r"\S+/\d+(\s|$)", lines[0]) is not None
    names = {line.split(None, 1)[0] + (".hea" if several else "") for line in lines[1:]}
    return {_in_folder(place.parent, name) for name in names if "/" not in name and "\0" not in name} - {place.name}


def read_header(path: Path, place: Path) -> Header:
    """The header at `place`, checked; errors name `path`.

    Raises:
        ReadError: damaged, no rate, a signal file that is missing, outside the folder, or shorter than declared.
    """
    if place.stat().st_size > MAX_HEADER:
        raise ReadError(path, f"a header of more than {MAX_HEADER:,} bytes", "damaged, or malicious")
    lines = header_lines(place)
    first = lines[0].split() if lines else []
    if re.search(r"\s", place.stem):
        raise ReadError(path, f"{_UNREADABLE}its name contains blanks", "rename its files, also in the header")
    rate = re.match(r"\d*\.?\d+(?:[eE][-+]?\d+)?|\d+", first[2]) if len(first) > 2 else None
    if rate is None or not first[1].isdecimal() or int(first[1][:9]) < 1 or not float(rate[0]):
        raise ReadError(path, f"{_UNREADABLE}the header states no signals or no sampling rate", AGAIN)
    length = int(first[3][:12]) if len(first) > 3 and first[3].isdecimal() else 0
    header = Header(first[0], first[2], length)
    several = re.search(r"/(\d+)$", first[0])
    declared = int(several[1][:12]) if several else int(first[1][:12])
    if len(lines) - 1 != declared:
        what = "segments" if several else "signals"
        raise ReadError(path, f"the header declares {declared:,} {what} and describes {len(lines) - 1}", AGAIN)
    if several:
        _check_segments(path, header, lines[1:], int(first[1][:9]))
        return header
    header.signals = [_signal_line(path, place.parent, line, length) for line in lines[1:]]
    header.dated = len(first) > 4
    header.odd = place.suffix != ".hea" or place.read_bytes().startswith(_UTF_16)
    header.odd |= not re.fullmatch(r"[-\w]+", first[0], re.ASCII) or length == 0
    header.odd |= any("\t" in line or not line.isascii() for line in lines)  # wfdb drops letters: µV would become V
    for signal, line in zip(header.signals, lines[1:]):
        header.odd |= signal.file not in line or not re.fullmatch(r"[-\w]+(\.\w+)?", signal.file, re.ASCII)
        header.odd |= bool(signal.fault) or not signal.plain
    limits.check_count(path, max(length, 1) * sum(signal.frames for signal in header.signals), "samples")
    _check_files(path, place.parent, header)
    return header


def _check_name(path: Path, name: str) -> None:
    if "/" in name or "\\" in name or ":" in name or name.startswith("..") or "\0" in name:
        raise ReadError(path, "the header names a signal file outside its folder", "damaged, or malicious")


def _check_segments(path: Path, header: Header, lines: list[str], signals: int) -> None:
    """Add the segment lines of a record of several segments to `header`."""
    for line in lines:
        name, length = [*line.split(None, 1), ""][:2]
        if not length.strip()[:12].isdecimal():
            raise ReadError(path, f"{_UNREADABLE}a segment line without a length", AGAIN)
        _check_name(path, name)
        header.segments.append((name, int(length.strip()[:12])))
    total = sum(length for _, length in header.segments)
    limits.check_count(path, len(header.segments), "files")
    limits.check_count(path, max(1, total) * signals, "samples")
    if header.length not in (0, total):
        reason = f"the header declares {header.length:,} samples, its segments {total:,}"
        raise ReadError(path, reason, AGAIN)


def _signal_line(path: Path, folder: Path, line: str, length: int) -> SignalLine:
    """One signal line."""
    name, rest = [*line.split(None, 1), ""][:2]
    _check_name(path, name)
    form = re.match(r"\s*(\d{1,4})(?:x(\d{1,9}))?(?::(\d{1,12}))?(?:\+(\d{1,12}))?(?:\s+(\S+))?(.*)", rest)
    if form is None:
        raise ReadError(path, f"{_UNREADABLE}a signal line without a format", AGAIN)
    if int(form[3] or 0) > max(length, 0):
        raise ReadError(path, "a signal is shifted by more than the record's length", "damaged, or malicious")
    if form[1] not in (*_BYTES, *FLAC):
        raise ReadError(path, f"{_UNREADABLE}samples in format {form[1]}, which WFDB does not define", AGAIN)
    gain, baseline, unit = _calibration(form[5] or "")
    fault = ""
    if not form[5] or gain == 0:
        fault = "no gain in the header" if not form[5] else "its gain is 0"
    elif gain is None:
        fault = "its gain is not a number"
    elif baseline and not re.fullmatch(r"[-+]?\d{1,12}", baseline):
        fault = "its baseline is not a number"
    file, plain = _in_folder(folder, name), _PLAIN.fullmatch(form[5] or "") is not None
    frames, skew, offset = int(form[2] or 1), int(form[3] or 0), int(form[4] or 0)
    return SignalLine(file, form[1], frames, skew, offset, gain, baseline, unit, form[6].strip(), plain, fault)


def _calibration(text: str) -> tuple[float | None, str, str]:
    """Gain, baseline and unit of "200(-5)/mV"; the format's default unit is mV."""
    front, _, unit = text.partition("/")
    gain, _, baseline = front.partition("(")
    return number(gain), baseline.removesuffix(")"), unit or "mV"


def _check_files(path: Path, folder: Path, header: Header) -> None:
    """Raise ReadError if signal files are missing, too large, of another kind, or shorter than declared."""
    for name in dict.fromkeys(signal.file for signal in header.signals):
        file = folder / name
        if name == "~" or not file.is_file():
            packed = file.with_name(f"{name}.gz").is_file()
            hint = "unpack the .gz beside it" if packed else "copy .hea and .dat together"
            raise ReadError(path, f"a signal file{_which(header, name)} named by the header is missing", hint)
        limits.check_bytes(file)
        if not header.length:
            check_size(file, 1)
        with open(file, "rb") as handle:
            if handle.read(6) == b"MATLAB":
                reason = "its signal file is of MATLAB 5 or later, whose samples a WFDB header cannot describe"
                raise ReadError(path, reason, "save it with -v4, as PhysioNet does")
        inside = [signal for signal in header.signals if signal.file == name]
        if inside[0].form in _BYTES:
            stored = file.stat().st_size - inside[0].offset
            frame = sum(signal.frames for signal in inside)
            need = int(header.length * frame * _BYTES[inside[0].form])  # rounded down, to accept complete files
            samples = max(0, int(stored / _BYTES[inside[0].form] / frame))
            if header.length and stored < need:
                raise ReadError(path, cut_short(header.length, samples), AGAIN)
            if header.length and samples > header.length + _SPARE:
                counts = f"the header declares {header.length:,} samples, {samples:,} are stored"
                header.doubts.append(f"{counts}; the declared ones are read")


def _which(header: Header, name: str) -> str:
    """The number of the signal file `name` among several: " (2 of 3)"."""
    files = list(dict.fromkeys(signal.file for signal in header.signals))
    return f" ({files.index(name) + 1} of {len(files)})" if len(files) > 1 else ""


def cut_short(declared: int, stored: int) -> str:
    """The reason of the error about a signal file with fewer samples than declared."""
    return f"{_UNREADABLE}cut short, the header declares {declared:,} samples, its signal file contains {stored:,}"
