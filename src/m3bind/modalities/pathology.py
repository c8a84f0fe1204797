"""Histology: tiles of stained tissue (PNG, JPEG, TIFF, DICOM) and whole slides -> (H, W, 3) float32 0..1 RGB.

A whole slide (SVS, pyramidal TIFF, DICOM file or folder) is read as its most tissue-rich tile, or as several in parts;
`tissue.tissue_tiles` yields all of them.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from m3bind.modalities.base import Cut, Modality, Sample
from m3bind.modalities.formats import buffer, dicom, images, slide_scale, slides, tissue

TILE = 224  # pixels a side
MPP = 0.5  # micrometres per pixel, a 20x objective
MIN_SHARPNESS = 0.12  # 1,048 tiles of mini5: all above 0.24; blurred by 3 pixels: all below 0.10
MIN_SIDE = 128  # pixels; the sharpness of smaller images is not checked
MAX_PEN = 0.005  # fraction of the slide


class Pathology(Modality):
    """Tiles and slides of stained tissue, usually haematoxylin and eosin."""

    name: ClassVar[str] = "pathology"
    title: ClassVar[str] = "Histology tile"
    color: ClassVar[str] = "#aa3377"
    version: ClassVar[int] = 2  # colours by the codestream, pixel sizes wherever stated
    suffixes: ClassVar[tuple[str, ...]] = (
        *images.IMAGE_SUFFIXES, *images.TIFF_SUFFIXES, *slides.SLIDE_SUFFIXES, *dicom.SUFFIXES
    )  # fmt: skip
    folders: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = (*dicom.LIBRARIES, "tiffslide")

    def read(self, path: Path | str) -> Sample:
        """`decode`, with warnings: a fundus, empty glass, out of focus.

        Raises:
            ReadError: as `decode`.
        """
        sample = self.decode(path)
        sample.warnings += _doubts(sample.array)
        return sample

    def decode(self, path: Path | str) -> Sample:
        """A tile, or a whole slide's most tissue-rich 224 x 224 tile at 0.5 micrometres per pixel.

        array (H, W, 3) in 0..1; spacing (H, W) in mm for slides and TIFF tiles that state it. A slide scanned more
        coarsely is read at its own pixel size, one that does not state it at level 0.

        Raises:
            ReadError: missing, damaged, over a limit, or without colour.
        """
        path = Path(path)
        if not path.is_dir():
            images.check_file(path, self)
        if slides.is_slide(path):
            return self._read_slide(path)
        if dicom.is_dicom(path):
            return self._read_dicom(path)
        array, steps, warnings = images.read_colour(path, "a stained tissue tile")
        pixel, notes = slide_scale.of_tile(path)
        spacing = (pixel[1] / 1000, pixel[0] / 1000) if pixel else None
        return Sample(self.name, np.ascontiguousarray(array), spacing, steps=steps, warnings=warnings + notes)

    def decode_parts(self, path: Path | str, cut: Cut) -> Sample:
        """`decode`; a whole slide becomes its `cut.most` most tissue-rich tiles (n, 224, 224, 3).

        `places`: the left and top edge (x, y) of each tile in level-0 pixels. Only tiles that are at least half tissue
        are taken; without any, the best tile alone.

        Raises:
            ReadError: as `decode`.
        """
        path = Path(path)
        if not path.is_dir():
            images.check_file(path, self)
        return self._read_slide(path, cut.most) if slides.is_slide(path) else self.decode(path)

    def _read_dicom(self, path: Path) -> Sample:
        dataset = dicom.open_dicom(path)
        array, steps, warnings = dicom.colour(dataset, path)
        warnings += images.check_colour(path, array, "a stained tissue tile") + images.image_warnings(array)
        tags = dicom.technical_tags(dataset)
        return Sample(self.name, np.ascontiguousarray(array), steps=steps, warnings=warnings, tags=tags)

    def _read_slide(self, path: Path, most: int | None = None) -> Sample:
        """The best tile of a slide; with `most`, up to that many as parts."""
        with slides.open_slide(path) as slide:
            overview = tissue.tissue_map(slide)
            mpp = slide.finest(MPP)
            places = tissue.tissue_places(slide, overview, TILE, mpp)
            count = sum(place[0] >= tissue.MIN_TISSUE for place in places)
            share, x, y = places[0]
            chosen = places[: max(1, min(count, most or 1))]
            array = buffer.empty((len(chosen), TILE, TILE, 3))
            damaged: list[str] = []
            for tile, (_, left, top) in zip(array, chosen):
                tile[...] = slide.read_region(left, top, TILE, TILE, mpp)
                damaged += [doubt] if (doubt := slide.doubt(left, top, TILE, TILE, mpp)) else []
        scan = f" of {slide.mpp:.4g} micrometres" if slide.mpp else ""
        width, height = slide.size
        steps = [
            f"{slide.kind} whole slide, {width} x {height} pixels{scan}, resolutions: {len(slide.levels)}",
            f"its most tissue-rich tile of {TILE} x {TILE} pixels"
            + (f" of {mpp:.4g} micrometres" if mpp else " of level 0")
            + f" taken, at ({x}, {y}), {share:.0%} tissue; {count} of {len(places)} tiles are tissue"
            + (f", {len(chosen)} of them taken" if most else ""),
        ]
        warnings = [*slide.notes, *dict.fromkeys(damaged)]
        if mpp is None:
            warnings.append("read at level 0, which may not be the pixel size that models expect")
        elif mpp > 1.01 * MPP:
            warnings.append(f"scanned at {mpp:.3g} micrometres per pixel, coarser than {MPP}: not resampled")
        if count == 0:
            warnings.append("no tile is at least half tissue")
        if float(overview.pen.mean()) > MAX_PEN:
            warnings.append(f"pen marks on {overview.pen.mean():.1%} of the slide; excluded")
        spacing = (mpp / 1000, mpp / 1000) if mpp else None
        sample = Sample(self.name, array[0], spacing=spacing, steps=steps, warnings=warnings, tags=slide.tags)
        if most:
            sample.array, sample.places = array, [[float(left), float(top)] for _, left, top in chosen]
        return sample

    def thumbnail(self, sample: Sample, size: int = 160) -> Image.Image:
        """The tile, reduced."""
        return images.to_thumbnail(sample.array, size)


def sharpness(array: images.Array) -> float:
    """Fine contrast of a tile (H, W, 3): standard deviation of the Laplacian of grey over that of grey."""
    grey = array.mean(axis=2)
    centre, neighbours = grey[1:-1, 1:-1], grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((neighbours - 4 * centre).std() / max(float(grey.std()), 1e-3))


def _doubts(array: images.Array) -> list[str]:
    """Warnings about a tile that may not be stained tissue in focus."""
    some = images.sparse(array)
    smallest, largest = images.channel_range(some)
    h, w = (max(1, side // 16) for side in largest.shape)
    corners = [largest[:h, :w], largest[:h, -w:], largest[-h:, :w], largest[-h:, -w:]]
    if max(float(corner.mean()) for corner in corners) < 0.15:
        return ["four dark corners: a fundus photograph rather than tissue?"]
    if float((smallest > 0.9).mean()) > 0.95:
        return ["almost only empty glass"]
    if min(array.shape[:2]) >= MIN_SIDE and sharpness(array) < MIN_SHARPNESS:
        return ["out of focus: hardly any detail between neighbouring pixels"]
    return []
