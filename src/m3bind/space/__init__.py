"""Using what was bound: open a space, encode files and texts, index and search them, take it elsewhere.

* `bundle`: `Space`, `load`, `save_space`. * `folder`: the space on disk.
* `encode`: an archive of files -> embeddings (`encoded`). * `index`: embeddings that are kept and searched.
* `search`: from words, files and items (`query`) to hits, with scores that compare (`calibrate`); `sheet` shows them.
* `export`: a space, or its student, in forms that other programs read.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Calibration": "calibrate",
    "Encoded": "encoded",
    "Hit": "search",
    "Query": "query",
    "Searcher": "search",
    "Space": "bundle",
    "SpaceInfo": "folder",
    "encode_files": "encode",
    "load": "bundle",
    "open_encoded": "encoded",
    "save_space": "bundle",
}

if TYPE_CHECKING:
    from m3bind.encode.encoded import Encoded, open_encoded
    from m3bind.encode.job import encode_files
    from m3bind.index.calibration import Calibration
    from m3bind.search.query import Query
    from m3bind.search.searcher import Hit, Searcher
    from m3bind.space.bundle import Space, load, save_space
    from m3bind.space.folder import SpaceInfo

__all__ = [
    "Calibration",
    "Encoded",
    "Hit",
    "Query",
    "Searcher",
    "Space",
    "SpaceInfo",
    "encode_files",
    "load",
    "open_encoded",
    "save_space",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"m3bind.space.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'm3bind.space' has no attribute {name!r}")
