"""Reading in child processes, so that a hostile or damaged file cannot crash the program or exhaust its memory.

* `read`, `decode`, `decode_parts`: the methods of a modality, run in a pool of worker processes (`worker`).
* `allow`: the size of the pool.

A worker is replaced if a file crashes its decoder or takes longer than `LIMITS.seconds`; needing more memory than
`LIMITS.memory` is a MemoryError inside the worker. The parent sees typed errors only. The time limit of a file starts
when its worker is ready: starting a worker and importing a reader's libraries takes seconds on a busy machine.
M3BIND_ISOLATION=off reads in this process instead.
"""

import atexit
import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.core import children
from m3bind.errors import ReadError
from m3bind.modalities.base import Cut, Modality, Sample, get
from m3bind.modalities.formats import buffer
from m3bind.modalities.formats.limits import LIMITS, VARIABLE

WORKERS = min(4, children.usable_cores())
MAX_HEADER = 1 << 20  # bytes of an answer's first line
STARTING = 600.0  # seconds for a worker to start and import a modality's libraries, even on a slow machine
# For glibc: freed memory is reused for the next file instead of being returned to the system page by page.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class _Gone(Exception):
    """The worker ended or ran out of time."""


class _Worker:
    """One child process and the channel to it."""

    def __init__(self) -> None:
        settings = {name: value for name, value in _KEEP_FREED.items() if name not in os.environ}
        self._channel, theirs = socket.socketpair()
        file, self._memory = buffer.create()
        with theirs:
            self.process = subprocess.Popen(
                children.command("m3bind.modalities.formats.worker", str(theirs.fileno()), str(file)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # output of decoders may quote the file and must not reach a log
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), file],
                env=children.environment(**settings),
                start_new_session=True,  # Ctrl-C is for the parent; the worker ends with the channel
            )
        os.close(file)
        self._rest = b""

    def ask(self, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], Any]:
        """The worker's answer: header, and the array unless it is an error.

        Raises:
            _Gone: it died, took longer than `seconds` once ready, or its answer is inconsistent.
        """
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise _Gone from error
        try:
            self._line(time.monotonic() + STARTING)  # an empty line: ready
        except _Gone as gone:
            raise (_Gone("start") if gone.args else gone) from None
        end = time.monotonic() + seconds
        header = json.loads(self._line(end))
        if "error" in header:
            return header, None
        array = np.empty(header["shape"], dtype=np.float32)
        if header["at"] is None:
            self._fill(array, end)
        elif not 0 <= header["at"] <= len(self._memory) - array.size:
            raise _Gone
        else:
            array[...] = self._memory[header["at"] : header["at"] + array.size].reshape(array.shape)
        return header, array

    def _line(self, end: float) -> bytes:
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_HEADER:
                raise _Gone
            chunk = bytearray(1 << 16)
            self._rest += chunk[: self._receive(chunk, end)]
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _fill(self, array: Any, end: float) -> None:
        target = array.data.cast("B") if array.size else memoryview(b"")
        start = min(len(self._rest), len(target))
        target[:start] = self._rest[:start]
        self._rest = self._rest[start:]
        while start < len(target):
            start += self._receive(target[start:], end)

    def _receive(self, target: bytearray | memoryview, end: float) -> int:
        """Receive bytes into `target`; returns their number, 1 or more."""
        left = end - time.monotonic()
        if left <= 0 or not select.select([self._channel], [], [], left)[0]:
            raise _Gone("time")
        try:
            count = self._channel.recv_into(target)
        except OSError as error:
            raise _Gone from error
        if not count:
            raise _Gone
        return count

    def forget(self) -> None:
        """Close this process's end of the channel; the worker belongs to another process."""
        self._channel.close()
        self.process.returncode = 0  # nothing to wait for

    def kill(self, ended: bool = False) -> int:
        """End the process; returns its exit code (negative: the signal). `ended`: it has closed the channel."""
        code = self.process.poll()
        if ended and code is None:  # its end is closed, so it is about to exit
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self.process.wait(1)
        self.process.kill()
        last = self.process.wait()
        self._channel.close()
        return last if code is None else code


class _Pool:
    """Up to `WORKERS` workers (more after `allow`), started when needed and reused; each reads one file at a time."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self.owner = os.getpid()
        self._allowed = 0
        self.allow(WORKERS)

    def allow(self, workers: int) -> None:
        """Raise the maximum number of workers to `workers`."""
        with self._lock:
            for _ in range(self._allowed, workers):
                self._idle.put(None)
            self._allowed = max(self._allowed, workers)

    def read(self, modality: Modality, path: Path | str, how: str, cut: Cut | None) -> Sample:
        """See the function `read`."""
        kind = type(modality)
        name = f"{kind.__module__}:{kind.__qualname__}"
        worker = self._idle.get()
        keep: _Worker | None = None
        try:
            if worker is None:
                worker = _Worker()
                with self._lock:
                    self._all.add(worker)
            request = {"how": how, "class": name, "path": os.path.abspath(path), "cut": cut and asdict(cut)}
            header, array = worker.ask({**request, "home": children.home_of(kind.__module__)}, LIMITS.seconds)
            if not header.get("last"):
                keep = worker
        except _Gone as gone:
            raise _read_error(path, gone, self._end(worker, ended=not gone.args)) from None
        finally:
            if keep is None and worker is not None:
                self._end(worker)
            self._idle.put(keep)
        if header.get("error") == "memory":
            hint = f"if the file is sound, raise memory in the environment variable {VARIABLE}"
            raise ReadError(path, f"needs more than {LIMITS.memory / 1e9:g} GB of memory", hint)
        if "error" in header:
            raise ReadError(path, header["reason"], header["hint"], lasting=header["lasting"])
        spacing = tuple(header["spacing"]) if header["spacing"] else None
        names = ("rate", "unit", "steps", "warnings", "tags", "places")
        return Sample(header["modality"], array, spacing, **{name: header[name] for name in names})

    def _end(self, worker: _Worker | None, ended: bool = False) -> int:
        if worker is None:
            return 0
        with self._lock:
            known = worker in self._all
            self._all.discard(worker)
        return worker.kill(ended) if known else 0

    def close(self) -> None:
        """End all workers."""
        if os.getpid() == self.owner:
            for worker in list(self._all):
                self._end(worker)


def _read_error(path: Path | str, gone: _Gone, code: int) -> ReadError:
    if gone.args == ("start",):
        reason = f"its reader's libraries could not be loaded within {STARTING:g} s"
        return ReadError(path, reason, "try again when the machine is less busy", lasting=False)
    if gone.args == ("time",):
        hint = f"if the file is sound, raise seconds in the environment variable {VARIABLE}"
        return ReadError(path, f"reading took longer than {LIMITS.seconds:g} s", hint, lasting=False)
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    killed = code == -signal.SIGKILL  # probably by the system, short of memory
    hint = "try again with more free memory; the file may be malicious" if killed else "damaged, or malicious"
    return ReadError(path, f"its decoder crashed ({name})", hint, lasting=not killed)


_pool: _Pool | None = None
_starting = threading.Lock()


def _after_fork() -> None:
    """In a forked process: a pool of its own. Channels of the parent's workers are closed, or they would outlive it."""
    global _pool, _starting
    if _pool is not None:
        for worker in list(_pool._all):
            worker.forget()
    _pool, _starting = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def read(modality: str | Modality, path: Path | str) -> Sample:
    """Decode one file as a modality, in a child process that isolates hostile and damaged files.

    Thread-safe. A modality defined in a script (`__main__`) cannot be imported by a child and is read in this process.

    Raises:
        UnknownNameError: no such modality.
        ReadError: the file is missing, damaged, over a limit, or clearly of another kind; or its decoder ran out of
            memory or time, or crashed.
    """
    return _isolated(modality, path, "read")


def decode(modality: str | Modality, path: Path | str) -> Sample:
    """`read` without slow checks (see `Modality.decode`), also in a child process.

    Raises:
        UnknownNameError: no such modality.
        ReadError: as `read`.
    """
    return _isolated(modality, path, "decode")


def decode_parts(modality: str | Modality, path: Path | str, cut: Cut) -> Sample:
    """`decode` in parts if larger than one input (see `Modality.decode_parts`), also in a child process.

    Raises:
        UnknownNameError: no such modality.
        ReadError: as `read`.
    """
    return _isolated(modality, path, "decode_parts", cut)


def allow(workers: int) -> None:
    """Raise the maximum number of child processes to `workers`, for a caller with as many threads."""
    _current().allow(workers)


def _isolated(modality: str | Modality, path: Path | str, how: str, cut: Cut | None = None) -> Sample:
    kind = get(modality) if isinstance(modality, str) else modality
    if os.environ.get("M3BIND_ISOLATION") == "off" or type(kind).__module__ == "__main__":
        if cut is not None:
            return kind.decode_parts(path, cut)
        return kind.decode(path) if how == "decode" else kind.read(path)
    return _current().read(kind, path, how, cut)


def _current() -> _Pool:
    """The pool of this process."""
    global _pool
    with _starting:
        if _pool is None:
            _pool = _Pool()
            atexit.register(_pool.close)
    return _pool
