"""DICOM waveforms: the multiplex group with the most leads."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities import _dicom, _limits
from m3bind.modalities._recording import AGAIN, Recording, Signal, decoding

_LEAD_NUMBERS = {1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6",
                 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 65: "-aVR"}  # fmt: skip


def read_dicom(path: Path) -> Recording:
    """The multiplex group of a DICOM waveform file that is most likely the 12-lead rhythm.

    Of groups with at least 8 channels the original one counts before derived ones (median beats), then the one with
    more channels, then the longer one.

    Raises:
        ReadError: no waveforms, samples that are missing, companded (mu-law, A-law) or big-endian.
    """
    dataset = _dicom.open_dicom(path)
    with decoding(path, "DICOM waveform"):
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
