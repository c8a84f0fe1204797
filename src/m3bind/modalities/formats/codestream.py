"""The headers of compressed images, read without decoding: JPEG, JPEG-LS and JPEG 2000.

* `Stream`, `parse`: size, components, precision and colour model by a stream's markers.
* `is_whole`: whether a JPEG has its end marker. `has_end`: whether a stream's last bytes are one, which is faster.
"""

import struct
from dataclasses import dataclass

SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream
_COD = 0xFF52
_RGB_IDS = ((82, 71, 66), (114, 103, 98))  # component numbers that spell RGB or rgb
_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}


@dataclass(frozen=True)
class Stream:
    """The header of a codestream. `colour`: "RGB" or "YBR" of its stored components, "" if not stated."""

    rows: int
    columns: int
    components: int
    precision: int
    colour: str = ""
    why: str = ""  # what states it: "a JFIF marker"
    lossless: bool = False
    transformed: bool = False  # JPEG 2000: by its multiple component transform, which decoders invert
    signed: bool | None = None  # JPEG 2000
    depth_at: int = 0  # JPEG: position of its precision


def parse(stream: bytes) -> Stream | None:
    """The header of `stream`, or None if it cannot be parsed."""
    start = stream.find(SIZ, 0, 4096)
    try:
        return _jpeg_2000(stream, start) if start >= 0 else _jpeg(stream)
    except (struct.error, IndexError):
        return None


def _jpeg_2000(stream: bytes, start: int) -> Stream | None:
    width, height, left, top = struct.unpack(">4I", stream[start + 8 : start + 24])
    (components,) = struct.unpack(">H", stream[start + 40 : start + 42])
    depth, transformed = stream[start + 42], False
    position = start + 2
    while position + 4 <= len(stream):
        code, length = struct.unpack(">HH", stream[position : position + 4])
        if code == _COD:
            transformed = stream[position + 8] == 1
        if code in (_COD, 0xFF90, 0xFF93):
            break
        position += 2 + length
    return Stream(
        height - top, width - left, components, (depth & 0x7F) + 1, lossless=False, transformed=transformed,
        signed=bool(depth & 0x80),
    )  # fmt: skip


def _jpeg(stream: bytes) -> Stream | None:
    position = stream.find(b"\xff\xd8") + 2
    stated: dict[str, str] = {}
    while 2 <= position <= len(stream) - 9:
        if stream[position] != 0xFF:
            return None
        marker = stream[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
        else:
            (length,) = struct.unpack(">H", stream[position + 2 : position + 4])
            body = stream[position + 4 : position + 2 + length]
            if marker in _SOF:
                return _frame(marker, body, stated, position + 4)
            if marker == 0xE0 and body.startswith(b"JFIF\0"):
                stated["a JFIF marker"] = "YBR"
            elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
                stated[f"an Adobe marker (transform {body[11]})"] = "YBR" if body[11] else "RGB"
            position += 2 + length
    return None


def _frame(marker: int, body: bytes, stated: dict[str, str], at: int) -> Stream:
    precision, rows, columns, components = struct.unpack(">BHHB", body[:6])
    ids = tuple(body[6 + 3 * k] for k in range(components))
    sampling = {body[7 + 3 * k] for k in range(components)}
    colour, why = "", ""
    if components == 3:
        if ids in _RGB_IDS:
            stated = {"component numbers that spell RGB": "RGB"}
        elif len(sampling) > 1:
            stated = {**stated, "colour at half the resolution": "YBR"}
        why, colour = next(iter(stated.items()), ("", ""))
    return Stream(rows, columns, components, precision, colour, why, lossless=marker in _LOSSLESS, depth_at=at)


def is_whole(stream: bytes) -> bool:
    """Whether a JPEG has its end marker after its last scan."""
    return stream.find(b"\xff\xd9", stream.rfind(b"\xff\xda")) > 0


def has_end(stream: bytes) -> bool:
    """Whether a stream ends with an end marker, apart from padding bytes."""
    return stream.rstrip(b"\0\xff").endswith(b"\xff\xd9")
