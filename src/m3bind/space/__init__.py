"""Using what was bound: open a space, encode files and texts, search.

* `bundle`: `Space`, `load`, `save_space`. * `folder`: the space on disk.
* `encode`: an archive of files -> embeddings. * `search`: exact search over what was encoded.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Encoded": "encode",
    "Hit": "search",
    "Space": "bundle",
    "SpaceInfo": "folder",
    "encode_files": "encode",
    "load": "bundle",
    "open_encoded": "encode",
    "save_space": "bundle",
}

if TYPE_CHECKING:
    from m3bind.space.bundle import Space, load, save_space
    from m3bind.space.encode import Encoded, encode_files, open_encoded
    from m3bind.space.folder import SpaceInfo
    from m3bind.space.search import Hit

__all__ = ["Encoded", "Hit", "Space", "SpaceInfo", "encode_files", "load", "open_encoded", "save_space"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"m3bind.space.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'm3bind.space' has no attribute {name!r}")
