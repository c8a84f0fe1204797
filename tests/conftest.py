"""Fixtures every test may use: small generated files, and the real mini5 where it is present."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("M3BIND_BFLOAT16", "off")  # expected values are those of float32, whatever the processor has

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-quic", "--no-first-run"]  # fmt: skip
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read the real data beside the repository are marked `real`."""
    for item in items:
        if {"test_data", "objects"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("real")


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Commands set how this process logs; later tests read what is logged."""
    before = {name: (log.level, log.handlers, log.propagate) for name, log in _loggers()}
    yield
    for name, log in _loggers():
        level, log.handlers, log.propagate = before.get(name, (logging.NOTSET, [], True))
        log.setLevel(level)


def _loggers() -> list[tuple[str, logging.Logger]]:
    known = list(logging.root.manager.loggerDict.items())
    return [(name, log) for name, log in known if name.startswith("m3bind") and isinstance(log, logging.Logger)]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real data: environment variable M3BIND_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("M3BIND_TEST_DATA") or SHARED)
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set M3BIND_TEST_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def mini5(test_data: Path) -> Path:
    """The folder of the small real five-modality benchmark."""
    if not (test_data / "mini5" / "manifest.csv").is_file():
        pytest.skip(f"no mini5 in {test_data}")
    return test_data / "mini5"


@pytest.fixture(scope="session")
def native(test_data: Path) -> Path:
    """The folder with one or a few files of each clinical format."""
    if not (test_data / "native").is_dir():
        pytest.skip(f"no native files in {test_data}")
    return test_data / "native"


def _make_picture(path: Path, kind: str, seed: int = 0, size: int = 64) -> Path:
    """A generated PNG or JPEG that passes for one of xray, retina, pathology ("grey" blobs, dark disc, pink tissue)."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(size, size)), 3)
    noise = (noise - noise.min()) / np.ptp(noise)
    if kind == "xray":
        pixels = 40 + 180 * noise
    elif kind == "retina":
        y, x = np.mgrid[:size, :size] / size - 0.5
        pixels = (np.array([190, 90, 40]) * (0.6 + 0.4 * noise[..., None])) * (np.hypot(x, y) < 0.48)[..., None]
    else:
        pixels = 255 - np.array([60, 150, 70]) * (0.3 + 0.7 * noise[..., None])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def _make_volume(path: Path, seed: int = 0, shape: tuple[int, int, int] = (12, 14, 9), affine: object = None) -> Path:
    """A generated int16 NIfTI volume (x, y, z) in HU: a body in air with a dense spot."""
    import nibabel

    rng = np.random.default_rng(seed)
    values = np.full(shape, -1000.0)
    values[2:-2, 2:-2] = 40
    values[4:6, 4:6, 2:4] = 700
    values = (values + rng.normal(0, 10, shape)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 2.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def _make_ecg(
    stem: Path,
    seed: int = 0,
    leads: Sequence[str] = LEADS,
    rate: int = 100,
    seconds: float = 10.0,
    unit: str = "mV",
    edit: Callable[[np.ndarray], np.ndarray] = lambda signal: signal,
) -> Path:
    """A generated WFDB record whose limb leads obey Einthoven's law; `edit` changes the (T, leads) array in mV."""
    import wfdb

    t = np.arange(int(rate * seconds)) / rate
    beat = sum(a * np.exp(-(((t % 0.8) - c) ** 2) / w) for a, c, w in ((1, 0.3, 3e-4), (0.2, 0.55, 3e-3)))
    first, second = beat * 0.6, beat + 0.02 * np.sin(2 * np.pi * 0.3 * t + seed)
    limb = {"I": first, "II": second, "III": second - first, "AVR": -(first + second) / 2,
            "AVL": first - second / 2, "AVF": second - first / 2}  # fmt: skip
    chest = {lead: beat * (k + 1) / 4 for k, lead in enumerate(LEADS[6:])}
    signal = np.stack([(limb | chest).get(lead.upper(), beat) for lead in leads], axis=1)
    stem.parent.mkdir(parents=True, exist_ok=True)
    factor = {"mV": 1.0, "uV": 1000.0}.get(unit, 1.0)
    wfdb.wrsamp(stem.name, fs=rate, units=[unit] * len(leads), sig_name=list(leads), p_signal=edit(signal) * factor,
                fmt=["16"] * len(leads), write_dir=str(stem.parent))  # fmt: skip
    return stem


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Path]:
    """`make_picture(path, kind, seed, size)`: see `_make_picture`."""
    return _make_picture


@pytest.fixture(scope="session")
def make_volume() -> Callable[..., Path]:
    """`make_volume(path, seed, shape, affine)`: see `_make_volume`."""
    return _make_volume


@pytest.fixture(scope="session")
def make_ecg() -> Callable[..., Path]:
    """`make_ecg(stem, seed, leads, rate, seconds, unit, edit)`: see `_make_ecg`."""
    return _make_ecg


@pytest.fixture(scope="module")  # its event loop counts as running: it must end before other files' tests
def browser() -> Iterator[Any]:
    """The machine's own Chromium without a window, through Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'm3bind[dev]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def five_files(tmp_path: Path) -> dict[str, Path]:
    """One generated file of each modality."""
    return {
        "xray": _make_picture(tmp_path / "x.png", "xray"),
        "ct": _make_volume(tmp_path / "c.nii.gz"),
        "retina": _make_picture(tmp_path / "r.png", "retina"),
        "ecg": _make_ecg(tmp_path / "e"),
        "pathology": _make_picture(tmp_path / "p.png", "pathology"),
    }
