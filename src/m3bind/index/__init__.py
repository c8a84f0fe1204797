"""Embeddings that are kept and searched: one folder here, or Milvus elsewhere, behind one interface.

* `base`: the interface `Index`, conditions `Where`, results `SearchResult`. * `uri`: `create_index`, `open_index`.
* `build`: an encoded archive into an index. * `embedded`: the index in one folder. * `milvus`: the index in Milvus.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "SearchResult": "base",
    "Index": "base",
    "Where": "base",
    "build_index": "build",
    "create_index": "uri",
    "open_index": "uri",
}

if TYPE_CHECKING:
    from m3bind.index.base import Index, SearchResult, Where
    from m3bind.index.build import build_index
    from m3bind.index.uri import create_index, open_index

__all__ = ["Index", "SearchResult", "Where", "build_index", "create_index", "open_index"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"m3bind.index.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'm3bind.index' has no attribute {name!r}")
