"""What Pillow ignores in a PNG: wrong checksums, missing rows, the lower byte of 16-bit colours.

* `PngFacts`, `look`: the facts of its chunks, read once without decoding.
* `sixteen_bit`: 16-bit colours at full depth.
* `rows_missing`: whether the compressed data contain fewer rows than declared.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError

MAGIC = b"\x89PNG\r\n\x1a\n"
_PIECE = 1 << 20
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type


@dataclass
class PngFacts:
    """`bits` per sample, `kind` of colour (0 grey, 2 RGB, 3 palette, +4 with opacity), chunks with a wrong checksum."""

    bits: int = 0
    kind: int = 0
    interlaced: bool = False
    gamma: float | None = None
    wrong: list[str] = field(default_factory=list)

    @property
    def wide(self) -> bool:
        """Whether it has colours or opacity of 16 bits, which Pillow reduces to 8."""
        return self.bits == 16 and self.kind in (2, 4, 6)


def _chunks(path: Path) -> Iterator[tuple[bytes, int, Iterator[bytes]]]:
    """Type, checksum place and content, in pieces, of each chunk up to the end of the file."""
    with open(path, "rb") as handle:
        handle.seek(len(MAGIC))
        while len(head := handle.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            end = handle.tell() + length

            def content(left: int = length) -> Iterator[bytes]:
                while left and (piece := handle.read(min(left, _PIECE))):
                    left -= len(piece)
                    yield piece

            yield kind, end, content()
            handle.seek(end + 4)


def look(path: Path) -> PngFacts:
    """The facts of a PNG."""
    found = PngFacts()
    with open(path, "rb") as again:
        for kind, end, content in _chunks(path):
            check, head = zlib.crc32(kind), b""
            for piece in content:
                check, head = zlib.crc32(piece, check), head or piece
            again.seek(end)
            stored = again.read(4)
            if len(stored) == 4 and struct.unpack(">I", stored)[0] != check:
                found.wrong.append(kind.decode("ascii", "replace"))
            if kind == b"IHDR" and len(head) >= 13:
                found.bits, found.kind, found.interlaced = head[8], head[9], bool(head[12])
            elif kind == b"gAMA" and len(head) >= 4:
                found.gamma = struct.unpack(">I", head[:4])[0] / 100_000
            elif kind == b"IEND":
                break
    return found


def rows_missing(path: Path, facts: PngFacts, width: int, height: int) -> bool:
    """Whether the compressed data end before the last row; not checked for interlaced rows."""
    if facts.interlaced:
        return False
    needed = height * (1 + -(-width * _SAMPLES.get(facts.kind, 1) * facts.bits // 8))
    engine = zlib.decompressobj()
    try:
        for kind, _, content in _chunks(path):
            for piece in content if kind == b"IDAT" else ():
                while piece and needed > 0 and not engine.eof:
                    needed -= len(engine.decompress(piece, _PIECE))
                    piece = engine.unconsumed_tail
        return needed > len(engine.flush()) if needed > 0 else False
    except zlib.error:
        return True


def sixteen_bit(path: Path, key: Any) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Values (H, W) or (H, W, 3) and opacity (H, W) in 0..1; `key`: the transparent colour.

    Raises:
        ReadError: damaged.
    """
    import imagecodecs

    try:
        values = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    except imagecodecs.PngError as error:
        raise ReadError(path, "damaged or cut short", "fetch or export it again") from error
    if values.ndim == 3 and values.shape[2] in (2, 4):
        opacity = values[..., -1].astype(np.float32) / np.float32(65535)
        return values[..., 0] if values.shape[2] == 2 else values[..., :3], opacity
    if isinstance(key, tuple):
        return values, 1 - (values == np.asarray(key)).all(axis=-1).astype(np.float32)
    return values, None
