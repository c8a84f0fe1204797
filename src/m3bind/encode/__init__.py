"""Files -> embeddings on disk, resumable, whatever some files look like.

* `job`: the whole of it. * `items`: what there is to encode. * `decode_pool`, `towers`: readers and networks at work.
* `journal`, `draft`: finished shards and those under way. * `encoded`: the finished archive.
"""

from typing import TYPE_CHECKING

from m3bind.core.lazy import lazy_names

if TYPE_CHECKING:
    from m3bind.encode.encoded import Encoded, open_encoded
    from m3bind.encode.job import encode_files

__all__ = ["Encoded", "encode_files", "open_encoded"]

__getattr__ = lazy_names(__name__, {"Encoded": "encoded", "encode_files": "job", "open_encoded": "encoded"})
