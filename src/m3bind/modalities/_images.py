"""What the readers share: checking a file before it is opened, and decoding PNG and JPEG within limits.

* `check_file`: it exists, is not empty and has an ending the modality reads.
* `read_picture`: PNG or JPEG (8 or 16 bit, grey, RGB, palette, CMYK) -> float32 0..1, turned upright by its EXIF note.
* `read_grey`, `read_colour`: the same, refusing pictures that are plainly in colour, or plainly not.
* `picture_warnings`: blank, tiny, drawn or very elongated pictures.
* `to_thumbnail`: a grey or RGB array as a small RGB picture.

Shapes: H rows, W columns.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from m3bind.errors import ReadError
from m3bind.modalities.base import Modality, get, names

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 64_000_000  # 8,000 x 8,000: larger than any radiograph or tile; more is a bomb or a whole slide
MIN_SIDE = 16

Array = NDArray[np.float32]

_MAGIC = {
    b"\x1f\x8b": "a gzip file, perhaps NIfTI",
    b"II*\x00": "a TIFF file",
    b"MM\x00*": "a TIFF file",
    b"%PDF": "a PDF file",
    b"GIF8": "a GIF file",
    b"BM": "a BMP file",
    b"RIFF": "a WebP file",
    b"version https://git-lfs": "a git-lfs pointer whose data were never fetched",
    b"<": "a web page or XML",
}


def ending(path: Path, suffixes: tuple[str, ...]) -> str:
    """The one of `suffixes` that the file name ends with, or ""."""
    name = path.name.lower()
    return next((suffix for suffix in sorted(suffixes, key=len, reverse=True) if name.endswith(suffix)), "")


def check_file(path: Path | str, modality: Modality) -> Path:
    """`path` as a Path, once it is known to be a file with content and an ending `modality` reads.

    Raises:
        ReadError: missing, a folder, empty, or of an ending it does not read (names the modality that does).
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(path, "no such file", "check the path and the folder it is relative to")
    if path.is_dir():
        raise ReadError(path, "a folder, not a file", "name one file of it")
    if not ending(path, modality.suffixes):
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
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")


def read_picture(path: Path) -> tuple[Array, list[str]]:
    """Decode a PNG or JPEG into float32 0..1, (H, W) for grey and (H, W, 3) for colour files, with the steps taken.

    16-bit grey is divided by 2^b - 1, where b is the smallest of 8, 10, 12, 14, 16 bits that holds its maximum,
    so that 12-bit radiographs stored in 16 bits are not nearly black.

    Raises:
        ReadError: not a PNG or JPEG, damaged, shorter than `MIN_SIDE` or more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ReadError(path, f"{width} x {height} pixels, more than {MAX_PIXELS:,}", "shrink or tile it first")
            if min(width, height) < MIN_SIDE:
                raise ReadError(path, f"only {width} x {height} pixels", f"at least {MIN_SIDE} a side are needed")
            image.load()
            return _to_array(image)
    except UnidentifiedImageError:
        kind = looks_like(path)
        raise ReadError(path, "not a PNG or JPEG" + (f": it is {kind}" if kind else ""), "export it as PNG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ReadError(path, f"more than {MAX_PIXELS:,} pixels", "shrink or tile it first") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ReadError(path, f"damaged or cut short ({error})", "fetch or export it again") from error


def _to_array(image: Image.Image) -> tuple[Array, list[str]]:
    """A loaded image as float32 0..1 and the steps taken."""
    steps: list[str] = []
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
        steps.append("turned upright as its EXIF orientation says")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        top = float(values.max(initial=0))
        bits = next((b for b in (8, 10, 12, 14) if top < 2**b), 16)
        steps.append(f"16-bit values divided by {2**bits - 1}")
        return np.clip(values / np.float32(2**bits - 1), 0, 1), steps
    if image.mode == "LA" or image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        steps.append(f"{image.mode} converted to RGB")
        image = image.convert("RGB")
    return np.asarray(image).astype(np.float32) * np.float32(1 / 255), steps


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
        ReadError: as `read_picture`, or the picture is plainly in colour.
    """
    array, steps = read_picture(path)
    warnings: list[str] = []
    if array.ndim == 3:
        colour = colourfulness(array)
        if colour > 0.1:
            raise ReadError(path, f"a colour picture, not {what}", "check the modality of this file")
        if colour > 0.01:
            warnings.append(f"slightly coloured, unusual for {what}")
        array = array @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        steps.append("RGB averaged to grey")
    return array, steps, warnings + picture_warnings(array)


def read_colour(path: Path, what: str) -> tuple[Array, list[str], list[str]]:
    """A picture as (H, W, 3) 0..1 RGB, with steps and warnings; `what` is the expected thing ("a fundus photograph").

    Raises:
        ReadError: as `read_picture`, or the picture has no colour at all.
    """
    array, steps = read_picture(path)
    colour = colourfulness(array)
    if colour < 0.01:
        raise ReadError(path, f"a grey picture, not {what} in colour", "check the modality of this file")
    warnings = [f"hardly any colour, unusual for {what}"] if colour < 0.06 else []
    return array, steps, warnings + picture_warnings(array)


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
