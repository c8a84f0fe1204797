"""What the readers share: checking a file before it is opened, and decoding PNG, JPEG and TIFF within limits.

* `check_file`: it exists, is a regular file, is not empty and has an ending the modality reads.
* `decode_picture`, `read_picture`: PNG, JPEG or one-page TIFF of any depth, grey or in colour -> float32 0..1, turned
  upright by its EXIF note.
* `read_grey`, `read_colour`: the same, refusing pictures that are plainly in colour, or plainly not.
* `picture_warnings`: blank, tiny, drawn or very elongated pictures.
* `to_thumbnail`: a grey or RGB array as a small RGB picture.

Shapes: H rows, W columns.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from m3bind.errors import ReadError, in_words
from m3bind.modalities.base import Modality, get, names
from m3bind.modalities.formats import codestream, colour_profile, dicom, limits, png, tiff, tile_streams
from m3bind.modalities.formats import damage as _damage
from m3bind.modalities.formats.picture_values import Values, grey_or_rgb, on_black, unit_range

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")  # `read_picture` reads them, too
MIN_SIDE = 16

Array = NDArray[np.float32]

_MAGIC = {
    b"\x1f\x8b": "a gzip file, perhaps NIfTI",
    b"II*\x00": "a TIFF file",
    b"MM\x00*": "a TIFF file",
    b"%PDF": "a PDF file",
    b"GIF8": "a GIF file",
    b"\x89PNG": "a damaged PNG file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x0a": "a JPEG XL file",
    b"\0\0\0\x0cJXL ": "a JPEG XL file",
    b"BM": "a BMP file",
    b"RIFF": "a WebP file",
    b"version https://git-lfs": "a git-lfs pointer whose data were never fetched",
    b"<": "a web page or XML",
}

_BOXED = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "a HEIC file, as phones write"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF file"),
}  # what follows "ftyp"


def ending(path: Path, suffixes: tuple[str, ...]) -> str:
    """The one of `suffixes` that the file name ends with, or ""."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(suffixes, key=len, reverse=True) if name.endswith(suffix)), "")


def check_file(path: Path | str, modality: Modality) -> Path:
    """`path` as a Path, once it is known to be a file with content and an ending `modality` reads.

    Raises:
        ReadError: missing, a folder, a pipe or device, empty, over `LIMITS.bytes`, or of an ending it does not read
            (names the modality that does); DICOM files need no ending where DICOM is read.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(path, "no such file", "check the path and the folder it is relative to")
    if path.is_dir():
        raise ReadError(path, "a folder, not a file", "name one file of it")
    if not path.is_file():  # opening a pipe would wait for ever
        raise ReadError(path, "not a regular file", "name a file, not a pipe or a device")
    limits.check_bytes(path)
    if not ending(path, modality.suffixes) and not (".dcm" in modality.suffixes and dicom.is_dicom(path)):
        others = [name for name in names() if ending(path, get(name).suffixes)]
        who = f"{' and '.join(others)} reads such files" if others else "convert the file"
        raise ReadError(path, f"not a file that {modality.name} reads ({' '.join(modality.suffixes)})", who)
    if path.stat().st_size == 0:
        raise ReadError(path, "the file is empty", "fetch or export it again")
    return path


def looks_like(path: Path) -> str:
    """What a file's first bytes say it is, for error messages ("" when they say nothing)."""
    with open(path, "rb") as handle:
        head = handle.read(132)
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head.startswith(b"\xff\xd8\xff"):
        return _kind_of_jpeg(path)
    if head[4:8] == b"ftyp":
        return _BOXED.get(head[8:12], "a film, or a picture kept as one")
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def _kind_of_jpeg(path: Path) -> str:
    """Which variant of JPEG a file is that could not be read as a picture."""
    with open(path, "rb") as handle:
        facts = codestream.parse(handle.read(1 << 20))
    if facts is not None and facts.lossless:
        return "a lossless JPEG or JPEG-LS file"
    if facts is not None and facts.precision > 8:
        return f"a JPEG file of {facts.precision} bits"
    return "a damaged JPEG file"


@dataclass
class Picture:
    """A decoded PNG, JPEG or TIFF: (H, W) or (H, W, 3) in 0..1, what was done and what looks wrong with the file."""

    array: Array
    steps: list[str]
    warnings: list[str] = field(default_factory=list)


def read_picture(path: Path) -> tuple[Array, list[str]]:
    """`decode_picture` without its warnings."""
    picture = decode_picture(path)
    return picture.array, picture.steps


def decode_picture(path: Path) -> Picture:
    """Decode a PNG, JPEG or TIFF: float32 0..1, (H, W) of grey and (H, W, 3) of colour files.

    Numbers of any kind keep their proportions (`picture_values.unit_range`); what is transparent is seen on black.

    Raises:
        ReadError: not such a picture, damaged, several pages, shorter than `MIN_SIDE`, more than `LIMITS.pixels`, or
            declaring more than its stored bytes can hold.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(8)
        if head[:4] in tiff.MAGIC and tiff.beyond_pillow(path):
            return _other_tiff(path)
        # opened by handle: by name, Pillow 13 maps uncompressed TIFFs and scrambles those that lie on their side
        with open(path, "rb") as handle, Image.open(handle, formats=("PNG", "JPEG", "TIFF")) as image:
            return _decoded(path, image)
    except UnidentifiedImageError:
        kind = looks_like(path)
        it_is = f": it is {kind}" if kind else ""
        raise ReadError(path, "not a PNG or JPEG or TIFF that can be read" + it_is, "export it as PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ReadError(path, f"more than {limits.LIMITS.pixels:,} pixels", "shrink or tile it first") from None
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files, and their words may quote the file
        raise ReadError(path, f"damaged or cut short: {in_words(error)}", "fetch or export it again") from error


def _other_tiff(path: Path) -> Picture:
    """A TIFF that Pillow does not read, or not as what it is."""
    picture = Picture(np.empty((0, 0), np.float32), [])
    values, opacity, white_is_zero = tiff.read(path, picture.steps)
    _check_sides(path, values.shape[1], values.shape[0])
    picture.warnings += tile_streams.of_picture(path)
    return _finished(path, picture, values, opacity, white_is_zero)


def _decoded(path: Path, image: Image.Image) -> Picture:
    """A picture that Pillow has opened."""
    picture = Picture(np.empty((0, 0), np.float32), [])
    width, height = image.size
    limits.check_count(path, width * height, "pixels")
    _check_sides(path, width, height)
    decoded = width * height * _bytes_per_pixel(image)
    if decoded > dicom.SMALL:
        limits.check_ratio(path, decoded, path.stat().st_size)
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if image.format == "TIFF":
        _check_pages(path, image)
        if tags.get(274, 1) in tiff.TURNS:
            picture.steps.append("turned upright as its orientation tag says")
    facts = png.look(path) if image.format == "PNG" else None
    image.load()  # turns a TIFF upright
    if image.format == "TIFF":
        picture.warnings += tile_streams.of_picture(path)
    else:
        damage = _damage.of_stream(path.read_bytes()) if image.format == "JPEG" else ""
        picture.warnings += filter(None, [damage, colour_profile.doubt(image.info.get("icc_profile"))])
    if facts is not None:
        picture.warnings += _png_doubts(path, facts, image)
    key = image.info.get("transparency")
    values, opacity = png.sixteen_bit(path, key) if facts and facts.wide else grey_or_rgb(path, image, picture.steps)
    if (turn := image.getexif().get(0x0112, 1)) in tiff.TURNS:
        values = tiff.turned(values, turn)
        opacity = None if opacity is None else tiff.turned(opacity, turn)
        picture.steps.append("turned upright as its EXIF orientation says")
    white_is_zero = tags.get(262) == 0 and (image.mode in ("I", "F") or image.mode.startswith("I;16"))
    return _finished(path, picture, values, opacity, white_is_zero)


def _finished(path: Path, picture: Picture, values: Values, opacity: Array | None, white_is_zero: bool) -> Picture:
    array = unit_range(path, values, picture.steps)
    if white_is_zero:
        picture.steps.append("white-is-zero turned (once)")
        array = 1 - array
    picture.array = on_black(array, opacity, picture.steps)
    return picture


def _png_doubts(path: Path, facts: png.PngFacts, image: Image.Image) -> list[str]:
    """Doubts about a loaded PNG.

    Raises:
        ReadError: its data end before its last row.
    """
    last = np.asarray(image.crop((0, image.height - 1, image.width, image.height)))  # Pillow leaves it black
    if not last.any() and png.rows_missing(path, facts, image.width, image.height):
        raise ReadError(path, "damaged or cut short: its data end before its last row", "fetch or export it again")
    found = []
    if wrong := [name for name in facts.wrong if name in ("IHDR", "PLTE", "IDAT", "tRNS")]:
        found.append(f"a checksum in the file is wrong ({', '.join(sorted(set(wrong)))}): it was damaged or altered")
    if facts.gamma is not None and not 0.35 <= facts.gamma <= 0.65:
        found.append(f"the file states a gamma of {facts.gamma:.3g}, which is not applied: tones may differ")
    return found


def check_side(path: Path, array: Array) -> None:
    """Refuse a picture (H, W) or (H, W, 3) shorter than `MIN_SIDE`.

    Raises:
        ReadError: it is.
    """
    _check_sides(path, array.shape[1], array.shape[0])


def _check_sides(path: Path, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ReadError(path, f"only {width} x {height} pixels", f"at least {MIN_SIDE} a side are needed")


def _bytes_per_pixel(image: Image.Image) -> int:
    """Bytes of one decoded pixel of an opened image."""
    return 2 if image.mode.startswith("I;16") else 4 if image.mode in ("I", "F") else len(image.getbands())


def _check_pages(path: Path, image: Image.Image) -> None:
    """Refuse a TIFF with a second page, unless that is a small copy of the first; leaves it at the first page.

    Raises:
        ReadError: it has.
    """
    try:
        image.seek(1)
    except EOFError:
        return
    reduced = int(image.tag_v2.get(254, 0)) & 1  # type: ignore[attr-defined]
    image.seek(0)
    if not reduced:
        raise ReadError(path, "a TIFF of several pages", "save the page that is meant as a file of its own")


def sparse(array: Array, side: int = 64) -> Array:
    """Every k-th row and column, `side` to 2 x `side` of each: enough for statistics."""
    return array[:: max(1, array.shape[0] // side), :: max(1, array.shape[1] // side)]


def colourfulness(array: Array) -> float:
    """Mean of (largest - smallest channel) over mean of the largest: 0 for grey, 0.1-0.9 for tissue and fundus."""
    if array.ndim == 2:
        return 0.0
    smallest, largest = channel_range(sparse(array))
    return float((largest - smallest).mean() / max(float(largest.mean()), 1e-3))


def channel_range(array: Array) -> tuple[Array, Array]:
    """Smallest and largest of the three channels, (H, W, 3) -> two of (H, W). Faster than a reduction over 3 values."""
    red, green, blue = array[..., 0], array[..., 1], array[..., 2]
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def read_grey(path: Path, what: str) -> tuple[Array, list[str], list[str]]:
    """A picture as (H, W) 0..1, with steps and warnings; `what` is the expected thing ("a chest X-ray").

    Raises:
        ReadError: as `decode_picture`, or the picture is plainly in colour.
    """
    picture = decode_picture(path)
    array, warnings = to_grey(path, picture.array, what, picture.steps)
    return array, picture.steps, picture.warnings + warnings + picture_warnings(array)


def to_grey(path: Path, array: Array, what: str, steps: list[str]) -> tuple[Array, list[str]]:
    """(H, W) or (H, W, 3) as (H, W), with doubts about its colours; adds to `steps`.

    Raises:
        ReadError: plainly in colour.
    """
    warnings: list[str] = []
    if array.ndim == 3:
        colour = colourfulness(array)
        if colour > 0.1:
            raise ReadError(path, f"a colour picture, not {what}", "check the modality of this file")
        if colour > 0.01:
            warnings.append(f"slightly coloured, unusual for {what}")
        array = array @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        steps.append("RGB averaged to grey")
    return array, warnings


def read_colour(path: Path, what: str) -> tuple[Array, list[str], list[str]]:
    """A picture as (H, W, 3) 0..1 RGB, with steps and warnings; `what` is the expected thing ("a fundus photograph").

    Raises:
        ReadError: as `decode_picture`, or the picture has no colour at all.
    """
    picture = decode_picture(path)
    doubts = check_colour(path, picture.array, what) + picture_warnings(picture.array)
    return picture.array, picture.steps, picture.warnings + doubts


def check_colour(path: Path, array: Array, what: str) -> list[str]:
    """Doubts about the colours of a picture that must have some.

    Raises:
        ReadError: it has none.
    """
    colour = colourfulness(array)
    if colour < 0.01:
        raise ReadError(path, f"a grey picture, not {what} in colour", "check the modality of this file")
    return [f"hardly any colour, unusual for {what}"] if colour < 0.06 else []


def picture_warnings(array: Array) -> list[str]:
    """Doubts about any picture, (H, W) or (H, W, 3): tiny, elongated, blank, drawn in a few flat tones."""
    height, width = array.shape[:2]
    some = sparse(array if array.ndim == 2 else array[..., 1])
    low, high = np.quantile(some, [0.01, 0.99])
    found = []
    if min(height, width) < 64:
        found.append(f"only {width} x {height} pixels")
    if max(height, width) > 3 * min(height, width):
        found.append(f"very elongated, {width} x {height} pixels")
    if high - low < 0.04:
        found.append("nearly blank: almost one tone everywhere")
    elif len(np.unique(np.rint(some * 255))) < 12:
        found.append("only a few flat tones: a drawing or a mask rather than a photograph?")
    return found


def to_thumbnail(array: Array, size: int) -> Image.Image:
    """(H, W) or (H, W, 3) in 0..1 as an RGB picture at most `size` pixels wide and high, sides in proportion."""
    picture = Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
