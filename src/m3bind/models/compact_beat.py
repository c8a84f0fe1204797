"""A small ECG tower for few records: the median beat and the rhythm in numbers, under a trainable head.

* `median_beat`: 12 leads of a few seconds -> one beat per lead and four measurements of the rhythm.
* `compact_beat`: that as a frozen trunk; text tower as in `compact_1d`.

With a few hundred records a network on raw signals overfits; the median over beats removes noise and phase beforehand.
n records, B samples of a beat.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.compact import CARD, Compact
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.layers.preprocess import SIGNAL_UNIT, signal_tensor

RATE = 100.0  # Hz
BEFORE, AFTER = 30, 50  # samples of a beat before and after its R peak: 0.3 and 0.5 s
SHIFT = 4  # maximum shift, in samples, that aligns a beat with the median beat
RHYTHM = 4


def median_beat(signal: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(12, T) mV at 100 Hz -> median beat (12, B) mV, and (mean RR s, its SD s, mean change s, beats per s).

    Baseline wander below 0.5 Hz is removed; beats are peaks of the 5-25 Hz slope over all leads, at least 0.3 s apart,
    and are realigned to their median by correlation. Without any complete beat the middle of the record is used.
    """
    from scipy.ndimage import uniform_filter1d
    from scipy.signal import butter, find_peaks, sosfiltfilt

    steady = sosfiltfilt(butter(2, 0.5, "high", fs=RATE, output="sos"), signal, axis=1)
    band = sosfiltfilt(butter(2, (5, 25), "band", fs=RATE, output="sos"), steady, axis=1)
    slope = uniform_filter1d(np.sqrt((np.gradient(band, axis=1) ** 2).sum(0)), 9)
    peaks, _ = find_peaks(slope, height=0.4 * np.percentile(slope, 98), distance=int(0.3 * RATE))
    length = signal.shape[1]
    whole = [int(p) for p in peaks if p >= BEFORE + SHIFT and p + AFTER + SHIFT <= length] or [length // 2]
    beat = np.median([steady[:, p - BEFORE : p + AFTER] for p in whole], axis=0)
    if len(whole) > 3:
        moved = [
            max(range(p - SHIFT, p + SHIFT + 1), key=lambda q: float((steady[:, q - BEFORE : q + AFTER] * beat).sum()))
            for p in whole
        ]
        beat = np.median([steady[:, p - BEFORE : p + AFTER] for p in moved], axis=0)
    intervals = np.diff(peaks) / RATE if len(peaks) > 1 else np.ones(1)
    change = np.abs(np.diff(intervals)).mean() if len(intervals) > 1 else 0.0
    rhythm = np.array([intervals.mean(), intervals.std(), change, len(peaks) / (length / RATE)])
    return beat.astype(np.float32), rhythm.astype(np.float32)


class _Given(nn.Identity):
    """Features that preprocessing has already computed."""

    out_dim = 12 * (BEFORE + AFTER) + RHYTHM


class CompactBeat(Compact):
    """Median beat (signed square root of mV, which amplifies small waves) and rhythm, under an MLP head."""

    name = "compact_beat"
    default_image_head = "mlp"
    frozen = ("image_trunk",)
    card = replace(CARD, joint_dim=64, input="964 numbers: median beat 12 x 80 and rhythm 4, at 100 Hz", lora_image=())

    def __init__(self, modality: str = "ecg", seconds: float = 10.0, **shared: Any) -> None:
        """As `Compact1d`; `seconds` of each record are used."""
        super().__init__(_Given(), {"seconds": seconds}, modality=modality, **shared)

    def preprocess(self, sample: Sample) -> Tensor:
        """(12, T) in mV -> (964,)."""
        signal = signal_tensor(sample, RATE, self._own["seconds"]).numpy() * np.float32(SIGNAL_UNIT)
        beat, rhythm = median_beat(signal)
        return torch.from_numpy(np.concatenate([(np.sign(beat) * np.sqrt(np.abs(beat))).ravel(), rhythm]))

    def degrade(self, batch: Tensor, random: ItemRandom, probability: float) -> Tensor:
        """The median beat loses quality as a signal would; the rhythm is unchanged."""
        beat = super().degrade(batch[:, :-RHYTHM].reshape(len(batch), 12, -1), random, probability)
        return torch.cat([beat.flatten(1), batch[:, -RHYTHM:]], dim=1)
