"""Detectable damage of compressed images that decoders nevertheless decode.

* `of_stream`: the warning about a JPEG or JPEG 2000 stream.
* `of_rle`: the warning about a DICOM RLE frame.
* `listening`: complaints of libjpeg, in any decoder, while data are decoded.

None of these formats has checksums. A wrong Huffman code is detected if it changes the number of pixels, a JPEG 2000
stream by impossible bytes, an RLE frame by rows that do not end where they should. Other damage changes pixels without
a trace.
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
_NO_DATA = re.compile(rb"\xff[\x90\x93-\xff]")  # never occurs inside a JPEG 2000 tile; FF91, FF92 are markers
_ZEROS = 64  # consecutive zero bytes, impossible in arithmetic code
_ALIGNED = 4  # RLE rows that end with a packet, before one that does not
_stderr_lock = threading.Lock()


def of_stream(stream: bytes) -> str:
    """The warning about a damaged image that decoders nevertheless decode; "" for other and for undamaged data.

    Checked are the end marker and complaints of libjpeg for JPEG, and `_wrong_in_tiles` for JPEG 2000.
    """
    if stream.startswith(SIZ):
        wrong = _wrong_in_tiles(stream) if has_end(stream) else "no end marker"
        return doubt("JPEG 2000", wrong) if wrong else ""
    facts = parse(stream) if stream.startswith(b"\xff\xd8") else None
    if facts is None:
        return ""
    wrong = ""
    if not facts.lossless and facts.precision in (8, 12):  # OpenCV decodes 8 bits only; the codes of both are equal
        wrong = complaint(stream[: facts.depth_at] + b"\x08" + stream[facts.depth_at + 1 :])
    wrong = wrong or ("" if is_whole(stream) else "no end marker")
    return doubt("JPEG", wrong) if wrong else ""


def doubt(kind: str, wrong: str) -> str:
    """The warning about damaged data of `kind`; `wrong` is the defect."""
    return f"its {kind} data are damaged ({wrong}): parts of the image may be wrong"


# --- JPEG -------------------------------------------------------------------------------------------------------------


def complaint(stream: bytes) -> str:
    """The complaint of libjpeg about a JPEG that it nevertheless decodes ("premature end of data segment"), or "".

    The image is decoded at an eighth of its size, which is faster than decoding it fully.
    """
    import cv2

    with listening() as complaints:
        try:
            flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
            cv2.imdecode(np.frombuffer(stream, np.uint8), flags)
        except cv2.error:  # unsupported by OpenCV; complaints about the data still count
            pass
    return complaints[0] if complaints else ""


@contextmanager
def listening() -> Iterator[list[str]]:
    """A list that contains libjpeg's complaint, if any, once the block has ended.

    No Python library returns it: OpenCV and GDCM let libjpeg write to standard error, which is captured meanwhile.
    """
    complaints: list[str] = []
    with _stderr_lock, tempfile.TemporaryFile() as caught:
        try:
            before = os.dup(_STDERR)
        except OSError:  # this process has no standard error to capture
            yield complaints
            return
        try:
            os.dup2(caught.fileno(), _STDERR)
            yield complaints
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
            caught.seek(0)
            complaints += _complaints(caught.read().decode("ascii", "replace"))


def _complaints(text: str) -> list[str]:
    """The first complaint in captured output; the other lines are written to standard error."""
    rest = [line for line in text.splitlines(keepends=True) if not re.match("Corrupt JPEG|Premature end", line)]
    if rest:
        os.write(_STDERR, "".join(rest).encode())
    found = re.search(r"(?:Corrupt JPEG data|Premature end of JPEG file)(?:: ([a-z0-9 .-]+))?", text)
    return [] if found is None else [re.sub(r"0x[0-9a-f]+$", "", found[1] or "premature end").strip()]


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------


def _wrong_in_tiles(stream: bytes) -> str:
    """The defect of the tile-parts of a JPEG 2000 codestream, or "".

    Packets and their headers never contain FF and a byte above 8F, and many consecutive zeros only if they are empty.
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
        return "" if stream.startswith(_EOC, at) else "a part does not end where its header states"
    except (struct.error, ValueError, ZeroDivisionError):
        return "an invalid header"


def _main_header(stream: bytes) -> tuple[int, int | None]:
    """Where the first tile-part begins, and how many packets of one tile may be empty, None if unknown."""
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
    """Packets of a tile of `size` by its coding style; None if parts of the code are raw bits."""
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
    """The warning about an RLE frame of `rows` x `columns` pixels: each row is packed separately, without a remainder.

    Writers that pack across row ends do so from the first row on.
    """
    (count,) = struct.unpack_from("<I", stream)
    places = [*struct.unpack_from(f"<{count}I", stream, 4), len(stream)]
    defects = (_wrong_in_segment(stream[start:end], rows, columns) for start, end in pairwise(places))
    wrong = next(filter(None, defects), "")
    return doubt("RLE", wrong) if wrong else ""


def _wrong_in_segment(data: bytes, rows: int, columns: int) -> str:
    at, count, row_end, aligned, mixed = 0, 0, columns, 0, False
    while count < rows * columns and at < len(data):
        head = data[at]
        count += head + 1 if head < 128 else 257 - head if head > 128 else 0
        at += head + 2 if head < 128 else 2 if head > 128 else 1
        mixed |= head < 128
        if count >= row_end:
            if count > row_end and aligned >= _ALIGNED:
                return "a row does not end where it should"
            aligned = aligned + mixed if count == row_end else -rows
            mixed = False
            row_end = (count // columns + 1) * columns
    if count > rows * columns or data[at:].strip(b"\0"):
        return "more data than pixels"
    return ""
