"""Reasons are written for people: none quotes an exception of Python or a library, whatever libraries raise."""

import builtins
import gzip
import inspect
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.modalities.test_fuzz import INSIDE, MAKERS, mutate

from m3bind.errors import ReadError, in_words
from m3bind.modalities import get
from m3bind.modalities.formats import worker

LIBRARIES = ("pydicom", "pydicom.errors", "nibabel.filebasedimages", "nibabel.spatialimages", "nibabel.wrapstruct",
             "nibabel.imageglobals", "PIL", "tifffile", "wfdb.io.header", "edfio", "pandas.errors", "struct", "zlib",
             "imagecodecs", "zipfile", "gzip", "lzma", "binascii", "json", "xml.etree.ElementTree",
             "xml.parsers.expat", "openslide", "numpy.exceptions", "scipy.io.matlab")  # fmt: skip


def exception_names() -> Iterator[str]:
    """Names of the exception classes of Python and of what readers import."""
    import importlib

    modules = [builtins]
    for name in LIBRARIES:
        try:
            modules.append(importlib.import_module(name))
        except ImportError:
            continue
    for module in modules:
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, BaseException):
                yield name
                yield value.__name__


# "error" is an ordinary word, too
NAMES = re.compile(rf"\b({'|'.join(sorted(set(exception_names()) - {'error'}))}|\w+(Error|Exception|Warning))\b")


def assert_for_people(text: str) -> None:
    assert not NAMES.search(text), text
    assert "Traceback" not in text and "object has no attribute" not in text


RAISED = [
    KeyError("x"), IndexError("list index out of range"), ValueError("bad"), TypeError("NoneType"), AttributeError("a"),
    EOFError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), struct.error("unpack requires"),
    zlib.error("-3"), gzip.BadGzipFile("not gzip"), zipfile.BadZipFile("x"), lzma.LZMAError("x"),
    OSError("broken data stream"), OverflowError("x"), ZeroDivisionError("x"), AssertionError(), RuntimeError("x"),
    NotImplementedError("x"), StopIteration(), ImportError("x"), RecursionError(), SystemError("x"), TimeoutError(),
    FileNotFoundError(2, "No such file"),
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_any_exception_in_words(error: Exception) -> None:
    text = in_words(error)
    assert_for_people(text)
    assert text and "Meyer" not in in_words(
        type(error)(*[*error.args[:-1], "Meyer"]) if len(error.args) == 1 else error
    )


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_the_worker_gives_reasons_for_people(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(type(get("xray")), "read", fail)
    header, array = worker._answer(get("xray"), {"path": "a.png", "how": "read", "cut": None})
    assert array is None and header["error"] == "read"
    assert_for_people(f"{header['reason']} {header['hint']}")


LIBRARY_CALLS = {
    "png": ("PIL.Image.open",),
    "jpeg": ("PIL.Image.open", "PIL.Image.Image.load", "PIL.Image.Image.convert"),
    "tiff": ("PIL.Image.open", "PIL.Image.Image.load"),
    "nifti": ("nibabel.Nifti1Header.check_fix", "nibabel.Nifti1Header.get_data_shape", "nibabel.aff2axcodes"),
    "dicom": ("pydicom.dcmread", "pydicom.filereader.read_file_meta_info", "pydicom.dataset.Dataset.get"),
    "jpeg 2000": (
        "pydicom.dcmread",
        "pydicom.dataset.Dataset.get",
        "m3bind.modalities.formats.dicom_pixels._decode_frame",
    ),
    "wfdb": ("wfdb.rdrecord",),
    "edf": ("edfio.read_edf", "edfio.EdfSignal.label", "edfio.EdfSignal.digital"),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_libraries_raise_becomes_a_reason(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality, path = MAKERS[name](tmp_path)
    reached = 0
    for call in LIBRARY_CALLS[name]:
        for error in RAISED:
            with monkeypatch.context() as patch:

                def fail(*_: object, error: Exception = error, **__: object) -> None:
                    raise error

                target = property(fail) if "EdfSignal." in call else fail
                patch.setattr(call, target)
                header, _ = worker._answer(get(modality), {"path": str(path), "how": "read", "cut": None})
            if "error" in header and "reason" in header:
                reached += 1
                assert_for_people(f"{header['reason']} {header['hint']}")
                assert header["hint"] or "no such file" in header["reason"]
    assert reached >= len(RAISED) - 1


@pytest.mark.parametrize("name", MAKERS)
def test_reasons_of_mutated_files(name: str, tmp_path: Path) -> None:
    modality, path = MAKERS[name](tmp_path)
    data = path.read_bytes()
    change: Callable[[bytes, np.random.Generator], bytes] = INSIDE.get(name, mutate)
    refused = 0
    for number in range(60):
        path.write_bytes(change(data, np.random.default_rng([number, 77])))
        try:
            get(modality).read(path)
        except (ReadError, MemoryError, RecursionError) as error:
            refused += 1
            assert_for_people(str(error))
        except Exception as error:  # the worker's reason for it
            pytest.fail(f"{name} {number}: {error!r} leaves the reader")
    assert refused
