"""What compressed pictures say of themselves, before anything is decoded: JPEG, JPEG-LS and JPEG 2000.

* `Stream`, `parse`: size, components, precision and colour model by a stream's own markers.
* `damage`: the doubt about data that decoders take all the same, by `complaint` (what libjpeg says) or a missing end.
* `is_whole`: whether a JPEG has its end marker. `has_end`: the same of a stream's last bytes, which is quicker.
"""

import os
import re
import struct
import tempfile
import threading
from dataclasses import dataclass

import numpy as np

_SIZ = b"\xff\x4f\xff\x51"  # how a JPEG 2000 codestream begins
_COD = 0xFF52
_RGB_IDS = ((82, 71, 66), (114, 103, 98))  # component numbers that spell RGB or rgb
_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF, 0xF7}
_STDERR = 2
_one = threading.Lock()


@dataclass(frozen=True)
class Stream:
    """The facts of a codestream. `colour`: "RGB" or "YBR" of its stored components, "" where it does not say."""

    rows: int
    columns: int
    components: int
    precision: int
    colour: str = ""
    why: str = ""  # what says so: "a JFIF marker"
    lossless: bool = False
    transformed: bool = False  # JPEG 2000: by its multiple component transform, which decoders undo
    signed: bool | None = None  # JPEG 2000


def parse(stream: bytes) -> Stream | None:
    """What `stream` says, or None where that cannot be found."""
    start = stream.find(_SIZ, 0, 4096)
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
    says: dict[str, str] = {}
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
                return _frame(marker, body, says)
            if marker == 0xE0 and body.startswith(b"JFIF\0"):
                says["a JFIF marker"] = "YBR"
            elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
                says[f"an Adobe marker (transform {body[11]})"] = "YBR" if body[11] else "RGB"
            position += 2 + length
    return None


def _frame(marker: int, body: bytes, says: dict[str, str]) -> Stream:
    precision, rows, columns, components = struct.unpack(">BHHB", body[:6])
    ids = tuple(body[6 + 3 * k] for k in range(components))
    sampling = {body[7 + 3 * k] for k in range(components)}
    colour, why = "", ""
    if components == 3:
        if ids in _RGB_IDS:
            says = {"component numbers that spell RGB": "RGB"}
        elif len(sampling) > 1:
            says = {**says, "colour at half the resolution": "YBR"}
        why, colour = next(iter(says.items()), ("", ""))
    return Stream(rows, columns, components, precision, colour, why, lossless=marker in _LOSSLESS)


def is_whole(stream: bytes) -> bool:
    """Whether a JPEG has its end marker behind its last scan."""
    return stream.find(b"\xff\xd9", stream.rfind(b"\xff\xda")) > 0


def has_end(stream: bytes) -> bool:
    """Whether a stream ends with an end marker, but for bytes it was padded with."""
    return stream.rstrip(b"\0\xff").endswith(b"\xff\xd9")


def damage(stream: bytes) -> str:
    """The doubt about a compressed picture that is damaged although decoders take it; "" for others and for whole ones.

    A missing end marker, and of baseline and progressive JPEG what libjpeg complains about; the decoders of others say
    nothing.
    """
    if stream.startswith(_SIZ):
        return "" if has_end(stream) else _doubt("JPEG 2000", "no end marker")
    facts = parse(stream) if stream.startswith(b"\xff\xd8") else None
    if facts is None:
        return ""
    wrong = complaint(stream) if facts.precision == 8 and not facts.lossless else ""
    wrong = wrong or ("" if is_whole(stream) else "no end marker")
    return _doubt("JPEG", wrong) if wrong else ""


def _doubt(kind: str, wrong: str) -> str:
    return f"its {kind} data are damaged ({wrong}): parts of the picture may be wrong"


def complaint(stream: bytes) -> str:
    """What libjpeg says of damaged data in a JPEG that it decodes all the same: "premature end of data segment", or "".

    No Python library hands this on: OpenCV lets libjpeg write it to the process's standard error, which is caught for
    the moment. The picture is decoded at an eighth of its size, so this costs less than decoding it.
    """
    import cv2

    with _one, tempfile.TemporaryFile() as caught:
        try:
            before = os.dup(_STDERR)
        except OSError:  # this process has none: nothing can be caught
            return ""
        try:
            os.dup2(caught.fileno(), _STDERR)
            flags = cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_IGNORE_ORIENTATION
            cv2.imdecode(np.frombuffer(stream, np.uint8), flags)
        except cv2.error:  # not for OpenCV: what it says of the data stands
            pass
        finally:
            os.dup2(before, _STDERR)
            os.close(before)
        caught.seek(0)
        said = caught.read().decode("ascii", "replace")
    rest = [line for line in said.splitlines(keepends=True) if not re.match("Corrupt JPEG|Premature end", line)]
    if rest:
        os.write(_STDERR, "".join(rest).encode())
    found = re.search(r"(?:Corrupt JPEG data|Premature end of JPEG file)(?:: ([a-z0-9 .-]+))?", said)
    return "" if found is None else re.sub(r"0x[0-9a-f]+$", "", found[1] or "premature end").strip()
