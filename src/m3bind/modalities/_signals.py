"""Signals of clinical files as they are stored: named, with unit and rate; what a name means is for `ecg` to say.

* `read_wfdb`: WFDB records (.hea with .dat or .mat), PhysioNet and its challenges.
* `read_edf`: EDF, EDF+ and BDF.
* `read_dicom`: DICOM waveforms, the multiplex group with the most leads.
* `read_csv`: a table with a header line of names: "time (ms),I (uV),II (uV),...". The rate comes from the time column
  or from a line `# rate 500` above the header, the unit from brackets behind the names or from a line `# unit uV`.
* `read_npy`: (leads, T) or (T, leads) with a file of the same name that ends in .json beside it:
  {"rate": 500, "unit": "mV", "leads": ["I", "II", ...]}.
* `read_aecg`: HL7 annotated ECG (XML).

Everything is refused by what headers declare before it is allocated. Comments, names and dates of a header never leave
this module. Shapes: T samples.
"""

import json
import re
import tempfile
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities import _dicom, _images, _limits

WFDB_SUFFIXES = (".hea", ".dat", ".mat")
SUFFIXES = (*WFDB_SUFFIXES, ".edf", ".bdf", *_dicom.SUFFIXES, ".csv", ".npy", ".xml")
REFUSED = {  # endings of formats that are known and not read
    ".scp": ("an SCP-ECG file", "export it as DICOM or HL7 aECG, or convert it to WFDB or EDF"),
    ".ecg": ("an ISHNE Holter file", "convert it to WFDB or EDF"),
    ".mwf": ("an MFER file", "export it as DICOM or HL7 aECG"),
}
AGAIN = "fetch or export it again"
MAX_HEADER = 1 << 20  # bytes of a text header
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6}
_TO_MV = {"mv": 1.0, "millivolt": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "microvolt": 1e-3, "v": 1e3, "volt": 1e3,
          "nv": 1e-6, "nanovolt": 1e-6}  # fmt: skip
_LEAD_NUMBERS = {1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6",
                 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 65: "-aVR"}  # fmt: skip
_VENDOR_XML = {"restingecgdata": "Philips XML", "RestingECG": "GE MUSE XML", "CardiologyXML": "GE CardioSoft XML"}

Values = NDArray[np.float64]


@dataclass
class Signal:
    """One channel: `values` (T,) in `unit` ("" where the file does not say), NaN where the file marks a gap."""

    name: str
    values: Values
    unit: str
    rate: float  # Hz


@dataclass
class Recording:
    """The signals of one file, with what was done and what looks wrong; nothing in it identifies a person."""

    signals: list[Signal]
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)


def to_millivolt(unit: str) -> float | None:
    """What a value in `unit` is multiplied by to give mV; None: no unit of voltage."""
    return _TO_MV.get(unit.strip().lower())


def record_stem(path: Path | str) -> Path:
    """The WFDB record a path names: the path without the ending of one of its files."""
    path = Path(path)
    ending = _images.ending(path, WFDB_SUFFIXES)
    return path.with_name(path.name[: -len(ending)]) if ending else path


def header_of(path: Path | str) -> Path:
    """Where the header of the WFDB record that a path names has to be."""
    stem = record_stem(path)
    return stem.with_name(stem.name + ".hea")


def read_signals(path: Path) -> Recording:
    """The signals of a file that exists, by its header and ending.

    Raises:
        ReadError: damaged, over a limit, without names or rate, or of a kind that is not read.
    """
    ending = _images.ending(path, SUFFIXES)
    if ending in ("", *WFDB_SUFFIXES) and header_of(path).is_file():
        found = read_wfdb(path)
    elif _dicom.is_dicom(path):
        found = read_dicom(path)
    elif ending in WFDB_SUFFIXES:
        raise ReadError(path, "no WFDB header (.hea) of that name", "it holds names, gains and rate: put it beside")
    else:
        readers = {".edf": read_edf, ".bdf": read_edf, ".csv": read_csv, ".npy": read_npy, ".xml": read_aecg}
        found = readers.get(ending, read_dicom)(path)
    found.signals = [signal for signal in found.signals if signal.values.size]
    if not found.signals:
        raise ReadError(path, "no signal has any samples", AGAIN)
    for signal in found.signals:
        if not 0 < signal.rate < float("inf"):
            raise ReadError(path, "a sampling rate that is no positive number", AGAIN)
    seconds = max(signal.values.size / signal.rate for signal in found.signals)
    if seconds < 1:
        raise ReadError(path, f"only {seconds:.2f} s long", "at least 1 s is needed, 10 s usual")
    rates = sorted({signal.rate for signal in found.signals})
    found.steps.insert(0, f"{' and '.join(f'{rate:g}' for rate in rates[:4])} Hz, {len(found.signals)} signals")
    return found


@contextmanager
def _decoding(path: Path, kind: str) -> Iterator[None]:
    """Turn what a decoder raises into a ReadError that does not quote it: its words may quote the file."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    except (ReadError, MemoryError, RecursionError):
        raise
    except Exception as error:  # decoders of foreign formats raise many kinds
        raise ReadError(path, f"not a readable {kind} ({type(error).__name__})", AGAIN) from None


def _check_size(path: Path, least: int) -> None:
    """Refuse a file whose bytes could hold too many samples of `least` bytes each."""
    _limits.check_bytes(path)
    _limits.check_count(path, max(1, path.stat().st_size // least), "samples")


# --- WFDB -------------------------------------------------------------------------------------------------------------


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
    with _decoding(path, "WFDB record"):
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
            _check_size(file, 1)
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


# --- EDF and BDF ------------------------------------------------------------------------------------------------------


def read_edf(path: Path) -> Recording:
    """An EDF, EDF+ or BDF file; each signal keeps its own rate.

    Raises:
        ReadError: damaged, annotations only, or with gaps between its records (EDF+D).
    """
    import edfio

    with open(path, "rb") as handle:
        head = handle.read(256)
    kind = {b"\xffBIOSEMI": "BDF", b"0       ": "EDF"}.get(head[:8])
    if kind is None or len(head) < 256:
        raise ReadError(path, "not an EDF or BDF file: its first bytes say neither", AGAIN)
    _check_size(path, 3 if kind == "BDF" else 2)
    with _decoding(path, f"{kind} file"):
        declared = int(head[236:244])
        if kind == "BDF":
            edf: edfio.Edf | edfio.Bdf = edfio.read_bdf(path, header_encoding="latin-1")
        else:
            edf = edfio.read_edf(path, header_encoding="latin-1")
        if not edf.signals:
            raise ReadError(path, f"{kind}+ with annotations only, no signals", "name the file with the signals")
        if not edf.is_continuous:
            raise ReadError(path, f"a discontinuous {kind}+ file", "cut out one continuous part")
        signals = [_edf_signal(signal) for signal in edf.signals]
        found = Recording(signals)
        if declared not in (-1, edf.num_data_records):
            found.warnings.append(
                f"the header declares {declared} data records, the file holds {edf.num_data_records}: cut short?"
            )
    return found


def _edf_signal(signal: Any) -> Signal:
    """One signal in physical values; without calibration its unit is ""."""
    try:
        physical, digital = signal.physical_range, signal.digital_range
        calibrated = bool(np.isfinite(physical).all()) and physical.min != physical.max and digital.min != digital.max
    except ValueError:  # not numbers
        calibrated = False
    unit = signal.physical_dimension if calibrated else ""
    return Signal(signal.label, signal.data, unit, float(signal.sampling_frequency))


# --- DICOM ------------------------------------------------------------------------------------------------------------


def read_dicom(path: Path) -> Recording:
    """The multiplex group of a DICOM waveform file that is most likely the 12-lead rhythm.

    Of groups with at least 8 channels the original one counts before derived ones (median beats), then the one with
    more channels, then the longer one.

    Raises:
        ReadError: no waveforms, samples that are missing, companded (mu-law, A-law) or big-endian.
    """
    dataset = _dicom.open_dicom(path)
    with _decoding(path, "DICOM waveform"):
        groups = list(dataset.get("WaveformSequence") or [])
        if not groups:
            raise ReadError(path, "a DICOM file without waveforms", "check the modality of this file")
        index = max(range(len(groups)), key=lambda k: _group_rank(groups[k]))
        group = groups[index]
        raw = _group_samples(path, dataset, index)
        rate = float(group.SamplingFrequency)
        definitions = list(group.ChannelDefinitionSequence)
        if len(definitions) != raw.shape[1]:
            raise ReadError(path, f"{raw.shape[1]} channels with {len(definitions)} definitions", AGAIN)
        padding = _padding(group, raw.dtype)
        signals = [_dicom_signal(item, raw[:, k], padding, rate) for k, item in enumerate(definitions)]
    found = Recording(signals, tags=_dicom.technical_tags(dataset) | _dicom.technical_tags(group))
    if len(groups) > 1:
        kind = "original" if group.get("WaveformOriginality") == "ORIGINAL" else "not marked original"
        found.steps.append(
            f"waveform group {index + 1} of {len(groups)} taken: "
            f"{raw.shape[1]} channels of {raw.shape[0]} samples, {kind}"
        )
    return found


def _group_rank(group: Any) -> tuple[bool, bool, int, float]:
    channels = int(group.get("NumberOfWaveformChannels") or 0)
    seconds = int(group.get("NumberOfWaveformSamples") or 0) / float(group.get("SamplingFrequency") or 1)
    return channels >= 8, group.get("WaveformOriginality") == "ORIGINAL", channels, seconds


def _group_samples(path: Path, dataset: Any, index: int) -> NDArray[Any]:
    """Stored samples (T, channels) of a group."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    group = dataset.WaveformSequence[index]
    channels, samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    if min(channels, samples) < 1:
        raise ReadError(path, f"a waveform of {channels} channels and {samples} samples", AGAIN)
    _limits.check_count(path, channels * samples, "samples")
    if group.WaveformSampleInterpretation in ("MB", "AB"):
        raise ReadError(path, "samples in mu-law or A-law coding", "export it with 16-bit linear samples")
    if dataset.original_encoding[1] is False:
        raise ReadError(path, "big-endian DICOM", "export it as little endian")
    if len(group.WaveformData) < channels * samples * (int(group.WaveformBitsAllocated) // 8):
        raise ReadError(path, "fewer samples than the header declares: cut short", AGAIN)
    stored: NDArray[Any] = multiplex_array(dataset, index, as_raw=True)
    return stored


def _padding(group: Any, kind: np.dtype[Any]) -> float | None:
    """The stored value that means "no sample here", if the group has one."""
    value = group.get("WaveformPaddingValue")
    if isinstance(value, bytes):
        return float(np.frombuffer(value[: kind.itemsize], dtype=kind)[0]) if len(value) >= kind.itemsize else None
    return None if value is None else float(value)


def _dicom_signal(channel: Any, raw: NDArray[Any], padding: float | None, rate: float) -> Signal:
    """One channel in physical values: stored value x sensitivity x correction factor + baseline."""
    source = channel.ChannelSourceSequence[0]
    number = re.fullmatch(r"(?:5\.6\.3-9-|2:)(\d{1,3})", str(source.get("CodeValue", "")).strip())
    name = _LEAD_NUMBERS.get(int(number[1]), "") if number else ""
    if not name and str(source.get("CodeValue", "")).startswith("MDC_"):
        name = str(source.CodeValue)
    name = name or str(source.get("CodeMeaning") or channel.get("ChannelLabel") or "")
    values = raw.astype(np.float64)
    unit = ""
    if channel.get("ChannelSensitivity") is not None:
        correction = channel.get("ChannelSensitivityCorrectionFactor")
        values = values * float(channel.ChannelSensitivity) * float(1.0 if correction is None else correction)
        values += float(channel.get("ChannelBaseline") or 0.0)
        units = channel.get("ChannelSensitivityUnitsSequence")
        unit = str(units[0].get("CodeValue", "")) if units else ""
    if padding is not None:
        values[raw == padding] = np.nan
    return Signal(name, values, unit, rate)


# --- CSV and npy ------------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> Recording:
    """A table of numbers below a header line of names; separated by commas, semicolons or tabs.

    Raises:
        ReadError: no header line, no rate, text in a cell, or times that are not evenly spaced.
    """
    import pandas as pd

    _check_size(path, 2)
    notes, header, skipped = _csv_head(path)
    mark = max((",", ";", "\t"), key=header.count)
    names, units = _csv_columns(header.split(mark))
    if len(names) < 2 or all(re.fullmatch(r"[-+.\deE]*", name) for name in names):
        hint = "put a first line such as time (s),I (mV),II (mV),..."
        raise ReadError(path, "no header line with the names of the leads", hint)
    try:
        table = pd.read_csv(path, sep=mark, header=None, skiprows=skipped, comment="#", index_col=False,
                            dtype=np.float64, usecols=range(len(names)), skipinitialspace=True,
                            encoding="utf-8", encoding_errors="replace").to_numpy()  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # a text cell, rows of unequal length, no rows
        reason = f"not a table of numbers below its header ({type(error).__name__})"
        raise ReadError(path, reason, "keep the lead columns and time in seconds, decimal points") from None
    found = Recording([])
    rate = _csv_rate(path, notes.get("rate", ""), names, units, table, found.steps)
    for name, unit, values in zip(names, units, table.T):
        if not _is_time(name):
            found.signals.append(Signal(name, np.ascontiguousarray(values), unit or notes.get("unit", ""), rate))
    return found


def _csv_head(path: Path) -> tuple[dict[str, str], str, int]:
    """Notes of the comment lines ("rate", "unit"), the header line, and how many lines these are."""
    notes: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", errors="replace") as handle:
        for count in range(1, 101):
            line = handle.readline(1 << 16)
            if line.strip() and not line.startswith("#"):
                return notes, line.strip(), count
            note = re.match(r"#\s*(rate|unit)\s*[:=]?\s*(\S+)", line, re.IGNORECASE)
            if note:
                notes[note[1].lower()] = note[2]
    raise ReadError(path, "no header line within the first 100 lines", "put one with the names of the leads first")


def _csv_columns(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names and units of columns: "I (uV)", "I [uV]" and "time_ms" have one."""
    names, units = [], []
    for cell in cells:
        plain = cell.strip()[:80].strip("\"'").strip()  # the patterns below take long on long texts
        parts = re.fullmatch(r"(.*?)\s*[(\[]\s*([^)\]]*?)\s*[)\]]", plain) or re.fullmatch(r"(time)_(m?s)", plain)
        names.append(parts[1] if parts else plain)
        units.append(parts[2] if parts else "")
    return names, units


def _is_time(name: str) -> bool:
    return name.lower() in ("time", "t", "seconds", "timestamp")


def _csv_rate(
    path: Path, note: str, names: Sequence[str], units: Sequence[str], table: Values, steps: list[str]
) -> float:
    """The sampling rate in Hz, from the note and the time column; both have to agree within 1 %."""
    rates = []
    if note:
        number = re.match(r"\d+(?:\.\d+)?", note)
        if number is None:
            raise ReadError(path, "its line `# rate` holds no number", "write it as # rate 500")
        rates.append(float(number[0]))
    column = next((k for k, name in enumerate(names) if _is_time(name)), None)
    if column is not None and len(table) > 1:
        times = table[:, column]
        step = float(times[-1] - times[0]) / (len(times) - 1)
        if not step > 0 or not np.abs(times - times[0] - step * np.arange(len(times))).max() < 0.3 * step:
            raise ReadError(path, "times that are not evenly spaced", "resample it to a fixed rate")
        unit = units[column] or ("s" if step <= 0.05 else "")  # below 20 Hz it cannot be seconds
        if unit.lower() not in _SECONDS:
            raise ReadError(path, "a time column without a known unit", "name it time (s) or time (ms)")
        rate = 1 / (step * _SECONDS[unit.lower()])
        rate = float(round(rate)) if abs(rate - round(rate)) < 1e-3 * rate else rate  # times are written rounded
        rates.append(rate)
        steps.append(f"{rate:g} Hz from the time column")
    if not rates:
        raise ReadError(path, "no sampling rate", "add a line # rate 500 above the header, or a column time (s)")
    if len(rates) == 2 and abs(rates[0] - rates[1]) > 0.01 * rates[0]:
        raise ReadError(path, "its line `# rate` and its time column contradict each other", "correct one of them")
    return rates[0]


def read_npy(path: Path) -> Recording:
    """An array with a .json file of the same name beside it that says rate, unit and leads.

    Raises:
        ReadError: no such .json, or a shape in which the axis of the leads is not the only one of its length.
    """
    note = path.with_suffix(".json")
    example = '{"rate": 500, "unit": "mV", "leads": ["I", "II", ...]}'
    if not note.is_file() or note.stat().st_size > MAX_HEADER:
        reason = "an array without a .json file beside it that says rate and leads: leads are never taken by position"
        raise ReadError(path, reason, f"write {example} to a file of the same name ending in .json")
    with _decoding(path, "array with a .json file beside it"):
        said = json.loads(note.read_text(encoding="utf-8"))
        rate, unit, leads = float(said["rate"]), str(said.get("unit", "")), [str(lead) for lead in said["leads"]]
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.ndim != 2 or stored.dtype.kind not in "fiu" or stored.shape.count(len(leads)) != 1:
            reason = f"shape {stored.shape} of type {stored.dtype} does not fit {len(leads)} leads in one way"
            raise ReadError(path, reason[:120], "save it as (leads, samples) of floating-point numbers")
        _limits.check_count(path, stored.size, "samples")
        values = np.asarray(stored if stored.shape[0] == len(leads) else stored.T, dtype=np.float64)
    return Recording([Signal(lead, signal, unit, rate) for lead, signal in zip(leads, values)])


# --- HL7 annotated ECG ------------------------------------------------------------------------------------------------


def read_aecg(path: Path) -> Recording:
    """The sequence set with the most leads of an HL7 aECG file: value = origin + digit x scale.

    Raises:
        ReadError: XML of another kind, with a document type declaration (it could define entities), or damaged.
    """
    _check_size(path, 2)
    with _decoding(path, "HL7 aECG file"):
        root = _parse_xml(path)
        if root.tag != "AnnotatedECG":
            kind = _VENDOR_XML.get(root.tag, "XML of another kind")
            raise ReadError(path, f"{kind}, not HL7 aECG", "export it as HL7 aECG or DICOM")
        sets = [
            signals
            for each in root.findall("component/series/component/sequenceSet")
            if (signals := _aecg_signals(path, each))
        ]
        if not sets:
            raise ReadError(path, "an HL7 aECG file without signals", AGAIN)
        best = max(range(len(sets)), key=lambda k: (len(sets[k]), sum(signal.values.size for signal in sets[k])))
    found = Recording(sets[best])
    if len(sets) > 1:
        found.steps.append(f"sequence set {best + 1} of {len(sets)} taken: {len(sets[best])} signals")
    return found


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root element, names without namespaces; a document type declaration is refused before any entity exists."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag.rpartition("}")[2], {key.rpartition("}")[2]: value for key, value in attributes.items()})

    def refuse(*_: object) -> NoReturn:
        raise ReadError(path, "XML with a document type declaration", "damaged, or made to harm")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition("}")[2])
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.buffer_text = True
    with open(path, "rb") as handle:
        parser.ParseFile(handle)
    return builder.close()


def _aecg_signals(path: Path, each: ElementTree.Element) -> list[Signal]:
    """The signals of one sequence set."""
    rate, found = 0.0, []
    for sequence in each.findall("component/sequence"):
        code, value = sequence.find("code"), sequence.find("value")
        name = "" if code is None else code.get("code", "")
        if value is None:
            continue
        if name.startswith("TIME_"):
            step = value.find("increment")
            if step is not None:
                rate = 1 / (float(step.get("value", "nan")) * _SECONDS[step.get("unit", "")])
        elif (digits := value.find("digits")) is not None:
            scale, unit = _quantity(value.find("scale"))
            origin, origin_unit = _quantity(value.find("origin"))
            if origin and origin_unit != unit:
                raise ReadError(path, "a signal whose origin and scale are in different units", AGAIN)
            found.append(
                Signal(name, origin + scale * np.array((digits.text or "").split(), dtype=np.float64), unit, 0)
            )
    for signal in found:
        signal.rate = rate
    return found


def _quantity(element: ElementTree.Element | None) -> tuple[float, str]:
    return (0.0, "") if element is None else (float(element.get("value", "nan")), element.get("unit", ""))
