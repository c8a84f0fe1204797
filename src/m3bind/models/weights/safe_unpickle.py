"""The child process of `convert`: a checkpoint's tensors as safetensors, nothing in the file executed.

    python -I safe_unpickle.py FORM FILE OUT      FORM: torch, torchscript or pickle, see `weight_files.recognise`

A pickle names functions and classes, and unpickling calls them. Here a name is never imported: `Unpickler.find_class`
returns one of a few functions of this file that rebuild tensors and arrays, and an inert `Stub` for every other name:
objects of Lightning or OmegaConf need not be installed and do not prevent reading, and a payload does nothing.

The process imports nothing of m3bind, limits its own memory and prints one line of JSON: the tensors converted and the
entries dropped, or an error.
"""

import collections
import contextlib
import json
import os
import pickle
import re
import sys
import tarfile
import zipfile
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

WRAPPERS = ("state_dict", "model_state_dict", "model", "params")
_SPARE = 64 << 20  # bytes of tensors that any file may hold
_RATIO = 16  # bytes of tensors per byte of file: tied and expanded tensors are written separately
_MEMORY = 2 << 30  # beyond three times the file


class Stub:
    """In place of an object of a class, or the result of a function, that was not imported."""

    origin = ""
    dump_patches = False  # read by torch.load from the class of a pickled network
    stored: Any = None  # the object's attributes in the pickle

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.items: dict[Any, Any] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> "Stub":
        """As pickle creates objects: without `__init__`."""
        stub = object.__new__(cls)
        stub.items = {}
        return stub

    def __setstate__(self, state: Any) -> None:
        self.stored = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __call__(self, *args: Any, **kwargs: Any) -> "Stub":
        """As pickle calls functions: without effect."""
        return self

    def append(self, value: Any) -> None:
        """Of a list; forgotten."""

    def extend(self, values: Any) -> None:
        """Of a list; forgotten."""

    def add(self, value: Any) -> None:
        """Of a set; forgotten."""


class Dtype(Stub):
    """numpy's, as its name and byte order."""

    def __init__(self, name: Any = "", *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.name = str(name)

    def numpy(self) -> Any:
        """The dtype, if it is one of numbers."""
        if not re.fullmatch(r"[biuf][1248]", self.name):
            raise ValueError("an array that is not of numbers")
        order = self.stored[1] if isinstance(self.stored, tuple) and len(self.stored) > 1 else "="
        return np.dtype(self.name).newbyteorder(">" if order in (">", b">") else "=")


class Array(Stub):
    """numpy's, as the bytes it was pickled with."""

    def tensor(self) -> torch.Tensor:
        """The numbers."""
        _, shape, dtype, fortran, data = self.stored
        flat = np.frombuffer(data, dtype.numpy())
        return torch.from_numpy(flat.reshape(shape, order="F" if fortran else "C").astype(flat.dtype.newbyteorder("=")))


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))  # type: ignore[no-untyped-call,no-any-return]


def _first(value: Any, *rest: Any) -> Any:
    return value


def _typed(function: Any, kind: Any, args: Any, state: Any) -> Any:
    return _tensor(*args) if function is _tensor else Stub()


def _from_numpy(data: Any, dtype: Any, *rest: Any) -> Any:
    return data.tensor().to(dtype) if isinstance(data, Array) and isinstance(dtype, torch.dtype) else Stub()


def _bytes(text: str, *rest: Any) -> bytes:
    return text.encode("latin1")


def _array(*args: Any) -> Array:
    return Array()


def _array_of(data: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any) -> Array:
    array = Array()
    array.stored = (1, shape, dtype, order == "F", data)
    return array


def _object(cls: Any, *rest: Any) -> Stub:
    return cls() if isinstance(cls, type) and issubclass(cls, Stub) else Stub()


def _names(values: Any = (), *rest: Any) -> set[str]:
    return {value for value in values if isinstance(value, str)} if isinstance(values, (list, tuple)) else set()


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return {}


KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.Size": _first,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _plain_dict,
    "builtins.set": _names,
    "__builtin__.set": _names,
    "copyreg._reconstructor": _object,
    "copy_reg._reconstructor": _object,
    "_codecs.encode": _bytes,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy.core.numeric._frombuffer": _array_of,
    "numpy._core.numeric._frombuffer": _array_of,
    "numpy.dtype": Dtype,
}


class Unpickler(pickle.Unpickler):
    """pickle's, except that a name in the file never leads to code outside this file."""

    def find_class(self, module: str, name: str) -> Any:
        """One of `KNOWN`, a dtype of torch, or a new inert class."""
        full = f"{module}.{name}"
        if full in KNOWN:
            return KNOWN[full]
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        return type("Stub", (Stub,), {"origin": full})


class InertPickle:
    """What `torch.load` takes for a pickle module."""

    __name__ = "inert"
    Unpickler = Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """As pickle.load."""
        return Unpickler(file, **options).load()


def read(form: str, path: str) -> Any:
    """The content of a file of torch.save or torch.jit.save, or of a plain pickle."""
    inert: Any = InertPickle()
    if form == "torchscript":
        load: Any = torch.serialization._load
        return load(torch._C.PyTorchFileReader(path), "cpu", inert)
    if form == "torch":
        with zipfile.ZipFile(path) as archive:
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        return torch.load(path, map_location="cpu", pickle_module=inert, weights_only=False, mmap=stored)
    if tarfile.is_tarfile(path):
        raise ValueError("a tar archive")
    with open(path, "rb") as handle:
        first = Unpickler(handle).load()
        if not isinstance(first, int):
            return first
        handle.seek(0)
        return torch.load(handle, map_location="cpu", pickle_module=inert, weights_only=False)


def tensors(content: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The state dict inside, and the dropped entries: name -> type."""
    dropped: dict[str, str] = {}
    content = _mapping(content)
    for wrapper in WRAPPERS:
        inside = _mapping(content.get(wrapper))
        if inside:
            dropped = {str(key): kind(value) for key, value in content.items() if key != wrapper}
            content = inside
            break
    kept: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        if isinstance(value, Array):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                value = value.tensor()
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            kept[key] = value.detach()
        else:
            dropped[str(key)] = kind(value)
    return kept, dropped


def _mapping(content: Any) -> dict[Any, Any]:
    """A dict as it is; a pickled network or another object that holds tensors as its state dict; else nothing."""
    if isinstance(content, dict):
        return content
    if not isinstance(content, Stub):
        return {}
    return _network(content) or content.items


def _network(module: Any, prefix: str = "", depth: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a pickled torch.nn.Module, or of a TorchScript one (tensors and modules are plain attributes)."""
    state = module.stored if isinstance(module, Stub) else None
    if not isinstance(state, dict) or depth > 64:
        return {}
    found: dict[str, torch.Tensor] = {}
    unsaved = state.get("_non_persistent_buffers_set", ())
    parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    for part in parts if any(isinstance(part, dict) for part in parts) else [state]:
        for name, value in (part or {}).items():
            if isinstance(value, torch.Tensor) and not (isinstance(unsaved, set) and name in unsaved):
                found[f"{prefix}{name}"] = value
            else:
                found |= _network(value, f"{prefix}{name}.", depth + 1)
    return found


def kind(value: Any) -> str:
    """The type of a dropped entry, for the user."""
    return value.origin or "object" if isinstance(value, Stub) else type(value).__name__


def write(state: dict[str, torch.Tensor], out: str, size: int) -> None:
    """Write safetensors; tensors that share memory are written separately."""
    total = sum(value.numel() * value.element_size() for value in state.values())
    if total > _RATIO * size + _SPARE:
        raise ValueError(f"declares {total:,} bytes of tensors in {size:,} bytes; malicious")
    seen: set[int] = set()
    for key, value in state.items():
        value = value.contiguous()
        storage = value.untyped_storage().data_ptr()
        state[key] = value.clone() if storage in seen else value
        seen.add(storage)
    save_file(state, out, metadata={"format": "pt"})


def limit(size: int) -> None:
    """Limit memory and the size of written files; no core file."""
    try:
        import resource
    except ImportError:  # not on this system: the parent's time limit remains
        return
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as handle:
            now = int(handle.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 3 * size + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for what, maximum in ((resource.RLIMIT_FSIZE, _RATIO * size + 2 * _SPARE), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (maximum, resource.getrlimit(what)[1]))


def answer(form: str, path: str, out: str) -> dict[str, Any]:
    """Convert; returns the answer to the parent."""
    size = os.path.getsize(path)
    try:
        state, dropped = tensors(read(form, path))
        if not state:
            return {
                "error": f"no tensors under names were found; it holds {', '.join(list(dropped)[:12]) or 'nothing'}"
            }
        shown = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in state.items()}
        write(state, out, size)
    except MemoryError:
        return {"error": "it needs more memory than a file of its size may; damaged, or malicious"}
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        return {"error": "damaged or incomplete" + (f" ({reason})" if reason else "")}
    return {"kept": shown, "dropped": dropped}


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # output of libraries must not mix with the answer
        limit(os.path.getsize(sys.argv[2]))
        torch.set_num_threads(1)
        answers.write(json.dumps(answer(*sys.argv[1:4])))
