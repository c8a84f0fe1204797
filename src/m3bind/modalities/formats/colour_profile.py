"""Colour profiles (ICC) of images and slides: not applied, as models were trained without, but reported if they matter.

* `doubt`: the warning about a profile that is not close to sRGB.
* `doubt_of_page`, `doubts_of_dicom`: the same for the profile of a TIFF page or a DICOM object.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

MAX_BYTES = 4 << 20
MIN_SHIFT = 0.05  # of full scale, mean over all colours: Adobe RGB and Display P3 reach 0.03, ProPhoto 0.08
_TAG = 34675  # of a TIFF page
_MODES = {"RGB": "RGB", "GRAY": "L"}


def doubt(profile: object) -> str:
    """The warning about a colour `profile` (bytes; anything else counts as missing) other than sRGB, or ""."""
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= MAX_BYTES:
        return ""
    shift = _shift(profile)
    if shift < MIN_SHIFT:
        return ""
    return f"its colour profile, which is not applied, would change values by {shift:.0%} on average"


def doubt_of_page(page: object) -> str:
    """`doubt` about a page of tifffile."""
    return doubt(getattr(getattr(page, "tags", {}).get(_TAG), "value", None))


def doubts_of_dicom(dataset: Any) -> list[str]:
    """`doubt` about a DICOM object or a slide's first optical path, as a list of 0 or 1."""
    try:
        paths = list(dataset.get("OpticalPathSequence") or [])[:1]
        found = (doubt(source.get("ICCProfile")) for source in (dataset, *paths))
        return [text for text in found if text][:1]
    except Exception:  # pydicom converts header values on access, and raises anything
        return []


@lru_cache(maxsize=16)
def _shift(profile: bytes) -> float:
    """Mean change (0..1) of an even grid of colours, or of greys, by `profile`; 0 if it is unusable."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[opened.profile.xcolor_space.strip()]
        steps = np.linspace(0, 255, 5 if mode == "RGB" else 64).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 5, 3) if mode == "RGB" else steps[None]
        turn = ImageCms.buildTransform(
            opened, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
        shown = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), turn)).astype(np.float32)
    except Exception:  # damaged, or of a kind that an image cannot have
        return 0.0
    before = grid if mode == "RGB" else grid[..., None]
    return float(np.abs(shown - before).mean()) / 255
