"""Quilt-1M: a million pairs of a histology image and a caption, mostly from teaching videos (Ikezogwo et al. 2023)."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from m3bind.data.splits import patient_position
from m3bind.evaluate.benchmarks._cells import is_one, literal
from m3bind.evaluate.benchmarks.base import Benchmark, BenchmarkItem, Fault, read_table

TABLE = "quilt_1M_lookup.csv"
IMAGES = (".jpg", ".jpeg", ".png")
VALID = 0.02  # of the videos


class Quilt1M(Benchmark):
    """Quilt-1M: training only; an image with several captions has several rows."""

    name: ClassVar[str] = "quilt1m"
    title: ClassVar[str] = "Quilt-1M"
    modalities: ClassVar[tuple[str, ...]] = ("pathology",)
    role: ClassVar = "training"
    licence: ClassVar[str] = "restricted: research only, no redistribution"
    url: ClassVar[str] = "https://zenodo.org/records/8239942"
    access: ClassVar[str] = (
        "On request at Zenodo after agreeing to the terms (36 GB at 512x512); full-size pictures on further request."
    )
    layout: ClassVar[str] = """\
quilt_1M_lookup.csv       caption, image_path, subset, split, pathology, not_histology, single_wsi, ...
*.jpg, *.png              the images named by image_path, in any folders
"""
    needs: ClassVar[tuple[str, ...]] = (TABLE,)
    notes: ClassVar[str] = (
        "1,017,712 rows. Rows with not_histology = 1 (about 5,000) are quarantined. Images of one video (the part of "
        "the name before _image_) count as one patient. Rows marked as val in the table are valid; without such marks, "
        "2 % of the videos are, by a hash."
    )

    def items(self, root: Path, out: Path) -> Iterator[BenchmarkItem | Fault]:
        """One item per caption, in the order of the table."""
        places = _images(root)
        marked = any(row["split"].lower() in ("val", "valid") for _, row in self._rows(root))
        seen: Counter[str] = Counter()
        for line, row in self._rows(root):
            name = row["image_path"].replace("\\", "/").rpartition("/")[2]
            if is_one(row.get("not_histology", "")):
                yield Fault(line, "not histology according to the table", name, "not of histology")
                continue
            if not row["caption"]:
                yield Fault(line, "no caption", name, "without a caption")
                continue
            path = places.get(name, row["image_path"])
            seen[path] += 1
            video = name.partition("_image_")[0]
            subjects = [str(subject).strip() for subject in literal(row.get("pathology", ""), list) or []]
            yield BenchmarkItem(
                path=path,
                id=path if seen[path] == 1 else f"{path}#{seen[path]}",
                split=_split(row["split"].lower(), video, marked),
                modality="pathology",
                patient=video,
                labels=tuple(dict.fromkeys(filter(None, subjects))),
                caption=row["caption"],
            )

    def _rows(self, root: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
        for line, row in read_table(root / TABLE, ("caption", "image_path")):
            row.setdefault("split", "")
            yield line, row


def _split(stated: str, video: str, marked: bool) -> str:
    valid = stated in ("val", "valid") if marked else patient_position(video) < VALID
    return "valid" if valid else "train"


def _images(root: Path) -> dict[str, str]:
    """Path of every image below `root`, by its name."""
    paths: dict[str, str] = {}
    for folder, _, names in os.walk(root):
        base = Path(folder).relative_to(root).as_posix()
        for name in names:
            if name.lower().endswith(IMAGES):
                paths[name] = name if base == "." else f"{base}/{name}"
    return paths
