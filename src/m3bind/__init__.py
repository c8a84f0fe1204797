"""m3bind: bind CLIP-like medical models of any modality into one text-anchored embedding space.

Importing the package alone is quick (no torch): everything public is imported on first use.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Spinning OpenMP workers slow a busy machine down severely; torch reads this variable once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_LAZY = {"load": "m3bind.space.bundle", "Space": "m3bind.space.bundle"}
_MODULES = ("modalities", "data", "models", "training", "pretrain", "binding", "distill", "evaluate", "space", "errors")

if TYPE_CHECKING:
    from m3bind.space.bundle import Space, load

__all__ = ["Space", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"m3bind.{name}")
    raise AttributeError(f"module 'm3bind' has no attribute {name!r}")
