"""What results were computed with: versions of libraries, and hashes of settings and data."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from m3bind.core.files import sha256_file, sha256_text

LIBRARIES = ("m3bind", "torch", "torchvision", "transformers", "timm", "open_clip_torch", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Version of Python and of each library that is installed."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def arithmetic() -> dict[str, str]:
    """What determines the order of sums, hence the last bits of results: torch, threads, instruction set, device."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "threads": str(torch.get_num_threads()), "computes on": device}


def provenance(settings: Mapping[str, Any], files: Mapping[str, Path | str | None]) -> dict[str, Any]:
    """Library versions, `arithmetic`, and hashes of the settings and of each existing file."""
    hashes = {name: sha256_file(path) for name, path in files.items() if path and Path(path).is_file()}
    facts = {"versions": versions(), "arithmetic": arithmetic()}
    return facts | {"settings": sha256_text(repr(sorted(settings.items()))), "files": hashes}
