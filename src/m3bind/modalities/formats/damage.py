"""Damage inside compressed pictures that decoders take all the same, as far as it can be seen.

* `of_stream`: the doubt about a JPEG or JPEG 2000 stream.
* `of_rle`: the doubt about a DICOM RLE frame.
* `listening`: what libjpeg, in whatever decoder, says of the data while they are decoded.

None of these formats has checksums. A wrong Huffman code is noticed where it changes how many pixels come out, a JPEG
2000 stream where a byte cannot be, an RLE frame where a row does not end where it should. Other bytes decode to other
pixels, and nothing tells.
"""

import math
import os
import re
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from m3bind.modalities.formats.codestream import SIZ, has_end, is_whole, parse

_STDERR = 2
_SOT, _SOD, _EOC = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_COC, _COD = 0xFF53, 0xFF52
_NO_DATA = re.compile(rb"\xff[\x90\x93-\xff]")  # what JPEG 2000 never writes inside of a tile; FF91, FF92 are marks
_ZEROS = 64  # bytes in a row from which on they are no arithmetic code
_ALIGNED = 4  # rows of RLE that end with a packet, before one that does not
_one = threading.Lock()


def of_stream(stream: bytes) -> str:
    """The doubt about a compressed picture that is damaged although decoders take it; "" for others and for whole ones.

    Of JPEG a missing end marker and what libjpeg complains about, of JPEG 2000 what `_wrong_in_tiles` sees.
    """
    if stream.startswith(SIZ):
        wrong = _wrong_in_tiles(stream) if has_end(stream) else "no end marker"
        return doubt("JPEG 2000", wrong) if wrong else ""
    facts = parse(stream) if stream.startswith(b"\xff\xd8") else None
    if facts is None:
        return ""
    wrong = ""
    if not facts.lossless and facts.precision in (8, 12):  # OpenCV takes 8 bits only; codes of both are alike
        wrong = complaint(stream[: facts.depth_at] + b"\x08" + stream[facts.depth_at + 1 :])
    wrong = wrong or ("" if is_whole(stream) else "no end marker")
    return doubt("JPEG", wrong) if wrong else ""


def doubt(kind: str, wrong: str) -> str:
    """The words about data of `kind` with something `wrong`."""
    return f"its {kind} data are damaged ({wrong}): parts of the picture may be wrong"


# --- JPEG -------------------------------------------------------------------------------------------------------------


def complaint(stream: bytes) -> str:
    """What libjpeg says of damaged data in a JPEG that it decodes all the same: "premature end of data segment", or "".

    The picture is decoded at an eighth of its size, so this costs less than decoding it.
    """
    import cv2

    with listening() as said:
        try:
            flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
            cv2.imdecode(np.frombuffer(stream, np.uint8), flags)
        except cv2.error:  # not for OpenCV: what it says of the data stands
            pass
    return said[0] if said else ""


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list that holds libjpeg's complaint, if there was one, when the block has ended.

    No Python library hands it on: OpenCV and GDCM let libjpeg write it to the process's standard error, which is caught
    for the moment.
    """
    said: list[str] = []
    with _one, tempfile.TemporaryFile() as caught:
        try:
            before = os.dup(_STDERR)
        except OSError:  # this process has none: nothing can be caught
            yield said
            return
        try:
            os.dup2(caught.fileno(), _STDERR)
            yield said
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
            caught.seek(0)
            said += _complaints(caught.read().decode("ascii", "replace"))


def _complaints(text: str) -> list[str]:
    """The first complaint in what was written; the rest is written on."""
    rest = [line for line in text.splitlines(keepends=True) if not re.match("Corrupt JPEG|Premature end", line)]
    if rest:
        os.write(_STDERR, "".join(rest).encode())
    found = re.search(r"(?:Corrupt JPEG data|Premature end of JPEG file)(?:: ([a-z0-9 .-]+))?", text)
    return [] if found is None else [re.sub(r"0x[0-9a-f]+$", "", found[1] or "premature end").strip()]


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------


def _wrong_in_tiles(stream: bytes) -> str:
    """What is wrong with the parts of tiles in a JPEG 2000 codestream, or "".

    Packets and their headers never hold FF and a byte above 8F, and many zeros in a row only where packets are empty.
    """
    try:
        at, empty = _main_header(stream)
        while stream.startswith(_SOT, at):
            (length,) = struct.unpack_from(">I", stream, at + 6)
            end = at + length if length else stream.rindex(_EOC)
            body = at + 12
            while not stream.startswith(_SOD, body):
                body += 2 + struct.unpack_from(">H", stream, body + 2)[0]
            data = stream[body + 2 : end]
            if _NO_DATA.search(data):
                return "a marker in the middle of its data"
            if empty is not None and bytes(max(_ZEROS, empty + _ZEROS)) in data:
                return "zeros in place of data"
            at = end
        return "" if stream.startswith(_EOC, at) else "a part does not end where it says"
    except (struct.error, ValueError, ZeroDivisionError):
        return "a header that makes no sense"


def _main_header(stream: bytes) -> tuple[int, int | None]:
    """Where the first part of a tile begins, and how many packets of one tile may be empty, None where that is open."""
    width, height, left, top, tile_width, tile_height = struct.unpack_from(">6I", stream, 8)
    (components,) = struct.unpack_from(">H", stream, 40)
    size = (min(tile_width, width - left), min(tile_height, height - top))
    packets: int | None = None
    own, at = False, 2
    while not stream.startswith(_SOT, at):
        code, length = struct.unpack_from(">HH", stream, at)
        if code == _COD:
            packets = _packets(stream[at + 4 : at + 2 + length], size, components)
        own |= code == _COC
        at += 2 + length
    return at, None if own else packets


def _packets(style: bytes, size: tuple[int, int], components: int) -> int | None:
    """Packets of a tile of `size` by its coding style; None where parts of the code are plain bits."""
    (layers,) = struct.unpack_from(">H", style, 2)
    levels, bypass = style[5], style[8] & 1
    if bypass:
        return None
    count = 0
    for resolution in range(levels + 1):
        exponents = style[10 + resolution] if style[0] & 1 else 0xFF
        sides = [math.ceil(side / 2 ** (levels - resolution)) for side in size]
        across, down = (side // 2**power + 2 for side, power in zip(sides, (exponents & 15, exponents >> 4)))
        count += layers * components * across * down
    return count


# --- RLE --------------------------------------------------------------------------------------------------------------


def of_rle(stream: bytes, rows: int, columns: int) -> str:
    """The doubt about an RLE frame of `rows` x `columns` pixels: rows are packed each by itself, and nothing is left.

    Writers that pack over the ends of rows do so from the first one on.
    """
    (count,) = struct.unpack_from("<I", stream)
    places = [*struct.unpack_from(f"<{count}I", stream, 4), len(stream)]
    wrong = (_wrong_in_segment(stream[start:end], rows, columns) for start, end in pairwise(places))
    found = next(filter(None, wrong), "")
    return doubt("RLE", found) if found else ""


def _wrong_in_segment(data: bytes, rows: int, columns: int) -> str:
    at, made, row_end, aligned, mixed = 0, 0, columns, 0, False
    while made < rows * columns and at < len(data):
        head = data[at]
        made += head + 1 if head < 128 else 257 - head if head > 128 else 0
        at += head + 2 if head < 128 else 2 if head > 128 else 1
        mixed |= head < 128
        if made >= row_end:
            if made > row_end and aligned >= _ALIGNED:
                return "a row does not end where it should"
            aligned = aligned + mixed if made == row_end else -rows
            mixed = False
            row_end = (made // columns + 1) * columns
    if made > rows * columns or data[at:].strip(b"\0"):
        return "more data than pixels"
    return ""
