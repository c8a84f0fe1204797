"""Files -> embeddings on disk, resumable, whatever some files look like.

* `job`: the whole of it. * `items`: what there is to encode. * `decode_pool`, `towers`: readers and networks at work.
* `journal`, `draft`: finished shards and those under way. * `encoded`: the finished archive.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {"Encoded": "encoded", "encode_files": "job", "open_encoded": "encoded"}

if TYPE_CHECKING:
    from m3bind.encode.encoded import Encoded, open_encoded
    from m3bind.encode.job import encode_files

__all__ = ["Encoded", "encode_files", "open_encoded"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"m3bind.encode.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'm3bind.encode' has no attribute {name!r}")
