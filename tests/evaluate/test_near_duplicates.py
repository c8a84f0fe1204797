"""Near-duplicates are found through compression, size, crop, flip and sampling rate; other pairs are not."""

import cv2
import numpy as np
import pytest
from scipy.signal import resample

from m3bind.evaluate import near_duplicates as module
from m3bind.evaluate.near_duplicates import near_duplicates, registered_correlation, thumbprint
from m3bind.modalities.base import Sample

RATE, SIZE = 100.0, 224


def smooth(seed: int, *shape: int) -> np.ndarray:
    """A random texture in 0..1 over a gradient that all have in common."""
    fine = np.random.default_rng(seed).normal(size=(28, 28, *shape[2:])).astype(np.float32)
    texture = cv2.resize(fine, shape[1::-1], interpolation=cv2.INTER_CUBIC)
    common = np.linspace(0, 3, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return ((texture + common + 4) / 11).clip(0, 1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    _, code = cv2.imencode(".jpg", (255 * image).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(code, cv2.IMREAD_UNCHANGED).astype(np.float32) / 255


def image(array: np.ndarray) -> Sample:
    return Sample("xray", np.ascontiguousarray(array, dtype=np.float32))


def half(array: np.ndarray) -> np.ndarray:
    return cv2.resize(array, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


IMAGES = {
    "JPEG 60": (lambda a: jpeg(a, 60), ""),
    "half": (half, ""),
    "cropped at every side": (lambda a: a[11:-11, 11:-11], ""),
    "cropped at a corner": (lambda a: a[11:, 11:], ""),
    "darker": (lambda a: a**1.5 * 0.6, ""),
    "mirrored": (lambda a: a[:, ::-1], "left-right"),
    "upside down": (lambda a: a[::-1], "up-down"),
    "turned": (lambda a: a[::-1, ::-1], "both"),
    "mirrored, small, JPEG": (lambda a: jpeg(half(np.ascontiguousarray(a[:, ::-1])), 75), "left-right"),
}


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (SIZE, SIZE, 3), (SIZE, 180)])
def test_changed_copies_of_images_are_found_with_their_flip(shape: tuple[int, ...]) -> None:
    originals = [smooth(seed, *shape) for seed in range(40)]
    copies = [change(originals[i]) for i, (change, _) in enumerate(IMAGES.values())]
    prints = np.stack([thumbprint(image(array)) for array in originals + copies])
    found = {(pair.first, pair.second): pair for pair in near_duplicates(prints)}
    assert set(found) == {(i, 40 + i) for i in range(len(IMAGES))}
    assert [found[i, 40 + i].flip for i in range(len(IMAGES))] == [flip for _, flip in IMAGES.values()]


def test_duplicates_within_the_data_do_not_hide_others() -> None:
    """The threshold is absolute: many identical files change nothing for the rest."""
    originals = [smooth(seed, SIZE, SIZE) for seed in range(30)]
    copies = [originals[0]] * 6 + [jpeg(originals[1], 60)]
    prints = np.stack([thumbprint(image(array)) for array in originals + copies])
    pairs = {(pair.first, pair.second) for pair in near_duplicates(prints)}
    assert (1, 36) in pairs and len(pairs) == 1 + 7 * 6 // 2


@pytest.mark.parametrize("n", [2, 3, 9])
def test_few_files_are_all_compared(n: int) -> None:
    arrays = [smooth(seed, SIZE, SIZE) for seed in range(n - 1)]
    prints = np.stack([thumbprint(image(array)) for array in [*arrays, jpeg(arrays[0], 75)]])
    assert [(pair.first, pair.second) for pair in near_duplicates(prints)] == [(0, n - 1)]


def test_volumes_are_found_shifted_by_a_slice_and_mirrored() -> None:
    rng = np.random.default_rng(0)
    volumes = []
    for _ in range(30):
        volume = cv2.resize(rng.normal(size=(64, 64, 20)).astype(np.float32), (64, 64)).transpose(2, 0, 1)
        volumes.append(400 * cv2.GaussianBlur(np.cumsum(volume, axis=0), (0, 0), 2) - 500)
    copies = [np.concatenate([volumes[0][1:], volumes[0][-1:]]), volumes[1][:, :, ::-1], volumes[2] + 20]
    prints = np.stack([thumbprint(Sample("ct", np.ascontiguousarray(v), spacing=(2, 1, 1))) for v in volumes + copies])
    assert {(p.first, p.second) for p in near_duplicates(prints)} == {(0, 30), (1, 31), (2, 32)}


def test_signals_are_found_at_other_rates_and_gains() -> None:
    rng = np.random.default_rng(0)
    low = np.exp(-(np.fft.rfftfreq(1000, 1 / RATE) ** 2) / 200)
    signals = [np.fft.irfft(np.fft.rfft(rng.normal(size=(12, 1000))) * low, 1000) for _ in range(40)]
    copies = [
        (signals[0] * 2, RATE),
        (resample(signals[1], 5000, axis=1), 500.0),
        (resample(signals[2], 500, axis=1), 50.0),
        (np.concatenate([signals[3], signals[4]], axis=1), RATE),  # the first 10 s are compared
    ]
    samples = [Sample("ecg", s.astype(np.float32), rate=rate) for s, rate in [(s, RATE) for s in signals] + copies]
    found = near_duplicates(np.stack([thumbprint(sample) for sample in samples]))
    assert {(pair.first, pair.second) for pair in found} == {(i, 40 + i) for i in range(4)}


@pytest.mark.parametrize(
    "sample",
    [
        image(np.full((50, 60), 0.5)),
        Sample("retina", np.zeros((50, 60, 3), np.float32)),
        Sample("ct", np.zeros((1, 50, 60), np.float32)),
        Sample("ecg", np.zeros((12, 1000), np.float32), rate=RATE),
        Sample("ecg", np.full((12, 10), np.nan, np.float32), rate=RATE),
    ],
)
def test_constant_contents_are_no_pairs(sample: Sample) -> None:
    prints = np.stack([thumbprint(sample)] * 3)
    assert not prints.any() and near_duplicates(prints) == []


def test_inverted_lists_find_what_the_exact_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = [smooth(seed, 64, 64) for seed in range(300)]
    prints = np.stack([thumbprint(image(array)) for array in [*originals, *(a[3:-3, 3:-3] for a in originals[:20])]])
    exact = near_duplicates(prints)
    monkeypatch.setattr(module, "EXACT", 100)
    assert near_duplicates(prints, workers=2) == exact
    assert {(pair.first, pair.second) for pair in exact} == {(i, 300 + i) for i in range(20)}


def test_correlation_needs_a_common_part() -> None:
    first, second = (thumbprint(image(smooth(seed, SIZE, SIZE)))[0] for seed in range(2))
    assert registered_correlation(first, first) == pytest.approx(1, abs=1e-3)
    assert registered_correlation(first, second) < 0.6
    assert registered_correlation(np.zeros_like(first), second) == -1
