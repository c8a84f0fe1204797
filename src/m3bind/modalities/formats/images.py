"""Shared by the readers: checks of a file before it is opened, and decoding of PNG, JPEG and TIFF within limits.

* `check_file`: it exists, is a regular file, is not empty and has an extension the modality reads.
* `decode_image`: PNG, JPEG or one-page TIFF of any depth, grey or in colour -> float32 0..1, oriented by EXIF.
* `read_grey`, `read_colour`: the same, rejecting images that are clearly in colour, or clearly not.
* `check_side`, `check_colour`, `to_grey`: the same checks of decoded arrays.
* `image_warnings`: blank, tiny, drawn or very elongated images.
* `ending`, `looks_like`: a file's extension, and its kind by its first bytes.
* `sparse`, `colourfulness`, `channel_range`: statistics. * `to_thumbnail`: an array as a small RGB image.

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
from m3bind.modalities.formats.image_values import Values, grey_or_rgb, on_black, unit_range

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
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
}  # by the brand after "ftyp"


def ending(path: Path, suffixes: tuple[str, ...]) -> str:
    """The longest of `suffixes` that the file name ends with, or ""."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(suffixes, key=len, reverse=True) if name.endswith(suffix)), "")


def check_file(path: Path | str, modality: Modality) -> Path:
    """`path` as a Path, once it is known to be a non-empty file with an extension that `modality` reads.

    Raises:
        ReadError: missing, a folder, a pipe or device, empty, over `LIMITS.bytes`, or with another extension (names
            the modality that reads it); DICOM files need no extension if the modality reads DICOM.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(path, "no such file", "check the path and the folder it is relative to")
    if path.is_dir():
        raise ReadError(path, "a folder, not a file", "name one file of it")
    if not path.is_file():  # opening a pipe could block for ever
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
    """The kind of a file by its first bytes, for error messages ("" if unknown)."""
    with open(path, "rb") as handle:
        head = handle.read(132)
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head.startswith(b"\xff\xd8\xff"):
        return _kind_of_jpeg(path)
    if head[4:8] == b"ftyp":
        return _BOXED.get(head[8:12], "a video, or an image stored as one")
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def _kind_of_jpeg(path: Path) -> str:
    """The variant of a JPEG file that could not be decoded."""
    with open(path, "rb") as handle:
        facts = codestream.parse(handle.read(1 << 20))
    if facts is not None and facts.lossless:
        return "a lossless JPEG or JPEG-LS file"
    if facts is not None and facts.precision > 8:
        return f"a JPEG file of {facts.precision} bits"
    return "a damaged JPEG file"


@dataclass
class DecodedImage:
    """A decoded PNG, JPEG or TIFF: (H, W) or (H, W, 3) in 0..1, with processing steps and warnings."""

    array: Array
    steps: list[str]
    warnings: list[str] = field(default_factory=list)


def decode_image(path: Path) -> DecodedImage:
    """Decode a PNG, JPEG or TIFF: float32 0..1, (H, W) of grey and (H, W, 3) of colour files.

    Values are scaled linearly (`image_values.unit_range`); transparent pixels are blended with black.

    Raises:
        ReadError: not such an image, damaged, several pages, shorter than `MIN_SIDE`, more than `LIMITS.pixels`, or
            declaring more than its stored bytes can hold.
    """
    try:
        with open(path, "rb") as handle:
            head = handle.read(8)
        if head[:4] in tiff.MAGIC and tiff.beyond_pillow(path):
            return _other_tiff(path)
        # opened by handle: by name, Pillow 13 maps uncompressed TIFFs and scrambles those with a rotated orientation
        with open(path, "rb") as handle, Image.open(handle, formats=("PNG", "JPEG", "TIFF")) as image:
            return _by_pillow(path, image)
    except UnidentifiedImageError:
        kind = looks_like(path)
        it_is = f": it is {kind}" if kind else ""
        raise ReadError(path, "not a PNG or JPEG or TIFF that can be read" + it_is, "export it as PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ReadError(path, f"more than {limits.LIMITS.pixels:,} pixels", "shrink or tile it first") from None
    except (MemoryError, ReadError):
        raise
    except Exception as error:  # Pillow raises many types for damaged files, and their messages may quote the file
        raise ReadError(path, f"damaged or cut short: {in_words(error)}", "fetch or export it again") from error


def _other_tiff(path: Path) -> DecodedImage:
    """A TIFF that Pillow cannot read, or misreads."""
    decoded = DecodedImage(np.empty((0, 0), np.float32), [])
    values, opacity, white_is_zero = tiff.read(path, decoded.steps)
    check_side(path, values.shape)
    decoded.warnings += tile_streams.of_image(path)
    return _finished(path, decoded, values, opacity, white_is_zero)


def _by_pillow(path: Path, image: Image.Image) -> DecodedImage:
    """Decode an image that Pillow has opened."""
    decoded = DecodedImage(np.empty((0, 0), np.float32), [])
    width, height = image.size
    limits.check_count(path, width * height, "pixels")
    check_side(path, (height, width))
    wide = 2 if image.mode.startswith("I;16") else 4 if image.mode in ("I", "F") else len(image.getbands())
    size = width * height * wide
    if size > limits.SMALL:
        limits.check_ratio(path, size, path.stat().st_size)
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if image.format == "TIFF":
        _check_pages(path, image)
        if tags.get(274, 1) in tiff.TURNS:
            decoded.steps.append("rotated upright by its orientation tag")
    facts = png.look(path) if image.format == "PNG" else None
    image.load()  # applies the orientation of a TIFF
    if image.format == "TIFF":
        decoded.warnings += tile_streams.of_image(path)
    else:
        damage = _damage.of_stream(path.read_bytes()) if image.format == "JPEG" else ""
        decoded.warnings += filter(None, [damage, colour_profile.doubt(image.info.get("icc_profile"))])
    if facts is not None:
        decoded.warnings += _png_doubts(path, facts, image)
    key = image.info.get("transparency")
    values, opacity = png.sixteen_bit(path, key) if facts and facts.wide else grey_or_rgb(path, image, decoded.steps)
    if (turn := image.getexif().get(0x0112, 1)) in tiff.TURNS:
        values = tiff.turned(values, turn)
        opacity = None if opacity is None else tiff.turned(opacity, turn)
        decoded.steps.append("rotated upright by its EXIF orientation")
    white_is_zero = tags.get(262) == 0 and (image.mode in ("I", "F") or image.mode.startswith("I;16"))
    return _finished(path, decoded, values, opacity, white_is_zero)


def _finished(path: Path, decoded: DecodedImage, values: Values, opacity: Array | None, invert: bool) -> DecodedImage:
    array = unit_range(path, values, decoded.steps)
    if invert:
        decoded.steps.append("white-is-zero inverted (once)")
        array = 1 - array
    decoded.array = on_black(array, opacity, decoded.steps)
    return decoded


def _png_doubts(path: Path, facts: png.PngFacts, image: Image.Image) -> list[str]:
    """Warnings about a loaded PNG. Raises ReadError: its data end before its last row."""
    last = np.asarray(image.crop((0, image.height - 1, image.width, image.height)))  # Pillow leaves it black
    if not last.any() and png.rows_missing(path, facts, image.width, image.height):
        raise ReadError(path, "damaged or cut short: its data end before its last row", "fetch or export it again")
    doubts = []
    if wrong := [name for name in facts.wrong if name in ("IHDR", "PLTE", "IDAT", "tRNS")]:
        doubts.append(f"a checksum in the file is wrong ({', '.join(sorted(set(wrong)))}): it was damaged or altered")
    if facts.gamma is not None and not 0.35 <= facts.gamma <= 0.65:
        doubts.append(f"the file states a gamma of {facts.gamma:.3g}, which is not applied: tones may differ")
    return doubts


def check_side(path: Path, shape: tuple[int, ...]) -> None:
    """Raise ReadError if an image of `shape` (H, W, ...) is shorter than `MIN_SIDE`."""
    height, width = shape[:2]
    if min(width, height) < MIN_SIDE:
        raise ReadError(path, f"only {width} x {height} pixels", f"at least {MIN_SIDE} per side are needed")


def _check_pages(path: Path, image: Image.Image) -> None:
    """Raise ReadError if a TIFF has a second page that is not a small copy of the first; leaves it at the first."""
    try:
        image.seek(1)
    except EOFError:
        return
    reduced = int(image.tag_v2.get(254, 0)) & 1  # type: ignore[attr-defined]
    image.seek(0)
    if not reduced:
        raise ReadError(path, "a TIFF of several pages", "save the required page as a separate file")


def sparse(array: Array, side: int = 64) -> Array:
    """Every k-th row and column, `side` to 2 x `side` of each: a sufficient sample for statistics."""
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
    """An image as (H, W) 0..1, with steps and warnings; `what` is the expected content ("a chest X-ray").

    Raises:
        ReadError: as `decode_image`, or the image is clearly in colour.
    """
    decoded = decode_image(path)
    array, warnings = to_grey(path, decoded.array, what, decoded.steps)
    return array, decoded.steps, decoded.warnings + warnings + image_warnings(array)


def to_grey(path: Path, array: Array, what: str, steps: list[str]) -> tuple[Array, list[str]]:
    """(H, W) or (H, W, 3) as (H, W), with warnings about its colours; adds to `steps`.

    Raises:
        ReadError: clearly in colour.
    """
    warnings: list[str] = []
    if array.ndim == 3:
        colour = colourfulness(array)
        if colour > 0.1:
            raise ReadError(path, f"a colour image, not {what}", "check the modality of this file")
        if colour > 0.01:
            warnings.append(f"slightly coloured, unusual for {what}")
        array = array @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        steps.append("RGB averaged to grey")
    return array, warnings


def read_colour(path: Path, what: str) -> tuple[Array, list[str], list[str]]:
    """An image as (H, W, 3) 0..1 RGB, with steps and warnings; `what` is the expected content ("a fundus photograph").

    Raises:
        ReadError: as `decode_image`, or the image has no colour at all.
    """
    decoded = decode_image(path)
    doubts = check_colour(path, decoded.array, what) + image_warnings(decoded.array)
    return decoded.array, decoded.steps, decoded.warnings + doubts


def check_colour(path: Path, array: Array, what: str) -> list[str]:
    """Warnings about the colours of an image that must be in colour.

    Raises:
        ReadError: it has no colour.
    """
    colour = colourfulness(array)
    if colour < 0.01:
        raise ReadError(path, f"a grey image, not {what} in colour", "check the modality of this file")
    return [f"hardly any colour, unusual for {what}"] if colour < 0.06 else []


def image_warnings(array: Array) -> list[str]:
    """Warnings about any image, (H, W) or (H, W, 3): tiny, elongated, blank, drawn in a few flat tones."""
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
    """(H, W) or (H, W, 3) in 0..1 as an RGB image at most `size` pixels wide and high, sides in proportion."""
    image = Image.fromarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
