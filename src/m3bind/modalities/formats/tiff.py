"""TIFF images that Pillow cannot read or misreads; and the checks that all readers of TIFF do first.

* `check_directories`: the chain of image directories ends.
* `beyond_pillow`: whether `read` is needed: signed, 32-bit, 16-bit colour, planes, half floats, JPEG 2000, WebP, ...
* `turned`: rotated upright by an orientation tag.
* `read`: the first page -> stored values, in colour or grey, with opacity.
* `silent`: without messages of tifffile. * `compression_name`: for messages.

Shapes: H rows, W columns, C samples.
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError
from m3bind.modalities.formats import limits
from m3bind.modalities.formats.image_values import TRANSPARENT

Array = NDArray[np.float32]
Values = NDArray[Any]
MAX_DIRECTORIES = 4096
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PILLOW = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}  # compressions that its libtiff supports
_MIN_WHITE, _MIN_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
TURNS = {  # orientation -> (transposed, rows reversed, columns reversed)
    2: (False, False, True), 3: (False, True, True), 4: (False, True, False), 5: (True, False, False),
    6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip


@contextmanager
def silent() -> Iterator[None]:
    """Suppress messages of tifffile and tiffslide, which quote file names and headers."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def check_directories(path: Path) -> None:
    """Walk the chain of a TIFF's image directories.

    Raises:
        ReadError: not a TIFF, or the chain is cyclic, too long, or leaves the file.
    """
    with open(path, "rb") as handle:
        head = handle.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        big = order is not None and head[2:4] == struct.pack(f"{order}H", 43)
        if order is None or len(head) < 16 or not (big or head[2:4] == struct.pack(f"{order}H", 42)):
            raise ReadError(path, "not a TIFF or SVS file", "fetch or export it again")
        count, entry, link = ("Q", 20, "Q") if big else ("H", 12, "I")
        offset = struct.unpack_from(order + link, head, 8 if big else 4)[0]
        seen: set[int] = set()
        size = path.stat().st_size
        while offset:
            if offset in seen or offset >= size or len(seen) >= MAX_DIRECTORIES:
                raise ReadError(path, "its list of images is endless or leads outside", "damaged, or malicious")
            seen.add(offset)
            try:
                handle.seek(offset)
                (number,) = struct.unpack(order + count, handle.read(struct.calcsize(count)))
                handle.seek(min(number * entry, size), 1)
                (offset,) = struct.unpack(order + link, handle.read(struct.calcsize(link)))
            except struct.error:
                raise ReadError(path, "cut short", "fetch or export it again") from None


def compression_name(page: Any) -> str:
    """The name of a page's compression for messages: "JPEG 2000", "WEBP", or its number."""
    number = int(page.compression)
    if number in (33003, 33004, 33005, 34712):
        return "JPEG 2000"
    name = getattr(page.compression, "name", "")
    return f"{name.replace('_', ' ')} ({number})" if name else f"number {number}"


def beyond_pillow(path: Path) -> bool:
    """Whether Pillow would refuse or misread the first page of a TIFF; False if tifffile cannot read it either."""
    import tifffile

    try:
        check_directories(path)
        with silent(), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            formats, bits = _several(page.sampleformat), _several(page.bitspersample)
            whole = all(kind in (None, 1) for kind in formats)
            if int(page.compression) not in _PILLOW or (not whole and (formats != [3] or bits != [32])):
                return True
            return bool(max(bits) > (16 if page.samplesperpixel == 1 else 8))
    except MemoryError:
        raise
    except Exception:  # damaged headers raise anything; Pillow then reports the fault
        return False


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


def read(path: Path, steps: list[str]) -> tuple[Values, Array | None, bool]:
    """The first page: values (H, W) or (H, W, 3), opacity (H, W) in 0..1 or None, and whether 0 means white.

    Raises:
        ReadError: several pages, an unsupported colour model or compression, damaged, or over a limit.
    """
    import tifffile

    name = ""
    try:
        with silent(), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            name = compression_name(page)
            _check(path, file, page)
            values = page.asarray()
            if str(page.axes) == "SYX":
                values = np.moveaxis(values, 0, -1)
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # tifffile and the codecs raise many types for damaged files
        codec = f" as {name}" if name and int(page.compression) != 1 else ""
        reason = f"its pixels cannot be decoded{codec}: damaged, or an unsupported variant"
        raise ReadError(path, reason, "fetch it again, or export it as PNG") from error
    tag = page.tags.get(274)
    if tag is not None and tag.value in TURNS:
        steps.append("rotated upright by its orientation tag")
        values = turned(values, int(tag.value))
    return _shown(path, page, values, steps)


def _check(path: Path, file: Any, page: Any) -> None:
    height, width = int(page.imagelength), int(page.imagewidth)
    limits.check_count(path, height * width, "pixels")
    if int(page.imagedepth) != 1 or str(page.axes) not in ("YX", "YXS", "SYX"):
        raise ReadError(path, "a TIFF of several pages", "save the required page as a separate file")
    if len(file.pages) > 1 and not int(file.pages[1].aspage().subfiletype) & 1:
        raise ReadError(path, "a TIFF of several pages", "save the required page as a separate file")
    decoded = int(page.nbytes)
    if decoded > limits.SMALL:
        limits.check_ratio(path, decoded, path.stat().st_size)
    if not any(page.databytecounts):
        raise ReadError(path, "no pixels in it", "fetch or export it again")
    if max(at + count for at, count in zip(page.dataoffsets, page.databytecounts)) > path.stat().st_size:
        raise ReadError(path, "its pixels are cut short", "fetch or export it again")


def turned(values: Values, orientation: int) -> Values:
    """`values` (H, W) or (H, W, C) upright by the orientation of TIFF and EXIF (1..8; others mean 1)."""
    transposed, rows, columns = TURNS.get(orientation, (False, False, False))
    values = values.swapaxes(0, 1) if transposed else values
    return values[:: -1 if rows else 1, :: -1 if columns else 1]


def _shown(path: Path, page: Any, values: Values, steps: list[str]) -> tuple[Values, Array | None, bool]:
    """`values` in grey or RGB by the page's photometric interpretation and extra samples."""
    photometric = int(page.photometric)
    colours = {_MIN_WHITE: 1, _MIN_BLACK: 1, _PALETTE: 1, _RGB: 3, _YCBCR: 3, _CMYK: 4}.get(photometric, 0)
    if values.ndim == 2:
        values = values[..., None]
    if not colours or values.shape[2] < colours or values.dtype.kind not in "biuf":
        name = getattr(page.photometric, "name", str(photometric))
        reason = f"{values.shape[2]} samples of the colour model {name}, which is not supported"
        raise ReadError(path, reason, "export it as 8-bit RGB")
    colour, extra = values[..., :colours], values[..., colours:]
    if photometric == _PALETTE:
        steps.append("palette applied")
        table = np.asarray(page.colormap).T
        return (table[np.minimum(colour[..., 0], len(table) - 1)] >> 8).astype(np.uint8), None, False
    if photometric == _CMYK:
        steps.append("CMYK converted to RGB")
        top = 1.0 if colour.dtype.kind == "f" else float(np.iinfo(colour.dtype).max)
        ink = colour.astype(np.float32) / np.float32(top)
        return (1 - ink[..., :3]) * (1 - ink[..., 3:]), None, False
    colour = colour[..., 0] if colours == 1 else colour
    kinds = [int(kind) for kind in page.extrasamples or ()]
    if not extra.shape[2] or kinds[:1] not in ([1], [2]):
        return colour, None, photometric == _MIN_WHITE
    top = 1.0 if extra.dtype.kind == "f" else float(np.iinfo(extra.dtype).max)
    opacity = np.clip(extra[..., 0].astype(np.float32) / np.float32(top), 0, 1)
    if kinds[0] == 2:
        return colour, opacity, photometric == _MIN_WHITE
    if (opacity < 1).any():  # premultiplied by its opacity, hence already blended with black
        steps.append(TRANSPARENT)
    return colour, None, photometric == _MIN_WHITE
