"""The pixel size of tissue in micrometres, wherever a TIFF states it.

* `stated`: all statements of a page and its file: Aperio, OME, Ventana, ImageJ, tiffslide, the resolution tags.
* `choose`: the one to use, with a note if statements contradict each other, are implausible or missing.
* `of_tile`: the same for a TIFF that is not a slide. * `against_magnification`: whether it fits the magnification.
* `number`, `micrometres`: parse numbers and units.
"""

import html
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m3bind.modalities.formats.tiff import MAGIC, check_directories, silent

MPP_RANGE = (0.02, 20.0)  # outside: a print resolution (72 dpi is 353 micrometres) or an error
SAME = 1.05  # ratio up to which two statements agree
MAGNIFIED = 1.8  # ratio up to which a pixel size fits a magnification: scanners differ
Pixel = tuple[float, float]  # width, height
Stated = list[tuple[str, Pixel]]  # source and size
_UNITS = {"nm": 1e-3, "nanometer": 1e-3, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "mm": 1e3, "millimeter": 1e3,
          "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6, "in": 25_400.0, "inch": 25_400.0, "å": 1e-4,
          "pm": 1e-6}  # fmt: skip
_MICRO = re.compile(r"Âµ|Î¼|Â|\\u00[bB]5|\\u03[bB][cC]|[µμ]")
_NUMBER = r"([-+]?[0-9]*[.,]?[0-9]+(?:[eE][-+]?[0-9]+)?)(?![.,]?[0-9])"
_RESOLUTION_UNITS = {2: 25_400.0, 3: 10_000.0}  # inch, centimetre


def number(text: object) -> float | None:
    """A positive number, with a decimal point or a decimal comma; None for other values."""
    try:
        value = float(str(text).strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def micrometres(unit: str) -> float | None:
    """The length of a unit in micrometres, in any spelling; None for unknown units."""
    plain = _MICRO.sub("u", html.unescape(unit)).strip().lower().replace("metre", "meter").replace("uu", "u")
    return _UNITS.get(plain) or _UNITS.get(plain.removesuffix("s"))


def stated(page: Any, descriptions: Iterable[str] = (), known: tuple[object, object] = (None, None)) -> Stated:
    """Pixel sizes of a `page` of tifffile stated in `descriptions`, by `known` (tiffslide), and in the page's tags."""
    found: Stated = []
    for text in descriptions:
        found += _in_text(text, page)
    x, y = (number(value) for value in known)
    tags = _resolution(page, _RESOLUTION_UNITS.get(int(_tag(page, 296) or 2)))
    if x and y and (tags is None or abs(math.log(x / tags[0])) > 1e-3):  # tiffslide also uses these
        found.append(("the maker's header", (x, y)))
    return found + ([("the TIFF resolution", tags)] if tags else [])


def _in_text(text: str, page: Any) -> Stated:
    found: Stated = []
    if (own := re.search(rf"\bMPP\s*=\s*{_NUMBER}", text)) and (side := number(own[1])):
        found.append(("MPP", (side, side)))
    if (pixels := re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)) and (ome := _ome(pixels[0])):
        found.append(("OME", ome))
    if (scan := re.search(rf"\bScanRes\s*=\s*[\"']{_NUMBER}[\"']", text)) and (side := number(scan[1])):
        found.append(("ScanRes", (side, side)))
    unit = re.search(r"^unit=(.+)$", text, re.MULTILINE) if text.startswith("ImageJ=") else None
    if unit and (factor := micrometres(unit[1])) and (sides := _resolution(page, factor)):
        found.append(("ImageJ", sides))
    return found


def _ome(tag: str) -> Pixel | None:
    """PhysicalSizeX and PhysicalSizeY of a Pixels element of OME-XML; without a unit they are micrometres."""
    sides = []
    for axis in "XY":
        size = re.search(rf"\bPhysicalSize{axis}\s*=\s*[\"']{_NUMBER}[\"']", tag)
        unit = re.search(rf"\bPhysicalSize{axis}Unit\s*=\s*[\"']([^\"']*)[\"']", tag)
        factor = micrometres(unit[1]) if unit else 1.0
        side = number(size[1]) if size else None
        sides.append(side * factor if side and factor else None)
    x, y = sides[0] or sides[1], sides[1] or sides[0]
    return (x, y) if x and y else None


def _resolution(page: Any, unit: float | None) -> Pixel | None:
    """Sides by XResolution and YResolution, which are pixels per `unit` micrometres; 1 means unknown."""
    sides = []
    for code in (282, 283):
        value = _tag(page, code)
        parts = value if isinstance(value, tuple) and len(value) == 2 else (value, 1)
        per = parts[0] / parts[1] if isinstance(parts[0], int | float) and parts[1] else 0
        sides.append(unit / per if unit and per > 0 and per != 1 else None)
    x, y = sides
    return (x, y) if x and y else None


def _tag(page: Any, code: int) -> Any:
    return getattr(page.tags.get(code), "value", None)


def choose(found: Stated) -> tuple[Pixel | None, list[str]]:
    """The first plausible statement, or None, and notes about all of them."""
    low, high = MPP_RANGE
    plausible = [(who, pixel) for who, pixel in found if low <= min(pixel) and max(pixel) <= high]
    if not plausible:
        if not found:
            return None, ["the file does not state its pixel size"]
        x, y = found[0][1]
        return None, [f"the stated pixel size of {x:.4g} x {y:.4g} micrometres is implausible for a slide"]
    who, pixel = plausible[0]
    notes = []
    for other, another in plausible[1:]:
        ratios = [max(a, b) / min(a, b) for a, b in zip(pixel, another)]
        if max(ratios) > SAME:
            sizes = f"{pixel[0]:.4g} micrometres by {who} (taken) and {another[0]:.4g} by {other}"
            notes.append(f"contradictory pixel sizes: {sizes}")
            break
    if max(pixel) > 1.02 * min(pixel):
        notes.append(f"pixels are not square: {pixel[0]:.4g} x {pixel[1]:.4g} micrometres")
    return pixel, notes


def against_magnification(pixel: Pixel | None, descriptions: Iterable[str]) -> list[str]:
    """The warning about a pixel size that does not fit the stated magnification, which means 10 micrometres over it.

    Without a pixel size, the size by the magnification is only reported.
    """
    for text in descriptions:
        found = re.search(rf"\bAppMag\s*=\s*{_NUMBER}", text)
        times = number(found[1]) if found else None
        if times is None or not 1 <= times <= 200:
            continue
        if pixel is None:
            return [f"its magnification of {times:g} would mean about {10 / times:.2g} micrometres a pixel"]
        ratio = pixel[0] * times / 10
        if not 1 / MAGNIFIED <= ratio <= MAGNIFIED:
            return [f"pixels of {pixel[0]:.4g} micrometres (taken) do not fit its magnification of {times:g}"]
    return []


def of_tile(path: Path) -> tuple[Pixel | None, list[str]]:
    """The pixel size of a TIFF that is not a slide, with notes on contradictions; None without notes if not stated.

    Raises:
        ReadError: its list of images is endless or leads outside the file.
    """
    with open(path, "rb") as handle:
        if handle.read(4) not in MAGIC:
            return None, []
    import tifffile

    check_directories(path)
    try:
        with silent(), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            pixel, notes = choose(stated(page, [str(page.description or "")]))
    except Exception:  # a damaged header; the image has been read already
        return None, []
    return pixel, notes if pixel else []
