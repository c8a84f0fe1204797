"""Every test file that clinical libraries ship, and every native file: read, or refused with a reason.

Printed with `-s`: a table of format, read, refused, reasons.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.modalities.formats.detect import recognise
from m3bind.modalities.formats.isolation import WORKERS

VAGUE = re.compile(r"not readable \(")  # the worker's reason for an unexpected exception


def shipped(package: str) -> list[Path]:
    """Files of an installed library's own test data that are on this disk."""
    if package == "pydicom":
        from pydicom.data import get_testdata_files

        return [path for path in map(Path, get_testdata_files("**/*")) if path.is_file() and path.suffix != ".py"]
    if package == "nibabel":
        import nibabel.testing

        folder = Path(str(nibabel.testing.data_path))
        return [
            path for path in sorted(folder.rglob("*")) if re.search(r"\.(nii|nii\.gz|dcm|img|hdr|mgz|mnc)$", path.name)
        ]
    import wfdb

    return sorted(Path(wfdb.__file__).parent.rglob("*.hea"))


def outcomes(paths: list[Path]) -> Iterator[tuple[Path, str, str]]:
    """(path, modality that read it or "", reason of the refusal)."""
    from concurrent.futures import ThreadPoolExecutor

    def one(path: Path) -> tuple[Path, str, str]:
        try:
            sample = recognise(path)
        except ReadError as error:
            return path, "", error.reason
        assert sample.array.dtype == np.float32 and np.isfinite(sample.array).all() and sample.array.size
        return path, sample.modality, ""

    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(one, paths)


def tell(title: str, found: list[tuple[Path, str, str]]) -> None:
    table: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path, modality, reason in found:
        table[path.suffix or "(none)"].append((modality, reason))
    for suffix, rows in sorted(table.items()):
        read = Counter(modality for modality, _ in rows if modality)
        reasons = Counter(re.sub(r"[\d,.]+", "#", reason) for modality, reason in rows if not modality)
        print(f"{title} {suffix}: read {sum(read.values())} {dict(read)}, refused {sum(reasons.values())}")
        for reason, count in reasons.most_common():
            print(f"      {count} x {reason}")


@pytest.mark.parametrize("package", ["pydicom", "nibabel", "wfdb"])
def test_files_that_libraries_ship(package: str) -> None:
    paths = shipped(package)
    if not paths:
        pytest.skip(f"the installed {package} ships no files")
    found = list(outcomes(paths))
    tell(package, found)
    assert not [(path.name, reason) for path, _, reason in found if VAGUE.search(reason)]


def test_native_files(native: Path) -> None:
    series = native / "dicom" / "ct_series"
    paths = [path for path in sorted(native.rglob("*")) if path.is_file() and path.parent != series]
    paths = [path for path in paths if path.suffix in (".dcm", ".nii", ".gz", ".svs", ".tif", ".tiff", ".hea", ".edf")]
    found = [*outcomes(paths), *outcomes([series])]
    tell("native", found)
    assert not [(path.name, reason) for path, _, reason in found if VAGUE.search(reason)]
    kinds = {path.name: modality for path, modality, _ in found}
    assert kinds["ct_series"] == "ct" and kinds["a103l.hea"] == "" and kinds["E07938.hea"] == "ecg"
    volume = modalities.read("ct", series)
    assert volume.array.shape == (36, 512, 512) and -1100 <= volume.array.min() < -900 < 900 < volume.array.max() < 3100
