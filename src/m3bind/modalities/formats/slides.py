"""Opening whole slides: image pyramids of which only the needed part is decoded.

* `open_slide`: SVS and other tiled TIFF (through tiffslide), DICOM whole slides (through wsidicom) -> `slide.Slide`.
* `is_slide`: whether a file is a whole slide rather than an image of a tile.

Label, macro and thumbnail images of a slide are never opened: labels show names. Free text of headers is not read.
Shapes: H rows, W columns.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.errors import ReadError, in_words
from m3bind.modalities.formats import codestream, colour_profile, dicom, limits, slide_scale, tile_streams
from m3bind.modalities.formats.dicom_colour import rgb_of
from m3bind.modalities.formats.dicom_files import quiet
from m3bind.modalities.formats.dicom_values import numbers
from m3bind.modalities.formats.slide import Bytes, Level, Slide, check_area
from m3bind.modalities.formats.tiff import TURNS, check_directories, compression_name, silent

SLIDE_SUFFIXES = (".svs",)
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_TILE_PIXELS = 4096 * 4096  # a tiled TIFF of one level is a slide above this
_APERIO_YBR, _JPEG_2000, _YCBCR = 33003, (33004, 33005, 34712), 6


def is_slide(path: Path) -> bool:
    """Whether `path` is a whole slide: a folder, .svs, DICOM of that class, a tiled TIFF with levels or of large area.

    Raises:
        ReadError: a DICOM file or the image list of a TIFF is damaged.
    """
    if path.is_dir() or path.name.lower().endswith(SLIDE_SUFFIXES):
        return True
    if dicom.is_dicom(path):
        header = dicom.open_dicom(path, stop_before_pixels=True)
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
    except Exception:  # not a slide
        return False


def open_slide(path: Path | str) -> Slide:
    """Open a whole slide: a TIFF kind (.svs, .tif) or a DICOM file of one level, or the folder of a DICOM slide.

    Raises:
        ReadError: missing, damaged, of another kind, not 8-bit RGB, or declaring more than it can contain.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(path, "no such file", "check the path and the folder it is relative to")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        limits.check_count(path, len(files), "files")
        return _open_dicom(path, [file for file in files if dicom.is_dicom(file)])
    limits.check_bytes(path)
    return _open_dicom(path, [path]) if dicom.is_dicom(path) else _open_tiff(path)


def _open_tiff(path: Path) -> Slide:
    slide = _tiff(path)
    try:
        keyframes = [level.keyframe for level in _series(slide).levels]
        sizes = slide.level_dimensions
        stored = path.stat().st_size
        for (width, height), keyframe in zip(sizes, keyframes):
            check_area(path, width, height, stored)
            limits.check_count(path, int(np.prod(keyframe.chunks[:2], dtype=object)), "pixels")
        if keyframes[0].samplesperpixel != 3 or keyframes[0].dtype != np.uint8 or _series(slide).axes != "YXS":
            raise ReadError(path, "not an 8-bit RGB slide", "export it as 8-bit RGB")
        scale = slide.level_downsamples
        levels = [Level(width, height, sizes[0][0] / width, sizes[0][1] / height) for width, height in sizes]
        pixel, notes = _described(slide)
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

    def damage(number: int, *rectangle: int) -> str:
        with silent():
            return tile_streams.of_tiff(keyframes[number], *rectangle)

    codec = compression_name(keyframes[0])
    return Slide(path, levels, pixel, decode, damage, slide.close, "TIFF", notes, codec=codec)


def _is_ybr(keyframe: Any) -> bool:
    """Whether decoded tiles are luminance and colour differences: JPEG 2000 declared so, without its own transform."""
    number = int(keyframe.compression)
    if number != _APERIO_YBR and (number not in _JPEG_2000 or int(keyframe.photometric) != _YCBCR):
        return False
    for place, count in zip(keyframe.dataoffsets, keyframe.databytecounts):
        if count:
            file = keyframe.parent.filehandle
            file.seek(place)
            stream = codestream.parse(file.read(min(count, 1 << 16)))
            return stream is None or not stream.transformed
    return False


def _rgb(pixels: Bytes) -> Bytes:
    """YCbCr (H, W, 3) as RGB."""
    ybr = pixels.astype(np.float32) / np.float32(255)
    return np.asarray(np.rint(255 * np.clip(rgb_of(ybr.astype(np.float32), 128 / 255), 0, 1)).astype(np.uint8))


def _whiten(pixels: Bytes, keyframe: Any, left: int, top: int) -> Bytes:
    """`pixels` from (left, top) on, with tiles that were never stored (decoded as black) white like glass."""
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
    """A TiffSlide, once its directories are checked. Raises ReadError: damaged, or its directories are endless."""
    import tiffslide

    limits.check_bytes(path)
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


def _described(slide: Any) -> tuple[tuple[float, float] | None, list[str]]:
    """Width and height of a level-0 pixel of a TIFF in micrometres, wherever stated, and notes."""
    page, first = _series(slide).levels[0].keyframe, slide.ts_tifffile.pages[0]
    texts = list(dict.fromkeys(str(source.description or "") for source in (page, first)))
    xmp = first.tags.get(700)
    if xmp is not None and isinstance(xmp.value, bytes):
        texts.append(xmp.value.decode("utf-8", "replace"))
    known = slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"]
    pixel, notes = slide_scale.choose(slide_scale.stated(page, texts, known))
    profile = colour_profile.doubt_of_page(page)
    turn = page.tags.get(274)
    if turn is not None and turn.value in TURNS:
        notes.append("its orientation tag states that it is rotated or mirrored, which is not applied to slides")
    return pixel, notes + slide_scale.against_magnification(pixel, texts) + ([profile] if profile else [])


def _open_dicom(path: Path, files: list[Path]) -> Slide:
    """The levels of one slide among DICOM `files`, without label and overview images."""
    series: dict[str, list[Path]] = {}
    tags: dict[str, str] = {}
    colours: list[str] = []
    extents: list[tuple[float, slide_scale.Stated]] = []
    for file in files:
        header = dicom.open_dicom(file, stop_before_pixels=True)
        with quiet():
            image_type = [str(part) for part in header.get("ImageType", None) or []]
            if str(header.get("SOPClassUID", "")) != WHOLE_SLIDE or image_type[2:3] not in ([], ["VOLUME"]):
                continue
            _check_level(file, header)
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(file)
            extents.append(_extent(header))
            colours = colours or colour_profile.doubts_of_dicom(header)
        tags = tags or dicom.technical_tags(header)
    if not series:
        raise ReadError(path, "no DICOM whole slide", "name a TIFF, an SVS or DICOM of the class VL Whole Slide")
    if len(series) > 1:
        raise ReadError(path, f"a folder of {len(series)} whole slides", "name a folder or file of one slide")
    chosen = next(iter(series.values()))
    try:
        import wsidicom

        with quiet():
            slide = wsidicom.WsiDicom.open(chosen)
        pyramid = sorted(slide.levels, key=lambda level: level.level)
        first = pyramid[0]
        levels = [
            Level(lv.size.width, lv.size.height, first.size.width / lv.size.width, first.size.height / lv.size.height)
            for lv in pyramid
        ]
        numbers = [level.level for level in pyramid]
        by_header = ("PixelSpacing", (float(first.mpp.width), float(first.mpp.height)))
        pixel, notes = slide_scale.choose([by_header, *max(extents, key=lambda extent: extent[0])[1]])
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

    def damage(number: int, *rectangle: int) -> str:
        size = pyramid[number].tile_size
        with quiet():
            return tile_streams.of_dicom(
                lambda place: slide.read_encoded_tile(numbers[number], place, crop_to_image_boundary=False),
                (size.width, size.height),
                rectangle,
            )

    return Slide(path, levels, pixel, decode, damage, slide.close, "DICOM", notes + colours, tags)


def _extent(header: Any) -> tuple[float, slide_scale.Stated]:
    """The width of a level in pixels, and its pixel size by the extent of the slide in mm, if stated.

    The widest level is level 0, regardless of ImageType; a level marked as resampled is not evidence of the scan.
    """
    names = "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "ImagedVolumeWidth", "ImagedVolumeHeight"
    values = [(numbers(header, name) or [0.0])[0] for name in names]
    kind = [str(part) for part in header.get("ImageType", None) or []]
    if min(values) <= 0 or kind[3:4] == ["RESAMPLED"]:
        return values[0], []
    return values[0], [("ImagedVolumeWidth", (1000 * values[2] / values[0], 1000 * values[3] / values[1]))]


def _check_level(path: Path, header: Any) -> None:
    """Raise ReadError if the header of a level declares it as not 8-bit RGB, or as implausibly large."""
    try:
        rows, columns, samples, bits = (
            int(header.get(name, 0) or 0) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
        )
        width, height = (int(header.get(f"TotalPixelMatrix{side}", 0) or 0) for side in ("Columns", "Rows"))
    except (TypeError, ValueError):
        raise ReadError(path, "the size it declares is not a number", "export it again") from None
    if (samples, bits) != (3, 8):
        raise ReadError(path, f"{samples} samples of {bits} bits, not an 8-bit RGB slide", "export it as 8-bit RGB")
    limits.check_count(path, rows * columns, "pixels")
    check_area(path, width, height, path.stat().st_size)
