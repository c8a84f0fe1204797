"""Memory that a child process and its parent both see, and where a reader puts its result so that it lies there.

* `create`, `attach`: the memory, on the parent's and on the child's side.
* `empty`: the float32 array a reader fills; in a child it lies in the shared memory, where there is room.
* `place`: where in the shared memory an array is, if it is.

The memory keeps one size and is used again for file after file: pages that are already there cost nothing. The parent
copies what it was told of, so nothing a child does later can change an array.
"""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SIZE = 64 << 20  # bytes; a larger array is sent through the channel instead
_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004  # fcntl.F_ADD_SEALS: neither seals nor size change any more

_memory: Array | None = None  # of this process, when it is a child
_used = 0  # values of it that arrays for the present file take


def create() -> tuple[int, Array]:
    """New shared memory: a file descriptor for the child, and the memory as a flat array."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("m3bind", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.ftruncate(file, SIZE)
    with contextlib.suppress(ImportError, OSError):  # a child that made it smaller would crash its parent
        import fcntl

        fcntl.fcntl(file, _ADD_SEALS, _SEALS)
    return file, _map(file)


def _map(file: int) -> Array:
    return np.frombuffer(mmap.mmap(file, SIZE), dtype=np.float32)


def attach(file: int) -> None:
    """Make the memory behind `file` the one `empty` takes arrays from; closes `file`."""
    global _memory
    _memory = _map(file)
    os.close(file)


def reset() -> None:
    """Forget the arrays of the file before; they must not be used any more."""
    global _used
    _used = 0


def empty(shape: Sequence[int]) -> Array:
    """A new float32 array of `shape`, contents undefined."""
    global _used
    size = int(np.prod(shape, dtype=np.int64))
    if _memory is None or _used + size > len(_memory):
        return np.empty(shape, dtype=np.float32)
    found = _memory[_used : _used + size].reshape(shape)
    _used += size
    return found


def place(array: Array) -> int | None:
    """Index in the shared memory at which a C-contiguous float32 `array` starts, after a copy where it lies elsewhere.

    None where there is no room for it.
    """
    if _memory is None:
        return None
    start = (_address(array) - _address(_memory)) // _memory.itemsize
    if 0 <= start < len(_memory):
        return start
    if array.size > len(_memory) - _used:
        return None
    copy = empty(array.shape)
    copy[...] = array
    return (_address(copy) - _address(_memory)) // _memory.itemsize


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
