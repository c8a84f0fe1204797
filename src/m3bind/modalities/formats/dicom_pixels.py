"""Stored values of DICOM pixels; import these functions from `dicom`.

* `frame_count`, `pixel_frames`: one frame or all, once the header is checked against the stored data.
* `decode`: the same with the header of the compressed stream, and contradictions to the DICOM header -> `Pixels`.

Decoders are pydicom (uncompressed, RLE), Pillow and GDCM (JPEG), imagecodecs (12-bit JPEG), pyjpegls (JPEG-LS) and
OpenJPEG (JPEG 2000); none is under the GPL.

Shapes: F frames, H rows, W columns, C channels.
"""

import io
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import codestream, damage, limits
from m3bind.modalities.formats.codestream import Stream
from m3bind.modalities.formats.dicom_files import DAMAGED, HARM, PIXELS, UNCOMPRESSED, kind_of, named, quiet
from m3bind.privacy import technical

LIBRARIES = ("pydicom", "pydicom.pixels", "gdcm", "jpeg_ls", "openjpeg", "imagecodecs")
_RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
_JPEG_DCT = ("50", "51")
_JPEG_LS = ("80", "81")
_JPEG_PLUGINS = {"57": ("gdcm",), "70": ("gdcm",), "80": ("pyjpegls", "gdcm"), "81": ("pyjpegls", "gdcm")}
_JPEG_2000 = ("90", "91", "201", "202", "203")
_COMPRESSIONS = {"50": "JPEG", "51": "JPEG", "57": "lossless JPEG", "70": "lossless JPEG", "80": "JPEG-LS",
                 "81": "JPEG-LS", **dict.fromkeys(_JPEG_2000, "JPEG 2000")}  # fmt: skip


@dataclass
class Pixels:
    """Stored values of one frame or all, their colour model by the header, and the header of a compressed frame."""

    values: NDArray[Any]
    label: str  # PhotometricInterpretation, "MONOCHROME2" if missing
    stream: Stream | None = None  # of the first frame; None: uncompressed or RLE
    doubts: list[str] = field(default_factory=list)


def frame_count(dataset: Any, path: Path) -> int:
    """Number of frames; 1 if the header states none or 0.

    Raises:
        ReadError: not a number, or negative.
    """
    return max(1, _integer(dataset, path, "NumberOfFrames", 0, 0))


def pixel_frames(dataset: Any, path: Path, frame: int | None = None) -> NDArray[Any]:
    """Stored values of one frame, (H, W) or (H, W, C); of all frames, (F, H, W) or (F, H, W, C), if `frame` is None.

    Integers as the header declares them (bits above BitsStored are masked), or floats. Colours are as stored, except
    that the colour transform of JPEG 2000 is inverted.

    Raises:
        ReadError: no pixels, sizes that are implausible, over a limit or inconsistent with the stored data, an
            unknown compression, or a decoder that fails.
    """
    return decode(dataset, path, frame).values


def _integer(dataset: Any, path: Path, keyword: str, minimum: int, default: int | None = None) -> int:
    """An integer of the header. Raises ReadError: missing without a `default`, not one number, or below `minimum`."""
    try:
        value = dataset.get(keyword)
        number = default if value is None or value == "" else int(value)
    except Exception:  # pydicom converts values on access, and raises anything
        raise ReadError(path, f"{keyword} is not a number", DAMAGED) from None
    if number is None:
        raise ReadError(path, f"{keyword} is missing", DAMAGED)
    if number < minimum:
        raise ReadError(path, f"{keyword} is {number}", DAMAGED)
    return number


def decode(dataset: Any, path: Path, frame: int | None) -> Pixels:
    """`pixel_frames` with the headers of file and compressed stream; contradictions are doubts.

    Raises:
        ReadError: as `pixel_frames`.
    """
    stored, needed = _check_header(dataset, path)
    frames = frame_count(dataset, path)
    if frame is not None and not 0 <= frame < frames:
        raise ReadError(path, f"frame {frame} of {frames}", "choose an existing frame")
    uid = str(dataset.file_meta.TransferSyntaxUID)
    try:
        with quiet():
            if uid not in UNCOMPRESSED:
                if uid != _RLE and uid.removeprefix(_JPEG) not in _COMPRESSIONS:
                    known = technical("TransferSyntaxUID", uid) or "that is private"
                    reason = f"pixels in a transfer syntax {known}, which is not supported"
                    raise ReadError(path, reason, "export it uncompressed")
                _check_streams(dataset, path, frames)
            first = _decode_frame(dataset, path, uid, frame or 0, frames)
            if uid in UNCOMPRESSED and stored >= 2 * needed > 0:
                first.doubts.append(f"{stored // needed} times as many pixels are stored as the header declares")
            if frame is not None:
                return first
            limits.check_count(path, frames * _area(dataset), "voxels")
            out = np.empty((frames, *first.values.shape), dtype=first.values.dtype)
            out[0] = first.values
            for number in range(1, frames):
                out[number] = _decode_frame(dataset, path, uid, number, frames).values
            return Pixels(out, first.label, first.stream, first.doubts)
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # decoders raise many types
        name = _COMPRESSIONS.get(uid.removeprefix(_JPEG), "RLE" if uid == _RLE else "uncompressed pixels")
        what = f"its {stored:,} bytes of pixels cannot be decoded as {name}: damaged, or a wrong header"
        raise ReadError(path, what, "fetch or export it again") from error


def _area(dataset: Any) -> int:
    return int(dataset.Rows) * int(dataset.Columns)


def _check_header(dataset: Any, path: Path) -> tuple[int, int]:
    """Check the sizes that the header declares; returns the number of stored and of uncompressed bytes of pixels.

    Raises ReadError: see `pixel_frames`.
    """
    keyword = next((name for name in PIXELS if name in dataset), "")
    if not keyword:
        kind = kind_of(dataset)
        raise ReadError(path, "no pixels" + (f": {named(kind)}" if kind else ""), "check the modality of this file")
    stored = len(dataset.get_item(keyword).value or b"")
    rows, columns = (_integer(dataset, path, name, 1) for name in ("Rows", "Columns"))
    limits.check_count(path, rows * columns, "pixels")
    samples = _integer(dataset, path, "SamplesPerPixel", 1, 1)
    allocated = _integer(dataset, path, "BitsAllocated", 1)
    if samples not in (1, 3) or allocated not in (1, 8, 16, 32, 64):
        reason = f"{samples} samples of {allocated} bits per pixel"
        raise ReadError(path, reason, "1 or 3 samples of 1, 8, 16, 32 or 64 bits are supported")
    if keyword == "PixelData":
        bits = _integer(dataset, path, "BitsStored", 1, allocated)
        high = _integer(dataset, path, "HighBit", 0, bits - 1)
        if bits > allocated or high >= allocated:
            raise ReadError(path, f"{bits} bits up to bit {high} stored in {allocated}", DAMAGED)
    if _integer(dataset, path, "PixelRepresentation", 0, 0) > 1:
        raise ReadError(path, "PixelRepresentation is neither 0 nor 1", DAMAGED)
    frames = frame_count(dataset, path)
    bits = _needed_bits(dataset, frames)
    uid = str(dataset.file_meta.TransferSyntaxUID)
    if uid in UNCOMPRESSED and stored < bits // 8:
        reason = f"{frames} frames of {columns} x {rows} need {bits // 8:,} bytes, {stored:,} are stored"
        raise ReadError(path, reason, "cut short?")
    if bits // 8 > limits.SMALL:
        limits.check_ratio(path, bits // 8, stored)
    return stored, bits // 8


def _check_streams(dataset: Any, path: Path, frames: int) -> None:
    """Raise ReadError if compressed pixels have fewer fragments than frames, or are cut short."""
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    pixels = io.BytesIO(dataset.PixelData)
    parse_basic_offsets(pixels)
    pieces, offsets = parse_fragments(pixels)
    if pieces < frames:
        raise ReadError(path, f"{frames} frames declared, {pieces} stored", "cut short, or a wrong NumberOfFrames")
    last = struct.unpack("<I", dataset.PixelData[offsets[-1] + 4 : offsets[-1] + 8])[0]
    if offsets[-1] + 8 + last > len(dataset.PixelData):
        raise ReadError(path, "its last frame is cut short", "fetch or export it again")


def _decode_frame(dataset: Any, path: Path, uid: str, number: int, frames: int) -> Pixels:
    """One frame. Colours are as stored, except that the transform of JPEG 2000 is inverted."""
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    label = str(dataset.get("PhotometricInterpretation", "") or "MONOCHROME2")
    tail = uid.removeprefix(_JPEG) if uid.startswith(_JPEG) else ""
    if not tail:
        unknown = int(dataset.get("SamplesPerPixel") or 1) > 1 and dataset.get("PlanarConfiguration") in (None, "")
        options = {"planar_configuration": 0} if unknown else {}
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        values, _ = decoder.as_array(dataset, index=number, raw=True, correct_unused_bits=False, **options)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        doubts = ["PlanarConfiguration is missing: colours taken pixel by pixel"] if options else []
        if uid == _RLE:
            stream = get_frame(dataset.PixelData, number, number_of_frames=frames)
            doubts += filter(None, [damage.of_rle(stream, int(dataset.Rows), int(dataset.Columns))])
        else:
            doubts += _left_over(dataset, frames)
        return Pixels(_stored_bits(dataset, values), label, None, doubts)
    offsets = None
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    stream = get_frame(dataset.PixelData, number, number_of_frames=frames, extended_offsets=offsets)
    facts = _check_stream(dataset, path, stream)
    # the JPEG-LS decoder takes seconds to detect it
    ends = codestream.has_end(stream) if tail in _JPEG_LS else codestream.is_whole(stream)
    if tail in (*_JPEG_DCT, *_JPEG_LS) and not ends:
        raise ReadError(path, "a compressed frame is cut short", "fetch or export it again")
    complaints: list[str] = []
    if tail in _JPEG_2000:
        values = _jpeg_2000(dataset, stream)
    elif tail in _JPEG_DCT:
        values = _jpeg_dct(stream, facts)
    else:
        with damage.listening() as complaints:
            values = _by_plugin(dataset, number, _JPEG_PLUGINS[tail])
    doubt = damage.doubt("JPEG", complaints[0]) if complaints else damage.of_stream(stream)
    doubts = _contradictions(dataset, facts, values) + ([doubt] if doubt else [])
    return Pixels(values, label, facts, doubts)


def _left_over(dataset: Any, frames: int) -> list[str]:
    """A warning if uncompressed pixels exceed the header's sizes by a row or more: one of these is wrong."""
    stored = len(next(dataset.get_item(name).value for name in PIXELS if name in dataset))
    needed = _needed_bits(dataset, frames) // 8
    if stored - needed < max(2, needed // (frames * int(dataset.Rows))):
        return []
    return [f"{stored:,} bytes of pixels, of which the header describes {needed:,}: a size or number of bits is wrong"]


def _needed_bits(dataset: Any, frames: int) -> int:
    """Bits of uncompressed pixels by the header."""
    bits = _area(dataset) * int(dataset.get("SamplesPerPixel") or 1) * frames * int(dataset.BitsAllocated)
    return bits // 3 * 2 if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422" else bits


def _jpeg_dct(stream: bytes, facts: Stream) -> NDArray[Any]:
    """The stored components of a baseline or extended JPEG, without colour conversion."""
    import imagecodecs

    same = "YCBCR" if facts.components == 3 else None
    return np.asarray(imagecodecs.jpeg8_decode(stream, colorspace=same, outcolorspace=same))


def _by_plugin(dataset: Any, number: int, plugins: tuple[str, ...]) -> NDArray[Any]:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    error: Exception | None = None
    for plugin in plugins:
        try:
            values, _ = decoder.as_array(dataset, index=number, raw=True, decoding_plugin=plugin)
            return np.asarray(values.astype(values.dtype.newbyteorder("="), copy=False))
        except Exception as caught:
            error = caught
    assert error is not None
    raise error


def _contradictions(dataset: Any, facts: Stream, values: NDArray[Any]) -> list[str]:
    """Contradictions of a compressed frame to the header; colours are checked in `dicom_colour`."""
    doubts = []
    stored = int(dataset.get("BitsStored") or facts.precision)
    signed = int(dataset.get("PixelRepresentation") or 0)
    beyond = facts.precision > stored and int(values.max(initial=0)) >= 2 ** (stored - signed)
    if facts.precision < stored or beyond:
        doubts.append(f"the header states {stored} bits, the compressed frame {facts.precision}")
    if facts.signed is not None and facts.signed != bool(signed):
        words = ("unsigned", "signed")
        own = words[facts.signed]
        doubts.append(f"the header states {words[signed]} values (taken), the compressed frame {own} ones")
    return doubts


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
    """A JPEG 2000 frame; if its sign and the header's differ, the header's is taken."""
    import openjpeg.utils

    values: NDArray[Any] = openjpeg.utils.decode(stream)
    signed = int(dataset.get("PixelRepresentation", 0))
    if values.dtype.kind != "ui"[signed]:
        shift = 8 * values.dtype.itemsize - int(openjpeg.utils.get_parameters(stream)["precision"])
        values = np.right_shift(np.left_shift(values, shift).view(f"{'ui'[signed]}{values.dtype.itemsize}"), shift)
    return values


def _check_stream(dataset: Any, path: Path, stream: bytes) -> Stream:
    """The header of a compressed frame, checked before memory is allocated for it.

    Raises ReadError: its size or number of components is missing or differs from the DICOM header.
    """
    own = codestream.parse(stream)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if own is None:
        raise ReadError(path, "a compressed frame without a size", "fetch or export it again")
    if (own.rows, own.columns) != (rows, columns):
        raise ReadError(path, f"header: {columns} x {rows}, compressed frame: {own.columns} x {own.rows}", HARM)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if own.components != samples:
        reason = f"header: {samples} samples per pixel, compressed frame: {own.components}"
        raise ReadError(path, reason, DAMAGED)
    return own
