"""From words, files and items (`query`) to hits (`searcher`), and how they are shown (`sheet`, `thumbnails`).

* `searcher`: `Searcher`, `search`. * `zero_shot`: which label fits an item of an index.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {"Hit": "searcher", "Query": "query", "Searcher": "searcher", "search": "searcher"}

if TYPE_CHECKING:
    from m3bind.search.query import Query
    from m3bind.search.searcher import Hit, Searcher, search

__all__ = ["Hit", "Query", "Searcher", "search"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"m3bind.search.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'm3bind.search' has no attribute {name!r}")
