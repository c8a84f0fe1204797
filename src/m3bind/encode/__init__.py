"""Files -> embeddings on disk: resumable, unreadable files are quarantined.

* `job`: the whole encoding. * `items`: the files to encode. * `decode_pool`, `towers`: run the readers and networks.
* `shard`, `journal`: unfinished and finished shards. * `encoded`, `assemble`: the finished archive, read and written.
"""

from typing import TYPE_CHECKING

from m3bind.core.lazy import lazy_names

if TYPE_CHECKING:
    from m3bind.encode.encoded import Encoded, open_encoded
    from m3bind.encode.job import encode_files

__all__ = ["Encoded", "encode_files", "open_encoded"]

__getattr__ = lazy_names(__name__, {"Encoded": "encoded", "encode_files": "job", "open_encoded": "encoded"})
