"""The child process that reads files for `isolation`: requests and samples over a socket, never a pickle.

A request is one line of JSON {"how": "read", "decode" or "decode_parts", "class": "module:Name", "home": the folder of
a modality that is not installed or null, "path": ..., "cut": the `Cut` of the last or null}. An empty line says that
the reader is loaded: from there on the file's time counts. The answer is one line of JSON; the float32 values of an
array lie in the shared memory from index "at" on, or follow as bytes (null). A file that needs more memory than the
budget fails with MemoryError.
"""

import importlib
import json
import math
import signal
import socket
import sys
from typing import Any

import numpy as np

from m3bind.errors import ReadError, in_words
from m3bind.modalities.base import Cut, Modality, Sample
from m3bind.modalities.formats import buffer
from m3bind.modalities.formats.dicom_files import silence
from m3bind.modalities.formats.limits import LIMITS


def main() -> None:
    """Serve requests until the other end of the socket closes; arguments: descriptors of socket and shared memory."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    buffer.attach(int(sys.argv[2]))
    known: dict[str, Modality] = {}
    for line in channel.makefile("rb"):
        request = json.loads(line)
        name = request["class"]
        if name not in known:
            known[name] = _prepare(name, request["home"])
        channel.sendall(b"\n")
        signal.alarm(math.ceil(LIMITS.seconds) + 5)  # the parent kills us sooner, unless it is gone itself
        buffer.reset()
        header, array = _answer(known[name], request)
        at = None if array is None else buffer.place(array)
        channel.sendall(json.dumps(header | {"at": at}).encode() + b"\n")
        if array is not None and at is None:
            channel.sendall(memoryview(array).cast("B"))
        signal.alarm(0)
        if header.get("last"):
            return


def _prepare(name: str, home: str | None) -> Modality:
    """The modality, its libraries imported before memory is limited."""
    if home is not None and home not in sys.path:
        sys.path.append(home)  # last: nothing in it takes a library's place
    module, _, attribute = name.partition(":")
    _limit_memory(None)  # that of the modality before
    modality: Modality = getattr(importlib.import_module(module), attribute)()
    for library in modality.libraries:
        importlib.import_module(library)
    silence()
    _limit_memory(LIMITS.memory)
    return modality


def _limit_memory(more: int | None) -> None:
    """Let the address space grow by `more` bytes from what it is now; None: without end."""
    try:
        import resource
    except ImportError:  # not on this system: the parent's watch on time remains
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = resource.RLIM_INFINITY
    if more is not None:
        with open("/proc/self/statm", encoding="ascii") as handle:
            soft = int(handle.read().split()[0]) * resource.getpagesize() + more
    try:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ValueError, OSError):  # a stricter limit stands already
        return


def _read(modality: Modality, path: str, how: str, cut: dict[str, Any] | None) -> Sample:
    if cut is not None:
        return modality.decode_parts(path, Cut(**cut))
    return modality.decode(path) if how == "decode" else modality.read(path)


def _answer(modality: Modality, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    try:
        sample = _read(modality, request["path"], request["how"], request["cut"])
    except ReadError as error:
        return {"error": "read", "reason": error.reason, "hint": error.hint}, None
    except MemoryError:
        return {"error": "memory", "last": True}, None
    except RecursionError:
        return {"error": "read", "reason": "nested too deeply", "hint": "damaged, or made to harm"}, None
    except Exception as error:  # decoders of foreign formats raise anything; their words may quote the file
        return {"error": "read", "reason": f"not readable: {in_words(error)}", "hint": "fetch or export it again"}, None
    array = np.ascontiguousarray(sample.array, dtype=np.float32)
    header = {
        "modality": sample.modality,
        "shape": array.shape,
        "spacing": sample.spacing,
        "rate": sample.rate,
        "unit": sample.unit,
        "steps": sample.steps,
        "warnings": sample.warnings,
        "tags": sample.tags,
        "places": sample.places,
    }
    return header, array


if __name__ == "__main__":
    main()
