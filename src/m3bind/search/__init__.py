"""From texts, files and items (`query`) to hits (`searcher`), and their display (`sheet`, `thumbnails`).

* `searcher`: `Searcher`, `search`. * `zero_shot_classifier`: zero-shot classification of items of an index.
"""

from typing import TYPE_CHECKING

from m3bind.core.lazy import lazy_names

if TYPE_CHECKING:
    from m3bind.search.query import Query
    from m3bind.search.searcher import Hit, Searcher, search

__all__ = ["Hit", "Query", "Searcher", "search"]

__getattr__ = lazy_names(__name__, {"Hit": "searcher", "Query": "query", "Searcher": "searcher", "search": "searcher"})
