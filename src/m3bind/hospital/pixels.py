"""Pixels and samples without text hidden around them.

* `clean_bulk`: the bytes of one dataset, cut to the size its header states.
* `clean_stream`: a compressed frame. * `clean_profile`: a colour profile.

Text can stand behind the last pixel, in the bits above the stored ones (old overlays), and in the comment and
application segments of JPEG, JPEG-LS and JPEG 2000 streams. The first is cut off, the second cleared, and the segments
are filled with zeros except for the storage of colours (JFIF, Adobe), so that all positions and values are unchanged.
A colour profile is reduced to its numbers.
"""

import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from m3bind.hospital.tags import BULK

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "")
_RLE = "1.2.840.10008.1.2.5"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # not stuffed zeros or restarts
_IN_SCAN_LS = re.compile(rb"\xff([\x80-\xcf\xd8-\xfe])")  # JPEG-LS stuffs one bit
_BOX = b"\0\0\0\x0cjP  "  # a JPEG 2000 file around the stream
_SIZE = b"\xff\x4f\xff\x51"  # first bytes of a JPEG 2000 stream
_OF_A_PROFILE = (b"XYZ ", b"curv", b"para", b"mft1", b"mft2", b"mAB ", b"mBA ", b"sf32")  # kinds of entries: numbers
_MAX_OFFSET = 1 << 32  # bytes a basic offset table can address


def clean_bulk(dataset: "Dataset", made: "Dataset", syntax: str, above: Sequence["Dataset"] = ()) -> None:
    """Copy the allowed bytes of `dataset` into `made`, which holds the entries that describe them.

    Args:
        dataset: with the bytes.
        made: the new dataset.
        syntax: transfer syntax of pixels.
        above: the datasets that `dataset` is an item of.

    Raises:
        ValueError, KeyError, AttributeError, struct.error: they do not fit the header.
    """
    for keyword, maximum in BULK.items():
        if keyword not in dataset or (keyword in _PIXELS and above):
            continue
        value = dataset[keyword].value
        if isinstance(value, list | tuple) or np.issubdtype(type(value), np.integer) or isinstance(value, int):
            value = (np.atleast_1d(np.asarray(value)) & 0xFFFF).astype("<u2").tobytes()
        if not isinstance(value, bytes):
            continue
        if keyword in _PIXELS:
            _put_pixels(made, keyword, value, syntax)
        elif keyword == "WaveformData":
            bits = int(made.WaveformBitsAllocated)
            needed = int(made.NumberOfWaveformChannels) * int(made.NumberOfWaveformSamples) * bits // 8
            made.add_new(keyword, "OW" if bits > 8 else "OB", _even(value[:needed]))
        elif len(value) <= (maximum or 0):
            if keyword != "ICCProfile":
                made.add_new(keyword, "OW" if len(value) % 2 == 0 else "OB", _even(value))
            elif profile := clean_profile(value):
                made.add_new(keyword, "OB", _even(profile))


def clean_profile(profile: bytes) -> bytes:
    """A colour profile (ICC) with the numbers of the transform, without texts, dates and devices; b"" if invalid.

    Raises:
        struct.error: cut short.
    """
    if profile[36:40] != b"acsp":
        return b""
    entries = struct.iter_unpack(">4sII", profile[132 : 132 + 12 * struct.unpack_from(">I", profile, 128)[0]])
    kept = [entry for entry in entries if profile[entry[1] : entry[1] + 4] in _OF_A_PROFILE]
    found = bytearray(len(profile))
    for _, start, size in kept:
        found[start : start + size] = profile[start : start + size]
    found[:132] = profile[:4] + bytes(4) + profile[8:24] + bytes(12) + b"acsp" + bytes(24) + profile[64:80] + bytes(52)
    found[128 : 132 + 12 * len(kept)] = struct.pack(">I", len(kept)) + b"".join(struct.pack(">4sII", *e) for e in kept)
    return bytes(found[: len(profile)])


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def _put_pixels(made: "Dataset", keyword: str, value: bytes, syntax: str) -> None:
    if syntax in _NATIVE:
        kind = {"FloatPixelData": "OF", "DoubleFloatPixelData": "OD"}.get(keyword, "")
        bits = int(made.BitsAllocated) if not kind else 32 if kind == "OF" else 64
        if not kind:
            value = _stored_bits(made, value[: _needed(made)], bits)
        made.add_new(keyword, kind or ("OW" if bits > 8 else "OB"), _even(value[: _needed(made, bits)]))
        return
    from pydicom.encaps import encapsulate, generate_frames

    count = int(made.get("NumberOfFrames") or 1)
    frames = generate_frames(value, number_of_frames=count)
    cleaned = [frame if syntax == _RLE else clean_stream(frame) for frame in frames]
    if len(cleaned) != count:
        raise ValueError("another number of frames than the header states")
    total = sum(map(len, cleaned)) + 8 * count
    made.add_new(keyword, "OB", encapsulate(cleaned, has_bot=total < _MAX_OFFSET))
    made[keyword].is_undefined_length = True


def _needed(made: "Dataset", bits: int | None = None) -> int:
    """Bytes of uncompressed pixels, from the header."""
    samples = int(made.get("SamplesPerPixel") or 1)
    if made.get("PhotometricInterpretation") in ("YBR_FULL_422", "YBR_PARTIAL_422"):
        samples = 2
    count = int(made.Rows) * int(made.Columns) * samples * int(made.get("NumberOfFrames") or 1)
    return (count * (int(made.BitsAllocated) if bits is None else bits) + 7) // 8


def _stored_bits(made: "Dataset", value: bytes, bits: int) -> bytes:
    """Uncompressed pixels with unused bits cleared, sign extended."""
    stored = int(made.get("BitsStored") or bits)
    if bits not in (8, 16, 32) or not 0 < stored < bits:
        return value
    high = max(int(made.get("HighBit") or 0), stored - 1)
    signed = int(made.get("PixelRepresentation") or 0) == 1 and high == stored - 1
    words = np.frombuffer(value[: len(value) // (bits // 8) * (bits // 8)], f"<u{bits // 8}")
    mask = words.dtype.type(((1 << stored) - 1) << (high - stored + 1))
    kept = words & mask
    if signed:
        shift = bits - stored
        kept = ((kept << shift).view(f"<i{bits // 8}") >> shift).view(words.dtype)
    cleared: bytes = kept.tobytes()
    return cleared


def clean_stream(frame: bytes) -> bytes:
    """A JPEG, JPEG-LS or JPEG 2000 stream, comments and application data zeroed, bytes around it cut off.

    Raises:
        ValueError: it is none of these, or its segments are not contiguous.
    """
    start = frame.find(_SIZE, 0, 4096) if frame.startswith(_BOX) else 0
    data = bytearray(frame[max(start, 0) :])
    if data[:2] == b"\xff\xd8":
        end = _jpeg(data)
    elif data[:4] == _SIZE:
        end = _jpeg_2000(data)
    else:
        raise ValueError("a compressed frame that is neither JPEG nor JPEG 2000")
    return bytes(data[:end]) + b"\0" * (end % 2)


def _length(data: bytearray, position: int) -> int:
    """The length a segment states at `position`, checked against the stream's."""
    length = int.from_bytes(data[position : position + 2], "big")
    if length < 2 or position + length > len(data):
        raise ValueError("a segment that reaches beyond its stream")
    return length


def _jpeg(data: bytearray) -> int:
    """Zero comments and application segments; the position after the end marker."""
    position, ls = 2, False
    while position < len(data):
        found = _MARKER.match(data, position)
        if found is None:
            raise ValueError("no marker where one must be")
        code, position = found[1][0], found.end()
        if code == 0xD9:
            return position
        if code in (0x01, 0xD8):
            continue
        length = _length(data, position)
        if code == 0xFE or 0xE0 <= code <= 0xEF:
            body = slice(position + 2, position + length)
            data[body] = _of_colour(code, bytes(data[body])).ljust(length - 2, b"\0")
        ls = ls or code == 0xF7
        position += length
        if code == 0xDA:  # entropy-coded data follow, to the next marker
            marker = (_IN_SCAN_LS if ls else _MARKER).search(data, position)
            if marker is None:
                break
            position = marker.start()
    return len(data)


def _of_colour(code: int, body: bytes) -> bytes:
    """The colour information of an application segment, which readers need; b"" if it has none."""
    if code == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        return b"JFIF\0\1\1\0\0\1\0\1\0\0"  # a density of 1 to 1, no thumbnail
    if code == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
        return b"Adobe\0\x64\0\0\0\0" + body[11:12]  # the transform
    return body if code == 0xE8 and body[:4] == b"mrfx" and len(body) == 5 else b""


def _jpeg_2000(data: bytearray) -> int:
    """Zero comments of the main header and of tile parts; the position after the end marker."""
    position, tile, tile_end = 2, 0, 0
    while position + 4 <= len(data):
        code = int.from_bytes(data[position : position + 2], "big")
        if code == 0xFFD9:
            return position + 2
        if code == 0xFF93:  # data of a tile part follow
            if not tile_end:
                tail = data.rfind(b"\xff\xd9", position)
                return tail + 2 if tail >= 0 else len(data)
            position = tile_end
            continue
        if code >> 8 != 0xFF:
            raise ValueError("no marker where one must be")
        length = _length(data, position + 2)
        if code == 0xFF90:
            tile = position
            size = int.from_bytes(data[position + 6 : position + 10], "big")
            tile_end = tile + size if size else 0
            if size and (size < 14 or tile_end > len(data)):
                raise ValueError("a tile part that reaches beyond its stream")
        elif code == 0xFF64:
            data[position + 4 : position + 2 + length] = bytes(length - 2)
        position += 2 + length
    return position + 2 if data[position : position + 2] == b"\xff\xd9" else len(data)
