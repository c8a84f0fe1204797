"""A pretend accelerator on any machine: tensors that say `pretend:0` and whose values are computed by the CPU.

* `pretend_device(float64=True)`: inside, `module.to(DEVICE)`, `torch.zeros(3, device=DEVICE)` work; yields a `Log`.
* `DEVICE`: its name.
* `DeviceMixError`: an operation was given tensors of the device and of the host, as CUDA refuses them.
* `Log`: operations on the device, host syncs and copies from the host, with the line of m3bind that caused each.

It behaves as CUDA where a program can tell: only element-wise operations take a host tensor beside those of the device,
and only one without axes; indices may be on the host; `numpy()` and host generators are refused; a forked child cannot
use it. What makes the host wait (`item`, `tolist`, `cpu`, `nonzero`, `unique`, a boolean index ...) counts as a sync.
Autocast rounds the inputs of products and convolutions. With `float64=False` the device has no float64, as Apple's.

Built on PyTorch's PrivateUse1 backend in Python; the backend is registered at the first use and stays in the process,
where it is unavailable outside the context. inference_mode acts as no_grad inside (wrapped tensors have no such mode).
Not stubbed: generators and streams of the device, operations that change a tensor's shape in place.
"""

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
DEVICE = f"{NAME}:0"
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default, aten.copy.default}  # between any two devices
INDEXING = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._unsafe_index_put.default, aten._index_put_impl_.default,
}  # fmt: skip
SCALARS = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.index_fill.int_Tensor, aten.index_fill_.int_Tensor}
LENGTHS = {aten._pack_padded_sequence.default}  # its lengths are on the host
SYNCS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor,
    aten.bincount.default, aten._linalg_svd.default, aten._linalg_eigh.default, aten.linalg_inv_ex.inverse,
}  # fmt: skip

ROUNDED = ("linear", "matmul", "bmm", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention")  # under autocast


class DeviceMixError(RuntimeError):
    """An operation was given tensors of the device and of the host."""


@dataclass
class Log:
    """What was done on the device; syncs and uploads are keyed by "operation at file:line"."""

    operations: Counter[str] = field(default_factory=Counter)
    syncs: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget everything so far."""
        for counter in (self.operations, self.syncs, self.uploads):
            counter.clear()


@dataclass
class _State:
    """The open context: its log, whether there is float64, and the process that opened it."""

    log: Log
    float64: bool
    process: int = field(default_factory=os.getpid)


_state: _State | None = None


def _opened() -> _State:
    if _state is None or _state.process != os.getpid():
        raise RuntimeError(f"the device {DEVICE} is not open in this process (at {_place()})")
    return _state


class DeviceTensor(Tensor):
    """A tensor of the device; `inner` is the host tensor with its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> "DeviceTensor":
        if inner.dtype in (torch.float64, torch.complex128) and not _opened().float64:
            raise TypeError(f"the device has no {inner.dtype} (at {_place()})")
        tensor = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(DEVICE), requires_grad=requires_grad,
        )  # fmt: skip
        tensor.inner = inner
        return tensor

    def __repr__(self) -> str:
        return f"DeviceTensor({self.inner!r})"

    def numpy(self, *args: Any, **keywords: Any) -> Any:
        raise TypeError(f"can't convert a tensor of {DEVICE} to numpy; copy it to the host first (at {_place()})")

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceTensor":
        if id(self) not in memo:
            memo[id(self)] = DeviceTensor(self.inner.clone(), self.requires_grad)
            memo[id(self)].__dict__.update(_is_param=isinstance(self, nn.Parameter))
        return memo[id(self)]  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations whose arguments are all on the host too: they may make tensors of the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation: on the host's tensors as it is, else checked, logged and computed on the inner tensors."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, DeviceTensor)]
    wanted = kwargs.get("device")
    if function in COPIES and wanted is None:
        to_device = isinstance(args[0], DeviceTensor)
    else:
        to_device = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if not there and not to_device:
        return args[0].clone() if function is aten._pin_memory.default else function(*args, **kwargs)
    state = _opened()
    _check_generator(function, kwargs.get("generator"), to_device)
    if there and function not in COPIES | LENGTHS:
        _check_tensors(function, args, [x for x in tensors if not isinstance(x, DeviceTensor)])
    _count(state.log, function, args, bool(there), to_device)
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, DeviceTensor) else x, (args, kwargs))
    if wanted is not None:
        inner_kwargs["device"] = torch.device("cpu")
    result = function(*inner_args, **inner_kwargs)
    known = {id(x.inner): x for x in there}
    given = {id(x) for x in tensors}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return _same_shape(known[id(value)], function)
        if not to_device:
            return value
        return DeviceTensor(value.clone() if id(value) in given else value)

    return tree_map(wrap, result)


def _same_shape(tensor: DeviceTensor, function: Any) -> DeviceTensor:
    if tensor.shape != tensor.inner.shape or tensor.stride() != tensor.inner.stride():
        raise NotImplementedError(f"{function} changes the shape of a tensor in place (at {_place()})")
    return tensor


def _check_generator(function: Any, generator: torch.Generator | None, to_device: bool) -> None:
    if to_device and generator is not None and generator.device.type != NAME:
        raise DeviceMixError(f"{function}: a host generator for a tensor of {DEVICE} (at {_place()})")


def _check_tensors(function: Any, args: tuple[Any, ...], host: list[Tensor]) -> None:
    """Raise where CUDA would for an operation on tensors of the device and on the tensors `host`."""
    if function in INDEXING:  # host indices are copied by PyTorch itself
        mixed = not isinstance(args[0], DeviceTensor) or (len(args) > 2 and any(args[2] is x for x in host if x.dim()))
    elif function in SCALARS or torch.Tag.pointwise in function.tags:
        in_place = function._schema.is_mutable and any(args[0] is x for x in host)
        mixed = in_place or any(x.dim() for x in host)
    else:
        mixed = bool(host)
    if mixed:
        shapes = [tuple(x.shape) for x in host]
        raise DeviceMixError(f"{function}: tensors of {DEVICE} with host tensors {shapes} (at {_place()})")


def _count(log: Log, function: Any, args: tuple[Any, ...], from_device: bool, to_device: bool) -> None:
    if to_device:
        log.operations[str(function)] += 1
    copied = args[1] if function is aten.copy_.default else args[0] if args else None
    if function in COPIES and to_device and not isinstance(copied, DeviceTensor):
        log.uploads[f"{function} at {_place()}"] += 1
    to_host = function in COPIES and from_device and not to_device
    masked = function in INDEXING and any(
        isinstance(x, DeviceTensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]
    )
    if function in SYNCS or to_host or masked:
        log.syncs[f"{function} at {_place()}"] += 1


def _place() -> str:
    """The innermost line of the package that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        _, inside, name = frame.f_code.co_filename.rpartition("/src/m3bind/")
        if inside:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


class _Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks a backend's module: `torch.pretend`."""

    def is_available(self) -> bool:
        return _state is not None

    def device_count(self) -> int:
        return int(self.is_available())

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        """Nothing: its random numbers are the host's, which PyTorch restores beside it."""

    def device(self, index: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def set_device(self, device: object) -> None:
        pass

    def synchronize(self, device: object = None) -> None:
        pass

    def _lazy_init(self) -> None:
        pass


_library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_rounding = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")


@cache
def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Backend())
    _library.fallback(torch.library.fallthrough_kernel)
    for name in ROUNDED:
        _rounding.impl(name, _rounded(getattr(aten, name)))


def _rounded(function: Any) -> Callable[..., Tensor]:
    """The operation on inputs in autocast's dtype."""

    def rounded(*args: Any, **kwargs: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(NAME)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            args, kwargs = tree_map(
                lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, (args, kwargs)
            )
            return function(*args, **kwargs)  # type: ignore[no-any-return]

    return rounded


@contextlib.contextmanager
def pretend_device(float64: bool = True) -> Iterator[Log]:
    """The device is open inside; its log is yielded. Threads and DataLoader workers may be started inside."""
    global _state
    _register()
    before, swap = _state, torch.__future__.get_swap_module_params_on_conversion()
    _state = _State(Log(), float64)
    torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to keeps the identity of parameters
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) reaches the mode
    try:
        with (
            patch.object(torch.inference_mode, "__enter__", _enter_no_grad),
            patch.object(torch.inference_mode, "__exit__", _leave_no_grad),
            patch.object(threading.Thread, "run", _within_mode(threading.Thread.run)),
            torch.autograd.set_multithreading_enabled(False),  # its threads know only devices of its first backward
            _Mode(),
        ):
            yield _state.log
    finally:
        torch._C._set_only_lift_cpu_tensors(before is not None)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        _state = before


def _enter_no_grad(self: Any) -> None:
    self.no_grad = torch.no_grad()
    self.no_grad.__enter__()


def _leave_no_grad(self: Any, *error: Any) -> None:
    self.no_grad.__exit__(*error)


def _within_mode(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Dispatch modes belong to a thread: `run` with one of its own."""

    def within(thread: threading.Thread) -> None:
        with _Mode():
            run(thread)

    return within
