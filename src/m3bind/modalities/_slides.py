"""Whole slides: pyramids of tissue scanned at a known size of pixel, of which only the needed part is decoded.

* `open_slide`: SVS and other tiled TIFF (through tiffslide), DICOM whole slides (through wsidicom) -> `Slide`.
* `is_slide`: whether a file is one, rather than a picture of a tile.
* `Slide.read_region`: any rectangle at any size of pixel not finer than the scan, averaged by area, never enlarged.
The tiles of it that show tissue: `_tissue`.

Label, macro and thumbnail images of a slide are never opened: labels show names. Free text of headers stays unread.
Shapes: H rows, W columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.errors import ReadError, in_words
from m3bind.modalities import _codestream, _dicom, _limits, _slide_scale
from m3bind.modalities._dicom_colour import rgb_of
from m3bind.modalities._dicom_files import quiet
from m3bind.modalities._dicom_values import numbers
from m3bind.modalities._tiff import check_directories, compression_name, silent

SLIDE_SUFFIXES = (".svs",)
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_TILE_PIXELS = 4096 * 4096  # a tiled TIFF of one level is a slide above this
_APERIO_YBR, _JPEG_2000, _YCBCR = 33003, (33004, 33005, 34712), 6
_BAND_PIXELS = 4_000_000  # decoded at a time

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Level:
    """One resolution. `scale_x`, `scale_y`: level-0 pixels per pixel of this level."""

    width: int
    height: int
    scale_x: float
    scale_y: float


@dataclass
class Slide:
    """An open whole slide; close it, or use it in a `with` statement.

    `pixel` is the width and height of a level-0 pixel in micrometres, None where the file does not tell (`notes` says).
    """

    path: Path
    levels: list[Level]  # finest first
    pixel: tuple[float, float] | None
    decode: Callable[[int, int, int, int, int], Bytes]  # level, left, top, width, height (inside it) -> (H, W, 3)
    close: Callable[[], None]
    kind: str  # for steps: "TIFF", "DICOM"
    notes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    codec: str = ""  # of its tiles, for errors

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def mpp(self) -> float | None:
        """Micrometres per level-0 pixel (the mean of both axes), None where the file does not tell."""
        return None if self.pixel is None else sum(self.pixel) / 2

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in level-0 pixels."""
        return self.levels[0].width, self.levels[0].height

    def finest(self, mpp: float) -> float | None:
        """The asked micrometres per pixel, or the scan's own where that is coarser; None where it is unknown."""
        return None if self.pixel is None else max(mpp, *self.pixel)

    def read_region(self, x: int, y: int, width: int, height: int, mpp: float | None) -> Array:
        """`width` x `height` pixels of `mpp` micrometres from level-0 pixel (x, y) on; (H, W, 3) float32 in 0..1.

        The coarsest level that is at least as fine is averaged by area. Outside of the slide it is white.
        `mpp` None reads level 0 as it is.

        Raises:
            ReadError: finer than the scan, of unknown size of pixel, damaged, or too much to decode.
        """
        if mpp is None:
            step_x = step_y = 1.0
        elif self.pixel is None:
            raise ReadError(self.path, "the file does not tell the size of its pixels", "read level 0 of it")
        else:
            step_x, step_y = mpp / self.pixel[0], mpp / self.pixel[1]
        return self.read_steps(x, y, width, height, step_x, step_y)

    def read_steps(self, x: int, y: int, width: int, height: int, step_x: float, step_y: float) -> Array:
        """As `read_region`, with output pixels of `step_x` x `step_y` level-0 pixels."""
        fit = [k for k, lv in enumerate(self.levels) if lv.scale_x <= step_x + 1e-9 and lv.scale_y <= step_y + 1e-9]
        if not fit:
            raise ReadError(self.path, "asked for finer pixels than were scanned", "enlarge the tile afterwards")
        number = max(fit, key=lambda k: self.levels[k].scale_x)
        level = self.levels[number]
        columns = (x + np.arange(width + 1) * step_x) / level.scale_x  # edges of output pixels in this level's pixels
        rows = (y + np.arange(height + 1) * step_y) / level.scale_y
        most = 8 * _limits.LIMITS.pixels
        if (needed := int((columns[-1] - columns[0]) * (rows[-1] - rows[0]))) > most:
            reason = f"{needed:,} pixels to decode, more than {most:,}"
            raise ReadError(self.path, reason, "write it with smaller levels, or name the folder of all its levels")
        band = max(1, int(_BAND_PIXELS / (columns[-1] - columns[0] + 1) / max(step_y / level.scale_y, 1)))
        picture = np.empty((height, width, 3), np.float32)
        for top in range(0, height, band):
            edges = rows[top : top + band + 1]
            first_row, first_column = math.floor(edges[0] + 1e-9), math.floor(columns[0] + 1e-9)
            pixels = self._decode_padded(number, first_column, first_row, columns[-1], edges[-1])
            lines = averages(pixels, edges - first_row)
            picture[top : top + band] = averages(lines.swapaxes(0, 1), columns - first_column).swapaxes(0, 1)
        return picture / np.float32(255)

    def _decode_padded(self, number: int, left: int, top: int, right: float, bottom: float) -> Bytes:
        """Pixels of a level from (left, top) to beyond (right, bottom), white where there are none."""
        level = self.levels[number]
        width, height = (max(1, math.ceil(end - 1e-9) - start) for start, end in ((left, right), (top, bottom)))
        inside = (max(left, 0), max(top, 0), min(left + width, level.width), min(top + height, level.height))
        columns, rows = inside[2] - inside[0], inside[3] - inside[1]
        if columns <= 0 or rows <= 0:
            return np.full((height, width, 3), 255, np.uint8)
        try:
            pixels = self.decode(number, inside[0], inside[1], columns, rows)
        except (MemoryError, ReadError):
            raise
        except Exception as error:  # decoders raise many kinds for damaged tiles; their words may quote the file
            variant = f", or of a variant of {self.codec} that is not read" if self.codec else ""
            reason = f"a tile of it is damaged{variant}"
            raise ReadError(self.path, reason, "fetch or export it again") from error
        if pixels.shape != (rows, columns, 3) or pixels.dtype != np.uint8:
            raise ReadError(self.path, "its tiles are not 8-bit RGB", "export it as 8-bit RGB")
        if (columns, rows) == (width, height):
            return pixels
        padded = np.full((height, width, 3), 255, np.uint8)
        padded[inside[1] - top : inside[3] - top, inside[0] - left : inside[2] - left] = pixels
        return padded


def averages(values: NDArray[Any], edges: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Means of `values` (N, ...) along axis 0 between neighbouring `edges` (n + 1 positions within 0..N): (n, ...)."""
    wide = (-1,) + (1,) * (values.ndim - 1)
    edges = np.clip(edges, 0, len(values))
    below = np.minimum(edges.astype(np.intp), len(values) - 1)
    part = values[below] * (edges - below).reshape(wide)  # of the pixel that each edge cuts, what lies before it
    whole = np.add.reduceat(values, below, axis=0, dtype=np.uint32 if values.dtype == np.uint8 else np.float64)[:-1]
    whole = whole * (np.diff(below) > 0).reshape(wide)  # reduceat takes an empty range for its first pixel
    means: NDArray[np.float64] = (whole + np.diff(part, axis=0)) / np.diff(edges).reshape(wide)
    return means


# --- opening ----------------------------------------------------------------------------------------------------------


def is_slide(path: Path) -> bool:
    """Whether `path` is a whole slide: a folder, .svs, DICOM of that class, a tiled TIFF with levels or very large.

    Raises:
        ReadError: a DICOM file or the image list of a TIFF is damaged.
    """
    if path.is_dir() or path.name.lower().endswith(SLIDE_SUFFIXES):
        return True
    if _dicom.is_dicom(path):
        header = _dicom.open_dicom(path, stop_before_pixels=True)
        with quiet():
            return str(header.get("SOPClassUID", "")) == WHOLE_SLIDE
    if not path.name.lower().endswith((".tif", ".tiff")):
        return False
    import tifffile

    check_directories(path)
    try:
        with silent(), tifffile.TiffFile(path) as file:
            first = file.series[0]
            area = first.keyframe.imagewidth * first.keyframe.imagelength
            return bool(first.keyframe.is_tiled and (len(first.levels) > 1 or area > _TILE_PIXELS))
    except (MemoryError, ReadError):
        raise
    except Exception:  # whatever it is, it is no slide
        return False


def open_slide(path: Path | str) -> Slide:
    """Open a whole slide: a TIFF kind (.svs, .tif) or a DICOM file of one level, or the folder of a DICOM slide.

    Raises:
        ReadError: missing, damaged, of another kind, not 8-bit RGB, or declaring more than it can hold.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(path, "no such file", "check the path and the folder it is relative to")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        _limits.check_count(path, len(files), "files")
        return _open_dicom(path, [file for file in files if _dicom.is_dicom(file)])
    _limits.check_bytes(path)
    return _open_dicom(path, [path]) if _dicom.is_dicom(path) else _open_tiff(path)


def _open_tiff(path: Path) -> Slide:
    slide = _tiff(path)
    try:
        keyframes = [level.keyframe for level in _series(slide).levels]
        sizes = slide.level_dimensions
        stored = path.stat().st_size
        for (width, height), keyframe in zip(sizes, keyframes):
            _check_area(path, width, height, stored)
            _limits.check_count(path, int(np.prod(keyframe.chunks[:2], dtype=object)), "pixels")
        if keyframes[0].samplesperpixel != 3 or keyframes[0].dtype != np.uint8 or _series(slide).axes != "YXS":
            raise ReadError(path, "not an 8-bit RGB slide", "export it as 8-bit RGB")
        scale = slide.level_downsamples
        levels = [Level(width, height, sizes[0][0] / width, sizes[0][1] / height) for width, height in sizes]
        pixel, notes = _size_of_pixel(slide)
        ybr = _is_ybr(keyframes[0])
    except BaseException as error:
        slide.close()
        if isinstance(error, Exception) and not isinstance(error, (ReadError, MemoryError)):
            raise _damaged(path, error) from error
        raise

    def decode(number: int, left: int, top: int, width: int, height: int) -> Bytes:
        corner = tuple(_at_base(place, scale[number]) for place in (left, top))
        with silent():
            pixels: Bytes = slide.read_region(corner, number, (width, height), as_array=True, padding=False)
        if ybr:
            pixels = _rgb(pixels)
        return _whiten(pixels, keyframes[number], left, top)

    return Slide(path, levels, pixel, decode, slide.close, "TIFF", notes, codec=compression_name(keyframes[0]))


def _is_ybr(keyframe: Any) -> bool:
    """Whether decoded tiles are luminance and colour differences: JPEG 2000 that says so, its transform not its own."""
    number = int(keyframe.compression)
    if number != _APERIO_YBR and (number not in _JPEG_2000 or int(keyframe.photometric) != _YCBCR):
        return False
    for place, count in zip(keyframe.dataoffsets, keyframe.databytecounts):
        if count:
            file = keyframe.parent.filehandle
            file.seek(place)
            stream = _codestream.parse(file.read(min(count, 1 << 16)))
            return stream is None or not stream.transformed
    return False


def _rgb(pixels: Bytes) -> Bytes:
    """YCbCr (H, W, 3) as RGB."""
    ybr = pixels.astype(np.float32) / np.float32(255)
    colours: Bytes = np.rint(255 * np.clip(rgb_of(ybr.astype(np.float32), 128 / 255), 0, 1)).astype(np.uint8)
    return colours


def _whiten(pixels: Bytes, keyframe: Any, left: int, top: int) -> Bytes:
    """`pixels` from (left, top) on with the tiles that were never stored (black when decoded) white like the glass."""
    absent = (np.array(keyframe.databytecounts) == 0) | (np.array(keyframe.dataoffsets) == 0)
    if not absent.any():
        return pixels
    rows, columns = keyframe.chunks[:2]
    absent = absent.reshape(-1, -(-keyframe.imagewidth // columns))
    y, x = ((start + np.arange(side)) // step for start, side, step in zip((top, left), pixels.shape, (rows, columns)))
    return np.where(absent[np.ix_(y, x)][..., None], np.uint8(255), pixels)


def _at_base(place: int, scale: float) -> int:
    """A level-0 coordinate that tiffslide rounds down to `place` of a level."""
    base = math.ceil(place * scale)
    return base if int(base / scale) == place else base + 1


def _series(slide: Any) -> Any:
    return slide.ts_tifffile.series[slide.properties["tiffslide.series-index"]]


def _tiff(path: Path) -> Any:
    """A TiffSlide, its directories checked first.

    Raises:
        ReadError: damaged, or its directories are endless.
    """
    import tiffslide

    _limits.check_bytes(path)
    check_directories(path)
    slide = None
    try:
        with silent():
            slide = tiffslide.TiffSlide(path)
            slide.level_dimensions  # noqa: B018  parses the header
        return slide
    except (MemoryError, ReadError):
        raise
    except Exception as error:
        if slide is not None:
            slide.close()
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ReadError:
    return ReadError(path, f"not a readable slide ({in_words(error)})", "fetch or export it again")


def _size_of_pixel(slide: Any) -> tuple[tuple[float, float] | None, list[str]]:
    """Width and height of a level-0 pixel in micrometres, wherever the file states them, and what to note."""
    page, first = _series(slide).levels[0].keyframe, slide.ts_tifffile.pages[0]
    texts = list(dict.fromkeys(str(one.description or "") for one in (page, first)))
    xmp = first.tags.get(700)
    if xmp is not None and isinstance(xmp.value, bytes):
        texts.append(xmp.value.decode("utf-8", "replace"))
    known = slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"]
    return _slide_scale.choose(_slide_scale.stated(page, texts, known))


def _open_dicom(path: Path, files: list[Path]) -> Slide:
    """The levels of one slide among DICOM `files`; label and overview images among them are left alone."""
    series: dict[str, list[Path]] = {}
    tags: dict[str, str] = {}
    extents: _slide_scale.Stated = []
    for file in files:
        header = _dicom.open_dicom(file, stop_before_pixels=True)
        with quiet():
            image_type = [str(part) for part in header.get("ImageType", None) or []]
            if str(header.get("SOPClassUID", "")) != WHOLE_SLIDE or image_type[2:3] not in ([], ["VOLUME"]):
                continue
            _check_level(file, header)
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(file)
            extents += _extent(header)
        tags = tags or _dicom.technical_tags(header)
    if not series:
        raise ReadError(path, "no DICOM whole slide", "a slide is a TIFF, an SVS or DICOM of the class VL Whole Slide")
    if len(series) > 1:
        raise ReadError(path, f"a folder of {len(series)} whole slides", "name a folder or file of one slide")
    wanted = next(iter(series.values()))
    try:
        import wsidicom

        with quiet():
            slide = wsidicom.WsiDicom.open(wanted)
        pyramid = sorted(slide.levels, key=lambda level: level.level)
        first = pyramid[0]
        levels = [
            Level(lv.size.width, lv.size.height, first.size.width / lv.size.width, first.size.height / lv.size.height)
            for lv in pyramid
        ]
        numbers = [level.level for level in pyramid]
        by_header = ("PixelSpacing", (float(first.mpp.width), float(first.mpp.height)))
        pixel, notes = _slide_scale.choose([by_header, *extents])
    except (MemoryError, ReadError):
        raise
    except ImportError:
        raise ReadError(path, "a DICOM slide, which the package wsidicom reads", "pip install wsidicom") from None
    except Exception as error:
        raise ReadError(path, f"not a readable DICOM slide ({in_words(error)})", "export it again") from error

    def decode(number: int, left: int, top: int, width: int, height: int) -> Bytes:
        with quiet():
            pixels: Bytes = slide.read_region((left, top), numbers[number], (width, height), threads=1, as_array=True)
        return pixels

    return Slide(path, levels, pixel, decode, slide.close, "DICOM", notes, tags)


def _extent(header: Any) -> _slide_scale.Stated:
    """The size of a pixel of level 0 by the extent of the slide in mm; nothing where this is another level."""
    names = "ImagedVolumeWidth", "ImagedVolumeHeight", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"
    values = [(numbers(header, name) or [0.0])[0] for name in names]
    kind = [str(part) for part in header.get("ImageType", None) or []]
    if min(values) <= 0 or kind[3:4] == ["RESAMPLED"]:
        return []
    return [("ImagedVolumeWidth", (1000 * values[0] / values[2], 1000 * values[1] / values[3]))]


def _check_level(path: Path, header: Any) -> None:
    """Refuse a level by what its header declares.

    Raises:
        ReadError: not 8-bit RGB, or larger than it can be.
    """
    try:
        rows, columns, samples, bits = (
            int(header.get(name, 0) or 0) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
        )
        width, height = (int(header.get(f"TotalPixelMatrix{side}", 0) or 0) for side in ("Columns", "Rows"))
    except (TypeError, ValueError):
        raise ReadError(path, "the size it declares is no number", "export it again") from None
    if (samples, bits) != (3, 8):
        raise ReadError(path, f"{samples} samples of {bits} bits, not an 8-bit RGB slide", "export it as 8-bit RGB")
    _limits.check_count(path, rows * columns, "pixels")
    _check_area(path, width, height, path.stat().st_size)


def _check_area(path: Path, width: int, height: int, stored: int) -> None:
    """Refuse a level that declares no pixels, or more than its bytes can hold."""
    if min(width, height) < 1:
        raise ReadError(path, f"declares {width} x {height} pixels", "export it again")
    if width * height * 3 > _dicom.SMALL:
        _limits.check_ratio(path, width * height * 3, stored)
