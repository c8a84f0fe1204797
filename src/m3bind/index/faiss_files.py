"""Reads faiss files from untrusted folders.

* `read`: bounded by the file's size; class, dimension and number of rows are checked.
"""

import threading
from pathlib import Path
from typing import Any

import faiss

from m3bind.index.segment import IndexDamageError

_LIMIT = threading.Lock()  # the limits of faiss are global


def read(path: Path, kind: Any, dim: int, n: int, flags: int = 0) -> Any:
    """The faiss index in a file, mapped into memory.

    Args:
        path: the file.
        kind: its class.
        dim: numbers of a row.
        n: rows.
        flags: of faiss, in addition to those for mapping.

    Raises:
        IndexDamageError: the file holds another index.
    """
    with _LIMIT:
        before = faiss.get_deserialization_vector_byte_limit()
        faiss.set_deserialization_vector_byte_limit(path.stat().st_size)  # a list in it is not longer than the file
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | flags)
        except (RuntimeError, MemoryError) as error:
            raise IndexDamageError(path, "cannot be read by this version of faiss") from error
        finally:
            faiss.set_deserialization_vector_byte_limit(before)
    if not isinstance(index, kind):
        raise IndexDamageError(path, f"holds a faiss {type(index).__name__}, not {kind.__name__}")
    if (index.d, index.ntotal) != (dim, n):
        raise IndexDamageError(path, f"holds {index.ntotal} rows of {index.d} numbers, not {n} of {dim}")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise IndexDamageError(path, "has another metric than the inner product")
    return index
