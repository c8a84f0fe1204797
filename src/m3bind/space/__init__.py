"""What was bound, as one object and one folder.

* `bundle`: `Space`, `load`, `save_space`. * `folder`: the space on disk. * `manifest`: what its space.json may say.
* `foreign_folder`: folders that `export` wrote, which are no spaces.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {"Space": "bundle", "SpaceInfo": "folder", "load": "bundle", "save_space": "bundle"}

if TYPE_CHECKING:
    from m3bind.space.bundle import Space, load, save_space
    from m3bind.space.folder import SpaceInfo

__all__ = ["Space", "SpaceInfo", "load", "save_space"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"m3bind.space.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'm3bind.space' has no attribute {name!r}")
