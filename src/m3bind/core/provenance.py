"""What figures were made with: versions of the libraries they depend on, and hashes of settings and data."""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from m3bind.core.files import sha256_file, sha256_text

LIBRARIES = ("m3bind", "torch", "torchvision", "transformers", "timm", "open_clip_torch", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Version of Python and of each library that is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def arithmetic() -> dict[str, str]:
    """What decides the order of sums, and so the last bits of every result: torch, threads, instruction set, device."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "threads": str(torch.get_num_threads()), "computes on": device}


def provenance(settings: Mapping[str, Any], files: Mapping[str, Path | str | None]) -> dict[str, Any]:
    """Versions, what computed, hash of the settings, and of each file that is there."""
    hashes = {name: sha256_file(path) for name, path in files.items() if path and Path(path).is_file()}
    facts = {"versions": versions(), "arithmetic": arithmetic()}
    return facts | {"settings": sha256_text(repr(sorted(settings.items()))), "files": hashes}
