"""Compressed tiles and strips of TIFF images and slides, checked for damage that decoders do not report.

* `of_image`: warnings about the first page of a TIFF, including its colour profile.
* `of_tiff`, `of_dicom`: the warning about the tiles under a rectangle of one level of a slide.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from m3bind.modalities.formats import colour_profile, damage
from m3bind.modalities.formats.tiff import silent

_CHECKED = (7, 33003, 33004, 33005, 34712)  # compressions: JPEG and JPEG 2000


def of_image(path: Path) -> list[str]:
    """Warnings about the compressed data and the colour profile of a TIFF's first page."""
    import tifffile

    try:
        with silent(), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            streams = (_stream(page, index) for index in range(len(page.dataoffsets) if _compressed(page) else 0))
            return [doubt for doubt in (_first(streams), colour_profile.doubt_of_page(page)) if doubt]
    except MemoryError:
        raise
    except Exception:  # a damaged header; the image was read nevertheless
        return []


def of_tiff(page: Any, left: int, top: int, width: int, height: int) -> str:
    """The warning about the tiles of a `page` of tifffile under a rectangle of its pixels, or ""."""
    if not _compressed(page) or int(page.planarconfig) != 1:
        return ""
    rows, columns = page.chunks[:2]
    across = -(-int(page.imagewidth) // columns)
    places = _under(left, top, width, height, columns, rows)
    return _first(_stream(page, row * across + column) for column, row in places)


def of_dicom(tile: Callable[[tuple[int, int]], bytes], size: tuple[int, int], rectangle: tuple[int, ...]) -> str:
    """The warning about the tiles (column, row) of `size` (width, height) under (left, top, width, height), or ""."""
    left, top, width, height = rectangle
    return _first(tile(place) for place in _under(left, top, width, height, *size))


def _compressed(page: Any) -> bool:
    return int(page.compression) in _CHECKED


def _under(left: int, top: int, width: int, height: int, columns: int, rows: int) -> list[tuple[int, int]]:
    """Tiles (column, row) of `columns` x `rows` pixels under a rectangle."""
    return [
        (column, row)
        for row in range(top // rows, (top + height - 1) // rows + 1)
        for column in range(left // columns, (left + width - 1) // columns + 1)
    ]


def _stream(page: Any, index: int) -> bytes:
    """One tile or strip as a complete stream, with the tables or the header that its page stores once for all."""
    count = page.databytecounts[index]
    if not count or not page.dataoffsets[index]:
        return b""
    file = page.parent.filehandle
    file.seek(page.dataoffsets[index])
    data: bytes = file.read(count)
    if page.jpegheader:
        return bytes(page.jpegheader) + data + b"\xff\xd9"
    tables = page.jpegtables
    return bytes(tables[:-2]) + data[2:] if tables and data.startswith(b"\xff\xd8") else data


def _first(streams: Iterable[bytes]) -> str:
    return next((doubt for stream in streams if (doubt := damage.of_stream(stream))), "")
