"""The child process that reads files for `isolation`: requests and samples over a socket, never a pickle.

A request is one line of JSON {"how": "read", "decode" or "decode_parts", "class": "module:Name", "home": the folder of
a modality that is not installed or null, "path": ..., "cut": the `Cut` of decode_parts or null}. An empty line reports
that the reader is loaded: the time limit starts then. The answer is one line of JSON; the float32 values of an array
lie in the shared memory from index "at" on, or follow as bytes (null). A file that needs more memory than the budget
fails with MemoryError.
"""

import contextlib
import importlib
import json
import math
import signal
import socket
import sys
from typing import Any

import numpy as np

from m3bind.errors import ReadError, in_words, is_lasting
from m3bind.modalities.base import Cut, Modality
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
        signal.alarm(math.ceil(LIMITS.seconds) + 5)  # the parent kills this process sooner, if it is alive
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
    """The modality; its libraries are imported before memory is limited."""
    if home is not None and home not in sys.path:
        sys.path.append(home)  # last, so that nothing in it shadows a library
    module, _, attribute = name.partition(":")
    _limit_memory(None)  # remove the limit of the previous modality
    modality: Modality = getattr(importlib.import_module(module), attribute)()
    for library in modality.libraries:
        with contextlib.suppress(ModuleNotFoundError):  # an absent decoder concerns the files that need it
            importlib.import_module(library)
    silence()
    _limit_memory(LIMITS.memory)
    return modality


def _limit_memory(more: int | None) -> None:
    """Limit the growth of the address space to `more` bytes; None: unlimited."""
    try:
        import resource
    except ImportError:  # not on this system: the parent's time limit remains
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = resource.RLIM_INFINITY
    if more is not None:
        with open("/proc/self/statm", encoding="ascii") as handle:
            soft = int(handle.read().split()[0]) * resource.getpagesize() + more
    try:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ValueError, OSError):  # a stricter limit is in force
        return


def _answer(modality: Modality, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    path, cut = request["path"], request["cut"]
    try:
        if cut is not None:
            sample = modality.decode_parts(path, Cut(**cut))
        else:
            sample = modality.decode(path) if request["how"] == "decode" else modality.read(path)
    except ReadError as error:
        return {"error": "read", "reason": error.reason, "hint": error.hint, "lasting": is_lasting(error)}, None
    except MemoryError:
        return {"error": "memory", "last": True}, None
    except RecursionError:
        refused = {"error": "read", "reason": "nested too deeply", "hint": "damaged, or malicious"}
        return {**refused, "lasting": True}, None
    except Exception as error:  # third-party decoders raise anything; their messages may quote the file
        refused = {"error": "read", "reason": f"not readable: {in_words(error)}", "hint": "fetch or export it again"}
        return {**refused, "lasting": is_lasting(error)}, None
    array = np.ascontiguousarray(sample.array, dtype=np.float32)
    names = ("modality", "spacing", "rate", "unit", "steps", "warnings", "tags", "places")
    return {"shape": array.shape, **{name: getattr(sample, name) for name in names}}, array


if __name__ == "__main__":
    main()
