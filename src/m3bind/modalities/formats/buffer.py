"""Memory shared by a child process and its parent, in which a reader allocates its result.

* `create`, `attach`: the memory, on the parent's and on the child's side. * `reset`: reuse it for the next file.
* `empty`: the float32 array a reader fills; in a child it lies in the shared memory, if there is room.
* `place`: the index of an array in the shared memory.

The memory has a fixed size and is reused for every file: pages already allocated cost nothing. The parent copies each
result, so a child cannot change an array later.
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
_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004  # fcntl.F_ADD_SEALS: seals and size are fixed

_memory: Array | None = None  # of this process, when it is a child
_used = 0  # values of it in use by arrays of the present file


def create() -> tuple[int, Array]:
    """New shared memory: a file descriptor for the child, and the memory as a flat array."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("m3bind", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.ftruncate(file, SIZE)
    with contextlib.suppress(ImportError, OSError):  # a child that shrinks it would crash its parent
        import fcntl

        fcntl.fcntl(file, _ADD_SEALS, _SEALS)
    return file, _map(file)


def _map(file: int) -> Array:
    return np.frombuffer(mmap.mmap(file, SIZE), dtype=np.float32)


def attach(file: int) -> None:
    """Let `empty` allocate from the memory behind `file`; closes `file`."""
    global _memory
    _memory = _map(file)
    os.close(file)


def reset() -> None:
    """Release the arrays of the previous file, which must not be used any more."""
    global _used
    _used = 0


def empty(shape: Sequence[int]) -> Array:
    """A new float32 array of `shape`, contents undefined."""
    global _used
    size = int(np.prod(shape, dtype=np.int64))
    if _memory is None or _used + size > len(_memory):
        return np.empty(shape, dtype=np.float32)
    array = _memory[_used : _used + size].reshape(shape)
    _used += size
    return array


def place(array: Array) -> int | None:
    """Index in the shared memory of a C-contiguous float32 `array`, which is copied if elsewhere; None without room."""
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
