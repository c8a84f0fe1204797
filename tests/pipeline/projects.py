"""A folder as a user has it: pictures of two modalities, a manifest and a settings file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml


def write_project(folder: Path, make_picture: Callable[..., Path], count: int, settings: dict[str, Any]) -> Path:
    """`count` pictures of as many patients, a quarter of them for testing, manifest.csv and settings.yaml."""
    rows = ["modality,path,label,caption,patient,split"]
    for number in range(count):
        kind = "xray" if number % 2 else "retina"
        make_picture(folder / f"{kind}{number}.png", kind, seed=number)
        finding = ["normal", "large opacity", "small lesion"][number % 3]
        caption = f"{kind} image with {finding} number {number % 5}"
        split = "test" if number % 8 < 2 else "train"
        rows.append(f"{kind},{kind}{number}.png,{finding},{caption},p{number},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return folder
