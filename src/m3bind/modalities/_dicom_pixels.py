"""Stored values of DICOM pixels; `_dicom` is the face of these functions.

* `frame_count`, `pixel_frames`, `decode`: one frame or all, once the header was checked against what is stored.

Decoders are pydicom (uncompressed, RLE), Pillow and GDCM (JPEG), imagecodecs (12-bit JPEG), pyjpegls (JPEG-LS) and
OpenJPEG (JPEG 2000); none is under the GPL.

Shapes: F frames, H rows, W columns, C channels.
"""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities import _limits
from m3bind.modalities._dicom_files import (
    BIG_ENDIAN,
    DAMAGED,
    EXPLICIT,
    HARM,
    IMPLICIT,
    PIXELS,
    SMALL,
    kind_of,
    named,
    quiet,
)
from m3bind.privacy import technical

LIBRARIES = ("pydicom", "pydicom.pixels", "gdcm", "jpeg_ls", "openjpeg", "imagecodecs")
_RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_JPEG_PLUGINS = {"50": ("pillow", "gdcm"), "51": ("pillow", "gdcm"), "57": ("gdcm",), "70": ("gdcm",),
                 "80": ("pyjpegls", "gdcm"), "81": ("pyjpegls", "gdcm")}  # fmt: skip
_JPEG_2000 = ("90", "91", "201", "202", "203")


def frame_count(dataset: Any, path: Path) -> int:
    """Number of frames; 1 where the header says nothing or 0.

    Raises:
        ReadError: not a number, or negative.
    """
    return max(1, _whole(dataset, path, "NumberOfFrames", 0, 0))


def pixel_frames(dataset: Any, path: Path, frame: int | None = None) -> NDArray[Any]:
    """Stored values of one frame, (H, W) or (H, W, C); of all frames, (F, H, W) or (F, H, W, C), where `frame` is None.

    Whole numbers as the header declares them (bits above BitsStored masked away), or floats. Colours are as stored,
    except that JPEG 2000 undoes its own transform.

    Raises:
        ReadError: no pixels, sizes that are implausible, over a limit or do not fit what is stored, an unknown
            compression, or a decoder that gives up.
    """
    return decode(dataset, path, frame)[0]


def _whole(dataset: Any, path: Path, keyword: str, least: int, default: int | None = None) -> int:
    """A whole number of the header.

    Raises:
        ReadError: missing without a `default`, not one number, or below `least`.
    """
    try:
        value = dataset.get(keyword)
        number = default if value is None or value == "" else int(value)
    except Exception:  # pydicom converts values when they are asked for, and raises anything
        raise ReadError(path, f"{keyword} is not a number", DAMAGED) from None
    if number is None:
        raise ReadError(path, f"{keyword} is missing", DAMAGED)
    if number < least:
        raise ReadError(path, f"{keyword} is {number}", DAMAGED)
    return number


def decode(dataset: Any, path: Path, frame: int | None) -> tuple[NDArray[Any], str]:
    """`pixel_frames` and the photometric interpretation of what it gave, which some decoders change."""
    stored = _check_header(dataset, path)
    frames = frame_count(dataset, path)
    if frame is not None and not 0 <= frame < frames:
        raise ReadError(path, f"frame {frame} of {frames}", "ask for one it holds")
    try:
        with quiet():
            uid = str(dataset.file_meta.TransferSyntaxUID)
            if uid not in (IMPLICIT, EXPLICIT, BIG_ENDIAN):
                if uid != _RLE and uid.removeprefix(_JPEG) not in (*_JPEG_PLUGINS, *_JPEG_2000):
                    raise _unread(path, uid)
                _check_streams(dataset, path, frames)
            if frame is not None:
                return _decode_frame(dataset, path, uid, frame, frames)
            _limits.check_count(path, frames * _area(dataset), "voxels")
            first, photometric = _decode_frame(dataset, path, uid, 0, frames)
            out = np.empty((frames, *first.shape), dtype=first.dtype)
            out[0] = first
            for number in range(1, frames):
                out[number] = _decode_frame(dataset, path, uid, number, frames)[0]
            return out, photometric
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # decoders raise many kinds
        what = f"its {stored:,} bytes of pixels cannot be decoded ({in_words(error)})"
        raise ReadError(path, what, "fetch or export it again") from error


def _unread(path: Path, uid: str) -> ReadError:
    known = technical("TransferSyntaxUID", uid) or "that is private"
    return ReadError(path, f"pixels in a transfer syntax {known}, which is not read", "export it uncompressed")


def _area(dataset: Any) -> int:
    return int(dataset.Rows) * int(dataset.Columns)


def _check_header(dataset: Any, path: Path) -> int:
    """Refuse by what the header declares; the number of stored bytes of pixels.

    Raises:
        ReadError: see `pixel_frames`.
    """
    keyword = next((name for name in PIXELS if name in dataset), "")
    if not keyword:
        kind = kind_of(dataset)
        raise ReadError(path, "no pixels" + (f": {named(kind)}" if kind else ""), "check the modality of this file")
    stored = len(dataset.get_item(keyword).value or b"")
    rows, columns = (_whole(dataset, path, name, 1) for name in ("Rows", "Columns"))
    _limits.check_count(path, rows * columns, "pixels")
    samples = _whole(dataset, path, "SamplesPerPixel", 1, 1)
    allocated = _whole(dataset, path, "BitsAllocated", 1)
    if samples not in (1, 3) or allocated not in (1, 8, 16, 32, 64):
        raise ReadError(
            path, f"{samples} samples of {allocated} bits per pixel", "1 or 3 of 1, 8, 16, 32 or 64 are read"
        )
    if keyword == "PixelData":
        bits = _whole(dataset, path, "BitsStored", 1, allocated)
        high = _whole(dataset, path, "HighBit", 0, bits - 1)
        if bits > allocated or high >= allocated:
            raise ReadError(path, f"{bits} bits up to bit {high} stored in {allocated}", DAMAGED)
    if _whole(dataset, path, "PixelRepresentation", 0, 0) > 1:
        raise ReadError(path, "PixelRepresentation is neither 0 nor 1", DAMAGED)
    frames = frame_count(dataset, path)
    bits = rows * columns * samples * frames * allocated
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        bits = bits // 3 * 2
    uid = str(dataset.file_meta.TransferSyntaxUID)
    if uid in (IMPLICIT, EXPLICIT, BIG_ENDIAN) and stored < bits // 8:
        raise ReadError(
            path, f"{frames} frames of {columns} x {rows} need {bits // 8:,} bytes, {stored:,} are there", "cut short?"
        )
    if bits // 8 > SMALL:
        _limits.check_ratio(path, bits // 8, stored)
    return stored


def _check_streams(dataset: Any, path: Path, frames: int) -> None:
    """Refuse compressed pixels with fewer pieces than frames, or cut short.

    Raises:
        ReadError: they are.
    """
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    pixels = io.BytesIO(dataset.PixelData)
    parse_basic_offsets(pixels)
    pieces, offsets = parse_fragments(pixels)
    if pieces < frames:
        raise ReadError(path, f"{frames} frames declared, {pieces} stored", "cut short, or a wrong NumberOfFrames")
    last = struct.unpack("<I", dataset.PixelData[offsets[-1] + 4 : offsets[-1] + 8])[0]
    if offsets[-1] + 8 + last > len(dataset.PixelData):
        raise ReadError(path, "its last frame is cut short", "fetch or export it again")


def _decode_frame(dataset: Any, path: Path, uid: str, number: int, frames: int) -> tuple[NDArray[Any], str]:
    """One frame and its photometric interpretation."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    tail = uid.removeprefix(_JPEG) if uid.startswith(_JPEG) else ""
    stream = b""
    if tail:
        offsets = None
        if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
            offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        stream = get_frame(dataset.PixelData, number, number_of_frames=frames, extended_offsets=offsets)
        _check_size(dataset, path, stream)
        if tail in ("80", "81") and not stream.rstrip(b"\0").endswith(
            b"\xff\xd9"
        ):  # its decoder takes seconds to notice
            raise ReadError(path, "a compressed frame is cut short", "fetch or export it again")
    if tail in _JPEG_2000:
        return _jpeg_2000(dataset, stream), "RGB" if photometric in ("YBR_ICT", "YBR_RCT") else photometric
    if tail == "51" and int(dataset.BitsStored) > 8:
        import imagecodecs

        return np.asarray(imagecodecs.jpeg8_decode(stream)), photometric
    native = not tail
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    error: Exception | None = None
    for plugin in _JPEG_PLUGINS.get(tail, ("",)):
        try:
            choice = {"decoding_plugin": plugin} if plugin else {"correct_unused_bits": False}
            values, meta = decoder.as_array(dataset, index=number, raw=True, **choice)
            break
        except Exception as caught:
            error = caught
    else:
        assert error is not None
        raise error
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return _stored_bits(dataset, values) if native else values, str(meta["photometric_interpretation"])


def _stored_bits(dataset: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Values without the bits above HighBit and below the stored ones, sign extended."""
    width = 8 * values.dtype.itemsize
    bits = int(dataset.get("BitsStored") or width)
    high = max(int(dataset.get("HighBit") or 0), bits - 1)
    if values.dtype.kind == "f" or int(dataset.BitsAllocated) == 1 or bits >= width:
        return values
    values = np.left_shift(values, width - 1 - high)
    np.right_shift(values, width - bits, out=values)
    return values


def _jpeg_2000(dataset: Any, stream: bytes) -> NDArray[Any]:
    """A JPEG 2000 frame; where its sign and the header's differ, the header is right."""
    import openjpeg.utils

    values: NDArray[Any] = openjpeg.utils.decode(stream)
    signed = int(dataset.get("PixelRepresentation", 0))
    if values.dtype.kind != "ui"[signed]:
        shift = 8 * values.dtype.itemsize - int(openjpeg.utils.get_parameters(stream)["precision"])
        values = np.right_shift(np.left_shift(values, shift).view(f"{'ui'[signed]}{values.dtype.itemsize}"), shift)
    return values


def _check_size(dataset: Any, path: Path, stream: bytes) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 frame whose own size is not the header's, before anything is allocated.

    Raises:
        ReadError: it is not, or its size is not found.
    """
    own = _stream_size(stream)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if own is None:
        raise ReadError(path, "a compressed frame without a size", "fetch or export it again")
    if own != (rows, columns):
        raise ReadError(path, f"header says {columns} x {rows}, the compressed frame {own[1]} x {own[0]}", HARM)


def _stream_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns that a codestream declares, or None."""
    size = stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if size >= 0 and len(stream) >= size + 24:  # JPEG 2000: extent and offset of its reference grid
        width, height, left, top = struct.unpack(">4I", stream[size + 8 : size + 24])
        return height - top, width - left
    position = stream.find(b"\xff\xd8") + 2
    while 2 <= position <= len(stream) - 9:
        if stream[position] != 0xFF:
            return None
        marker = stream[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">HH", stream[position + 5 : position + 9])
            return rows, columns
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
        else:
            position += 2 + struct.unpack(">H", stream[position + 2 : position + 4])[0]
    return None
