"""DICOM waveforms: the multiplex groups that make up the recording.

A channel's value is  stored value x sensitivity x correction factor + baseline  in the unit of the sensitivity.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import dicom, limits
from m3bind.modalities.formats.recording import AGAIN, Recording, Signal, decoding
from m3bind.modalities.formats.signals_leads import differing, name_of_code
from m3bind.modalities.formats.signals_sets import SignalSet, combined
from m3bind.modalities.formats.signals_units import unit_of_code

_NEEDED = (
    "NumberOfWaveformChannels", "NumberOfWaveformSamples", "WaveformBitsAllocated", "WaveformSampleInterpretation",
)  # fmt: skip
_KINDS = {8: ("SB", "UB"), 16: ("SS", "US"), 32: ("SL", "UL"), 64: ("SV", "UV")}  # by bits of a sample


def read_dicom(path: Path) -> Recording:
    """The multiplex groups of a DICOM waveform file that form the 12-lead recording.

    Original groups are preferred to derived ones (median beats); one with all leads to several that are merged.

    Raises:
        ReadError: no waveforms, or samples that are missing, companded (mu-law, A-law) or big-endian.
    """
    dataset = dicom.open_dicom(path)
    with decoding(path, "DICOM waveform"):
        groups = list(dataset.get("WaveformSequence") or [])
        if not groups:
            if "EncapsulatedDocument" in dataset:
                raise ReadError(path, "a document (PDF) in DICOM, without waveforms", "export the signals as DICOM")
            raise ReadError(path, "a DICOM file without waveforms", "check the modality of this file")
        found = Recording([], tags=dicom.technical_tags(dataset))
        sets = [_group(path, dataset, index, found.warnings) for index in range(len(groups))]
        found.signals, found.steps, warnings = combined(sets, "waveform group")
        found.warnings += warnings
        best = max(range(len(groups)), key=lambda k: (len(sets[k].leads()), not sets[k].derived, sets[k].seconds))
        found.tags |= dicom.technical_tags(groups[best])
    return found


def _group(path: Path, dataset: Any, index: int, warnings: list[str]) -> SignalSet:
    """One multiplex group by its header."""
    group = dataset.WaveformSequence[index]
    rate = _float(group, "SamplingFrequency") or 0.0
    samples = int(group.get("NumberOfWaveformSamples") or 0)
    start = (_float(group, "MultiplexGroupTimeOffset") or 0.0) / 1000
    channels = list(group.get("ChannelDefinitionSequence") or [])
    original = group.get("WaveformOriginality") == "ORIGINAL"

    def read() -> list[Signal]:
        raw = _samples(path, dataset, index, warnings)
        if len(channels) != raw.shape[1]:
            raise ReadError(path, f"{raw.shape[1]} channels with {len(channels)} definitions", AGAIN)
        padding = _padding(group, raw.dtype)
        signals = [_signal(item, raw[:, k], padding, rate, start) for k, item in enumerate(channels)]
        if turned := sum(math.prod(_calibration(item)[:2]) < 0 for item in channels):
            warnings.append(f"{turned} channels of negative sensitivity, inverted accordingly")
        warnings.extend(dict.fromkeys(doubt for item in channels if (doubt := _unit(item)[1])))
        warnings.extend(differing(map(_names, channels)))
        return signals

    what = f"{len(channels)} channels of {samples} samples, {'original' if original else 'not marked original'}"
    names = [_name(item) for item in channels]
    seconds = samples / rate if rate > 0 else math.inf  # rejected by read_signals
    return SignalSet(names, seconds, start, group.get("WaveformOriginality") == "DERIVED", what, read)


def _samples(path: Path, dataset: Any, index: int, warnings: list[str]) -> NDArray[Any]:
    """Stored samples (T, channels) of a group."""
    from pydicom.waveforms.numpy_handler import multiplex_array

    group = dataset.WaveformSequence[index]
    for keyword in _NEEDED:
        if group.get(keyword) in (None, ""):
            raise ReadError(path, f"a waveform group without {keyword}: damaged or cut short", AGAIN)
    channels, samples = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    if min(channels, samples) < 1:
        raise ReadError(path, f"a waveform of {channels} channels and {samples} samples", AGAIN)
    limits.check_count(path, channels * samples, "samples")
    if group.WaveformSampleInterpretation in ("MB", "AB"):
        raise ReadError(path, "samples in mu-law or A-law coding", "export it with 16-bit linear samples")
    if dataset.original_encoding[1] is False:
        raise ReadError(path, "big-endian DICOM", "export it as little endian")
    bits, kind = int(group.WaveformBitsAllocated), str(group.WaveformSampleInterpretation)
    if kind not in _KINDS.get(bits, ()):
        raise ReadError(path, f"samples of {bits} bits with the interpretation of another width", AGAIN)
    stored_count = len(group.get("WaveformData") or b"") // (channels * bits // 8)
    if stored_count < samples:
        raise ReadError(
            path, f"fewer samples than the header declares: cut short, {stored_count:,} of {samples:,}", AGAIN
        )
    if stored_count > samples:
        warnings.append(
            f"the header declares {samples:,} samples, {stored_count:,} are stored; the declared ones are read"
        )
    return np.asarray(multiplex_array(dataset, index, as_raw=True))


def _padding(group: Any, kind: np.dtype[Any]) -> float | None:
    """The stored value of missing samples, if the group states one."""
    value = group.get("WaveformPaddingValue")
    if isinstance(value, bytes):
        return float(np.frombuffer(value[: kind.itemsize], dtype=kind)[0]) if len(value) >= kind.itemsize else None
    return None if value is None else float(value)


def _signal(channel: Any, raw: NDArray[Any], padding: float | None, rate: float, start: float) -> Signal:
    """One channel in physical values."""
    sensitivity, correction, baseline, fault = _calibration(channel)
    unit = _unit(channel)[0]
    if not unit.strip():
        fault = fault or "no unit of its ChannelSensitivity"
    values = raw.astype(np.float64) * sensitivity * correction
    values += baseline
    if padding is not None:
        values[raw == padding] = np.nan
    late = _float(channel, "ChannelTimeSkew", 0.0) or 0.0
    if rate > 0:
        late += (_float(channel, "ChannelSampleSkew", 0.0) or 0.0) / rate
    return Signal(_name(channel), values, unit, rate, start + late, fault)


def _calibration(channel: Any) -> tuple[float, float, float, str]:
    """Sensitivity, correction factor and baseline of a channel, and the fault of these, or ""."""
    defaults = {"ChannelSensitivity": None, "ChannelSensitivityCorrectionFactor": 1.0, "ChannelBaseline": 0.0}
    values: list[float] = []
    for keyword, default in defaults.items():
        number = _float(channel, keyword, default)
        if number is None:
            return 1.0, 1.0, 0.0, f"its {keyword} is not a number" if keyword in channel else f"no {keyword}"
        if number == 0 and keyword != "ChannelBaseline":
            return 1.0, 1.0, 0.0, f"its {keyword} is 0"
        values.append(number)
    return values[0], values[1], values[2], ""


def _unit(channel: Any) -> tuple[str, str]:
    """(unit, doubt) of the sensitivity; the unit is "" if none is stated."""
    items = channel.get("ChannelSensitivityUnitsSequence")
    code = _code(items[0]) if items else ("", "", "")
    return unit_of_code(code[0], code[2])


def _name(channel: Any) -> str:
    """The name of a channel's lead."""
    return name_of_code(*_names(channel))


def _names(channel: Any) -> tuple[str, str, str, str]:
    """Value, scheme and meaning of a channel's code, and its label."""
    sources = channel.get("ChannelSourceSequence")
    return *(_code(sources[0]) if sources else ("", "", "")), str(channel.get("ChannelLabel") or "")


def _code(item: Any) -> tuple[str, str, str]:
    """Value, scheme and meaning of a code; long values and URNs have separate entries."""
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    return str(value), str(item.get("CodingSchemeDesignator") or ""), str(item.get("CodeMeaning") or "")


def _float(dataset: Any, keyword: str, default: float | None = None) -> float | None:
    """A finite number of the header; `default` if it is missing, None if it is not a finite number."""
    try:
        value = dataset.get(keyword)
        number = default if value is None or value == "" else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and np.isfinite(number) else None
