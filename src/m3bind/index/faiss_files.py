"""Reading what faiss wrote, from a folder that anybody may have made.

* `read`: bounded by the file's size, and of the kind, dimension and number of rows that are expected.
"""

import threading
from pathlib import Path
from typing import Any

import faiss

from m3bind.index.segment import IndexDamageError

_LIMIT = threading.Lock()  # faiss keeps its limits for the whole process


def read(path: Path, kind: Any, dim: int, n: int, flags: int = 0) -> Any:
    """The index of faiss in a file, mapped into memory.

    Args:
        path: the file.
        kind: its class.
        dim: numbers of a row.
        n: rows.
        flags: of faiss, beside those for mapping.

    Raises:
        Damaged: it is not that.
    """
    with _LIMIT:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(path.stat().st_size)  # a list in it is not longer than the file
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | flags)
        except (RuntimeError, MemoryError) as error:
            raise IndexDamageError(path, "not an index that this version of faiss reads") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
    if not isinstance(index, kind):
        raise IndexDamageError(path, f"holds {type(index).__name__} of faiss, not {kind.__name__}")
    if (index.d, index.ntotal) != (dim, n):
        raise IndexDamageError(path, f"holds {index.ntotal} rows of {index.d} numbers, not {n} of {dim}")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexDamageError(path, "made for another measure than the cosine")
    return index
