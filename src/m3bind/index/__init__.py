"""Stores and searches embeddings: in one folder, or in Milvus, behind one interface.

* `base`: the interface `Index`, conditions `Where`, results `SearchResult`. * `uri`: `create_index`, `open_index`.
* `build`: fills it from an encoded archive. * `embedded`: the index in one folder. * `milvus`: the index in Milvus.
"""

from typing import TYPE_CHECKING

from m3bind.core.lazy import lazy_names

if TYPE_CHECKING:
    from m3bind.index.base import Index, SearchResult, Where
    from m3bind.index.build import build_index
    from m3bind.index.uri import create_index, open_index

__all__ = ["Index", "SearchResult", "Where", "build_index", "create_index", "open_index"]

__getattr__ = lazy_names(
    __name__,
    {
        "SearchResult": "base",
        "Index": "base",
        "Where": "base",
        "build_index": "build",
        "create_index": "uri",
        "open_index": "uri",
    },
)
