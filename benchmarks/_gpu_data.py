"""Files to a device: reading them in one pass, and how long a step waits for stored and for live inputs."""

import dataclasses
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

import _gpu_stages
from _gpu_measure import Bench, Row
from m3bind.config import PretrainConfig
from m3bind.core.device import pick, usable_cores
from m3bind.data.cache import FeatureCache
from m3bind.data.records import Record
from m3bind.models.base import DualEncoder
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pretrain.stage import PretrainStage
from m3bind.training.pairs import Images

LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
SIZES = {"xray": (3056, 2544), "retina": (1536, 2048), "ecg": (5000, 12), "ct": (512, 512, 300)}
TINY = {"xray": (96, 80), "retina": (64, 96), "ecg": (1000, 12), "ct": (24, 24, 12)}


def _picture(path: Path, size: tuple[int, int], colour: bool, seed: int) -> Path:
    import cv2

    random = np.random.default_rng(seed)
    coarse = random.integers(30, 220, (size[0] // 32 + 2, size[1] // 32 + 2), dtype=np.uint8)
    grey = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    grey = cv2.add(grey, random.integers(0, 12, size, dtype=np.uint8))
    y, x = np.mgrid[: size[0], : size[1]]
    disc = np.hypot(y / size[0] - 0.5, x / size[1] - 0.5) < 0.45
    pixels = np.stack([grey // 4, grey // 2, grey], -1) * disc[..., None].astype(np.uint8) if colour else grey
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return path


def _record(path: Path, size: tuple[int, int], seed: int) -> Path:
    import wfdb

    t = np.arange(size[0]) / 500
    beat = np.exp(-(((t % 0.8) - 0.3) ** 2) / 3e-4) + 0.02 * np.random.default_rng(seed).standard_normal(size[0])
    one, two = 0.6 * beat, beat
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    signal = np.stack([*limb, *(beat * (k + 1) / 4 for k in range(6))], 1)
    wfdb.wrsamp(path.name, fs=500, units=["mV"] * 12, sig_name=list(LEADS), p_signal=signal, fmt=["16"] * 12,
                write_dir=str(path.parent))  # fmt: skip
    return path.with_suffix(".hea")


def _volume(path: Path, size: tuple[int, int, int], seed: int) -> Path:
    import nibabel

    random = np.random.default_rng(seed)
    values = np.full(size, -1000, np.int16)
    inside = tuple(slice(side // 8, -side // 8) for side in size[:2])
    values[inside] = random.integers(-80, 160, values[inside].shape, dtype=np.int16)
    image = nibabel.Nifti1Image(values, np.diag([0.7, 0.7, 1.5, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def _write(job: tuple[str, str, tuple[int, ...], int]) -> str:
    modality, folder, size, seed = job
    path = Path(folder) / f"{modality}{seed}"
    if modality == "ecg":
        return str(_record(path, size, seed))  # type: ignore[arg-type]
    if modality == "ct":  # inflating .nii.gz needs imagecodecs, which a bare machine may lack
        return str(_volume(path.with_suffix(".nii"), size, seed))  # type: ignore[arg-type]
    return str(_picture(path.with_suffix(".jpg"), size, modality == "retina", seed))  # type: ignore[arg-type]


def files(folder: Path, counts: dict[str, int], tiny: bool) -> dict[str, list[Record]]:
    """Generated files of each modality."""
    sizes = TINY if tiny else SIZES
    jobs = [(m, str(folder), sizes[m], seed) for m, count in counts.items() for seed in range(count)]
    with ProcessPoolExecutor(usable_cores()) as pool:
        paths = list(pool.map(_write, jobs))
    found: dict[str, list[Record]] = {m: [] for m in counts}
    for (m, _, _, seed), path in zip(jobs, paths):
        texts = (f"{m} {seed}",)
        found[m].append(Record(f"{m}{seed}", m, Path(path), "", (), texts, (), f"p{seed}", "train", "", row=seed))
    return found


def _size(record: Record) -> int:
    paths = [record.path, record.path.with_suffix(".dat")] if record.path.suffix == ".hea" else [record.path]
    return sum(os.path.getsize(path) for path in paths)


def waiting(bench: Bench) -> list[Row]:
    """Generated JPEG, WFDB and NIfTI files: reading each once, then steps on stored and on live inputs (stage 0)."""
    counts = {"xray": 8, "retina": 8} if bench.tiny else {"xray": 128, "retina": 128, "ecg": 400, "ct": 8}
    names = _gpu_stages.PAPER
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for optional, module in (("ecg", "wfdb"), ("ct", "nibabel")):
            if optional in counts or bench.tiny:
                rows.append(bench.guarded(f"import {module}", lambda module=module: {"ok": bool(__import__(module))}))
                if bench.tiny and "error" not in rows[-1]:
                    counts[optional] = 3
        records = files(folder, counts, bench.tiny)
        for m, found in records.items():
            model = _gpu_stages.build(names[m], bench, m)
            rows.append(bench.guarded(f"read once: {m}", partial(_read_once, folder, model, found)))
        model = _gpu_stages.build(names["xray"], bench, "xray")
        for form, limit in (("stored", 20.0), ("live", 0.0)):
            run = partial(_steps, bench, folder, model, records["xray"], limit)
            rows.append(bench.guarded(f"steps on {form} radiographs", run))
    return [row for row in rows if "ok" not in row]


def _read_once(folder: Path, model: DualEncoder, records: list[Record]) -> Row:
    extractor = FeatureExtractor(FeatureCache(folder / "cache"), workers=usable_cores())
    start = time.perf_counter()
    good, bad = extractor.readable(records, model)
    seconds = time.perf_counter() - start
    if bad:
        raise ValueError(f"{len(bad)} files are bad, first: {bad[0].reason}")
    total = sum(map(_size, records))
    stored = sum(f.stat().st_size for f in (folder / "cache").rglob("*") if f.is_file())
    return {"ms": 1e3 * seconds, "files_per_s": len(good) / seconds, "mb_per_s": total / seconds / 1e6,
            "cores": usable_cores(), "stored_mb": stored / 1e6}  # fmt: skip


def _steps(bench: Bench, folder: Path, model: DualEncoder, records: list[Record], limit: float) -> Row:
    """Stage 0 on the files, its loader with a worker per core."""
    extractor = FeatureExtractor(FeatureCache(folder / f"cache{limit}"), workers=usable_cores(), inputs_gb=limit)
    good, _ = extractor.readable(records, model)
    size = 4 if bench.tiny else 64
    pairs = _gpu_stages.pairs_of(model, "xray", len(records), 64)
    pairs = dataclasses.replace(pairs, images=Images(model, "input", extractor.inputs(good, model)))
    settings = PretrainConfig(batch=size, lr=1e-6, augment=False)
    stage = PretrainStage(pairs, settings, 0)
    return _gpu_stages.ours(bench, stage, settings, pick(str(bench.device)))
