"""Which faults are recorded for later runs: those of a file's content, not of the disk or of missing packages."""

import errno
import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from m3bind.errors import ReadError, is_lasting
from m3bind.modalities.base import get
from m3bind.modalities.formats import archive, images, nifti


def fault(modality: str, path: Path) -> ReadError:
    with pytest.raises(ReadError) as caught:
        get(modality).decode(path)
    return caught.value


def write_image(path: Path) -> Path:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return path


def write_volume(path: Path) -> Path:
    path.write_bytes(gzip.compress(bytes(400)))
    return path


def write_archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("volume.nii.gz", gzip.compress(bytes(400)))
    return path


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC])
@pytest.mark.parametrize(
    ("modality", "name", "write", "module", "function"),
    [
        ("xray", "a.png", write_image, images.Image, "open"),
        ("ct", "a.nii.gz", write_volume, nifti, "_read_header"),
        ("ct", "a.zip", write_archive, archive, "_copy"),
        ("ct", "b.zip", write_archive, nifti, "_read_header"),  # the error names the archive, not its member
    ],
)
def test_errors_of_the_disk_do_not_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modality: str,
    name: str,
    write: Callable[[Path], Path],
    module: object,
    function: str,
    number: int,
) -> None:
    path = write(tmp_path / name)
    assert is_lasting(fault(modality, path))

    def fail(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, function, fail)
    assert not is_lasting(fault(modality, path))


@pytest.mark.parametrize(
    ("cause", "lasting"),
    [
        (OSError(errno.EIO, "input/output error"), False),
        (ModuleNotFoundError("No module named 'codec'"), False),
        (ReadError("a", "took too long", lasting=False), False),
        (ReadError("a", "damaged", lasting=True), True),
        (OSError("cannot identify image file"), True),
        (OSError(errno.EINVAL, "invalid argument"), True),
        (ValueError("damaged"), True),
    ],
)
def test_an_error_lasts_as_long_as_its_cause(cause: Exception, lasting: bool) -> None:
    assert is_lasting(cause) is lasting
    for hidden in (True, False):
        try:
            try:
                raise cause
            except Exception as error:
                again = ReadError("b", "not readable")
                raise again from (None if hidden else error)
        except ReadError as error:
            assert is_lasting(error) is lasting
    assert is_lasting(ReadError("b", "known", lasting=True)) and not is_lasting(ReadError("b", "known", lasting=False))
