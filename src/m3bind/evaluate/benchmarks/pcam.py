"""PatchCamelyon: 327,680 patches of 96x96 pixels of lymph nodes, half with tumour in the centre (Veeling 2018)."""

import contextlib
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import atomic_path
from m3bind.data.tables import most_unpacked
from m3bind.errors import ManifestError, in_words
from m3bind.evaluate.benchmarks._extract import save_png
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

STEM = "camelyonpatch_level_2_split_"
CLASSES = ("lymph node", "lymph node containing metastatic tumor tissue")
BLOCK = 256  # patches read at once
OFFICIAL = {  # MD5 of the published y file and meta table -> their split, regardless of their names
    "35c2d7259d906cfc8143347bb8e05be7": "train", "5a3dd671e465cfd74b5b822125e65b0a": "train",
    "60a7035772fbdb7f34eb86d4420cf66a": "valid", "3455fd69135b66734e1008f3af684566": "valid",
    "2b85f58b927af9964a4c15b8f7e8f179": "test", "67589e00a4a37ec317f2d1932c7502ca": "test",
}  # fmt: skip


class PatchCamelyon(Benchmark):
    """PatchCamelyon: patches are extracted from HDF5 to PNG files; a second run resumes where the first stopped."""

    name: ClassVar[str] = "pcam"
    title: ClassVar[str] = "PatchCamelyon"
    modalities: ClassVar[tuple[str, ...]] = ("pathology",)
    role: ClassVar = "evaluation"
    licence: ClassVar[str] = "CC0 1.0"
    url: ClassVar[str] = "https://github.com/basveeling/pcam"
    access: ClassVar[str] = "Open: download the HDF5 files (8 GB packed) and the meta tables; unpacking is not needed."
    layout: ClassVar[str] = """\
camelyonpatch_level_2_split_{train,valid,test}_x.h5.gz     or .h5; x (N, 96, 96, 3)
camelyonpatch_level_2_split_{train,valid,test}_y.h5.gz     or .h5; y (N, 1, 1, 1)
camelyonpatch_level_2_split_{train,valid,test}_meta.csv    coord_x, coord_y, tumor_patch, center_tumor_patch, wsi
"""
    needs: ClassVar[tuple[str, ...]] = tuple(f"{STEM}test_{part}.h5*" for part in "xy")
    extracts: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = CLASSES
    known: ClassVar[Mapping[str, int]] = {"train": 262144, "valid": 32768, "test": 32768}
    notes: ClassVar[str] = (
        "A patch is positive if its centre of 32x32 pixels contains tumour. The slide of the meta table counts as the "
        "patient; without the table every patch is its own. The copies on Zenodo are reported to have valid and test "
        "swapped against the official checksums: the split follows the checksum of the y file or the meta table if "
        "it is a published one, otherwise the name of the file."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per patch: train, valid, test as the files are named, in the order of the arrays."""
        for name in ("train", "valid", "test"):
            x, y, meta = (_file(root, f"{name}_{part}") for part in ("x.h5", "y.h5", "meta.csv"))
            if x is None or y is None:
                yield Fault(0, f"no {STEM}{name}_x.h5 and _y.h5; the {name} split is left out", kind="without a file")
                continue
            with _opened(y, out) as book:
                labels = np.asarray(_array(book, y, "y")).reshape(-1)
            if labels.dtype.kind not in "iufb":
                raise ManifestError(f"{y}: y holds {labels.dtype}, not numbers; download it again")
            slides = [row["wsi"] for _, row in read_table(meta, ("wsi",))] if meta else []
            if slides and len(slides) != len(labels):
                raise ManifestError(f"{meta}: {len(slides)} rows for {len(labels)} patches; download the table again")
            split = next((OFFICIAL[d] for d in map(_md5, filter(None, (y, meta))) if d in OFFICIAL), name)
            places = [f"{name}/{k // 1000:03d}/{k:06d}.png" for k in range(len(labels))]
            yield from _save(x, places, out)
            for k, place in enumerate(places):
                patient, label = slides[k] if slides else "", CLASSES[int(labels[k] > 0)]
                yield BenchmarkItem(place, split, "pathology", patient, label=label)


def _file(root: Path, name: str) -> Path | None:
    """The file with that name, compressed or not; None if missing."""
    return next((path for ending in ("", ".gz") if (path := root / f"{STEM}{name}{ending}").is_file()), None)


def _save(path: Path, places: list[str], out: Path) -> Iterator[Fault]:
    """Write the missing patches."""
    if all((out / place).exists() for place in places):
        return
    with _opened(path, out) as book:
        patches = _array(book, path, "x")
        if patches.ndim != 4 or patches.shape[1:] != (96, 96, 3) or patches.dtype != np.uint8:
            raise ManifestError(f"{path}: x is {patches.shape} of {patches.dtype}, not (N, 96, 96, 3) of uint8")
        if len(patches) != len(places):
            yield Fault(0, f"{len(patches)} images for {len(places)} labels", path.name, "of unequal length")
        for start in range(0, min(len(patches), len(places)), BLOCK):
            block: NDArray[np.uint8] = patches[start : start + BLOCK]
            for place, pixels in zip(places[start : start + BLOCK], block):
                save_png(out / place, pixels)


@contextlib.contextmanager
def _opened(path: Path, out: Path) -> Iterator[Any]:
    """An HDF5 file; a compressed one is unpacked below `out` while it is open.

    Raises:
        ManifestError: not an HDF5 file, or truncated.
    """
    import h5py

    unpacked = path
    try:
        if path.suffix == ".gz":
            unpacked = out / path.stem
            _unpack(path, unpacked)
        with h5py.File(unpacked, "r") as book:
            yield book
    except (OSError, KeyError, RuntimeError) as error:
        raise ManifestError(f"{path}: not a readable HDF5 file ({in_words(error)}); download it again") from error
    finally:
        if unpacked != path:
            unpacked.unlink(missing_ok=True)


def _unpack(path: Path, target: Path) -> None:
    most = most_unpacked(path)
    with atomic_path(target) as temporary, open(temporary, "wb") as handle:
        try:
            with gzip.open(path) as source:
                while block := source.read(1 << 22):
                    handle.write(block)
                    if source.tell() > most:
                        raise ManifestError(f"{path}: unpacks to more than {most:,} bytes; download it again")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ManifestError(f"{path}: not a whole gzip file ({error}); download it again") from error


def _array(book: Any, path: Path, name: str) -> Any:
    import h5py

    if not isinstance(book.get(name, getlink=True), h5py.HardLink) or not isinstance(book[name], h5py.Dataset):
        raise ManifestError(f"{path}: no array {name} in it; found {', '.join(list(book)[:30])}")
    array = book[name]
    if array.external or array.is_virtual:
        raise ManifestError(f"{path}: its array {name} lies in other files, which are not read; download it again")
    if array.nbytes > most_unpacked(path):
        raise ManifestError(f"{path}: its array {name} declares {array.nbytes:,} bytes, which it cannot hold")
    return array


def _md5(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
