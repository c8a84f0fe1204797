"""The beginning of a gzip file, in time bounded by its size on disk.

* `inflated`: the first bytes of one or several gzip streams.
"""

import zlib
from pathlib import Path

from m3bind.errors import ReadError

_INPUT, _OUTPUT = 1 << 16, 1 << 20  # bytes per step; the data after a stream's end are copied at each
_BEHIND = 1 << 24  # bytes after the requested ones that are unpacked to verify the checksum after them
_STREAMS, _MIN_BYTES = 1000, 256  # streams in one file, and bytes that each further one must have on average
_GZIP = 16 + zlib.MAX_WBITS


def inflated(path: Path, size: int, checked: bool = True) -> bytearray:
    """The first `size` bytes, fewer if the file ends; the last stream of them is read to its checksum if `checked`.

    Raises:
        ReadError: more streams than its data need.
        zlib.error: damaged, or a wrong checksum.
    """
    data, behind, streams = bytearray(), 0, 1
    with open(path, "rb") as handle:
        engine = zlib.decompressobj(_GZIP)
        while chunk := engine.unconsumed_tail or engine.unused_data or handle.read(_INPUT):
            if len(data) >= size and (engine.eof or not checked or behind > _BEHIND):
                break
            if engine.eof:
                engine, streams = zlib.decompressobj(_GZIP), streams + 1
                if streams > _STREAMS + len(data) // _MIN_BYTES:
                    raise ReadError(path, f"{streams:,} gzip streams for {len(data):,} bytes", "malicious")
            piece = engine.decompress(chunk, _OUTPUT)
            behind += max(0, len(piece) - max(0, size - len(data)))
            data += piece[: max(0, size - len(data))]
    return data
