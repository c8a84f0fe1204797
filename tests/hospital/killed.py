"""A listener with its encoder, killed repeatedly. Arguments: FOLDER, --quiet SECONDS.

Each line of the standard input is one life: the number of disk-changing calls after which it kills itself (0: another
process kills it). It prints "life" and its number, "port" and the port, and "dead" at its end. The networks are stubs,
so that a life starts at once: an item's embedding is computed from the pixels of its files, in any order.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch

from m3bind.encode.decode_pool import DecodedItem
from m3bind.hospital import encoder as encoding
from m3bind.hospital.deidentify import Deidentifier
from m3bind.hospital.encoder import SpoolEncoder
from m3bind.hospital.intake import Intake
from m3bind.hospital.listener import Listener, ListenerSettings
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.spool import Spool
from m3bind.index import create_index, open_index

NAMES = Deidentifier(Pseudonyms(b"a salt only for tests"))
DIM = 8
UNREADABLE = 1  # pixels of this value everywhere cannot be read


def embedding(files: Sequence[Path]) -> Any:
    """A unit row (8,) that is unique to this set of images."""
    found = np.zeros(DIM)
    for file in files:
        digest = hashlib.sha256(pydicom.dcmread(file).PixelData).digest()
        found += np.frombuffer(digest[:DIM], np.uint8) - 127.5
    return (found / np.linalg.norm(found)).astype(np.float32)


class StandIn:
    """The parts of a space that the encoder needs."""

    modalities, dim, fingerprint = ("xray", "ct"), DIM, "f" * 64

    def examine_inputs(self, inputs: Sequence[torch.Tensor], modality: str) -> Any:
        return np.stack([value.numpy() for value in inputs]), [""] * len(inputs)


def decoded(space: object, rows: Any, *_: object) -> Iterator[tuple[str, DecodedItem]]:
    """In place of decoding processes."""
    for unit, row in rows:
        path = Path(row["path"])
        files = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
        if any(set(pydicom.dcmread(file).PixelData) == {UNREADABLE} for file in files):
            yield unit, DecodedItem(row["modality"], reason="its pixels are all the same")
        else:
            yield unit, DecodedItem(row["modality"], [torch.from_numpy(embedding(files))])


def die_after(calls: int) -> None:
    """Kill this process at a call that changes the disk, before or after it."""
    left = [calls]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            late = random.random() < 0.5
            if not left[0] and not late:
                os.kill(os.getpid(), signal.SIGKILL)
            found = work(*arguments, **options)
            if not left[0] and late:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (os, "link"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
                         (os, "rename"), (os, "utime"), (shutil, "rmtree")):  # fmt: skip
        setattr(module, name, counted(getattr(module, name)))


def live(folder: Path, quiet: float, calls: int) -> None:
    """Receive and encode until killed."""
    encoding.ahead = decoded
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if calls:
        die_after(calls)
    index = folder / "index"
    with (
        Spool(folder / "spool", quiet=quiet) as spool,
        open_index(index, writable=True) if index.exists() else create_index(index, DIM, StandIn.fingerprint) as opened,
    ):
        listener = Listener(Intake(spool, NAMES, StandIn.modalities), ListenerSettings(timeout=20))
        listener.start("127.0.0.1", 0)
        print("port", listener.port, flush=True)
        worker = SpoolEncoder(StandIn(), opened, spool)  # type: ignore[arg-type]
        worker.run(stop)
        listener.stop(5)
        worker.drain(at_once=True)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                live(Path(sys.argv[1]), float(sys.argv[3]), int(line))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print("life", child, flush=True)
        print("dead", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
