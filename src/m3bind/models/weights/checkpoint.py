"""Weights: loaded strictly into a network, saved, and hashed by content.

* `load_strict`: applies migrations; missing keys, unexpected keys and other shapes are errors, all listed (`unfit`).
* `strip_prefix`, `rename`, `drop_position_ids`: the migrations.
* `without_initialisation`: for building a network whose weights are loaded right after.
* `bounded`: for building a network from third-party settings: no larger than its weights.
* `save_state`, `hash_state`: safetensors on disk, SHA-256 of names and contents.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from m3bind.core.files import atomic_path
from m3bind.errors import CheckpointError
from m3bind.models.weights.weight_files import State, listed

Migration = Callable[[State, frozenset[str]], State]  # (state, keys of the module) -> state


@dataclass(frozen=True)
class LoadReport:
    """Result of `load_strict`: keys `loaded` into the module, and keys of the file `ignored` on request."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]


def strip_prefix(prefix: str) -> Migration:
    """Remove `prefix` from every key, if all keys carry it and the module's own keys do not."""

    def migrate(state: State, module_keys: frozenset[str]) -> State:
        everywhere = all(key.startswith(prefix) for key in state)
        if not everywhere or any(key.startswith(prefix) for key in module_keys):
            return state
        return {key.removeprefix(prefix): value for key, value in state.items()}

    return migrate


def rename(pattern: str, replacement: str) -> Migration:
    r"""Replace a regular expression in every key, e.g. `rename(r"\.gamma$", ".weight")`.

    Raises (when applied):
        CheckpointError: two keys would get the same name.
    """

    def migrate(state: State, module_keys: frozenset[str]) -> State:
        renamed = {re.sub(pattern, replacement, key): value for key, value in state.items()}
        if len(renamed) != len(state):
            raise CheckpointError(f"renaming {pattern!r} to {replacement!r} would give two keys one name.")
        return renamed

    return migrate


def drop_position_ids(state: State, module_keys: frozenset[str]) -> State:
    """Drop `...position_ids` buffers (transformers <= 4.30 saved them) the module lacks, if they count 0, 1, 2, ...

    Raises:
        CheckpointError: a buffer holds other numbers, so dropping it would change the network.
    """
    others: State = {}
    for key, value in state.items():
        if key.rpartition(".")[2] != "position_ids" or key in module_keys:
            others[key] = value
        elif not torch.equal(value.flatten().long(), torch.arange(value.numel())):
            raise CheckpointError(f"{key} is not 0, 1, 2, ...: this checkpoint numbers positions in another way.")
    return others


DEFAULT_MIGRATIONS: tuple[Migration, ...] = (drop_position_ids, strip_prefix("module."), strip_prefix("model."))


def load_strict(
    module: nn.Module,
    state: State,
    migrations: Sequence[Migration] = (),
    ignore: Sequence[str] = (),
    source: str = "checkpoint",
) -> LoadReport:
    """Copy `state` into `module`; no key may be left over on either side.

    Args:
        module: receives the tensors (converted to its own dtypes and devices).
        state: names and tensors; not changed.
        migrations: applied in order after the default ones (position_ids, `module.` and `model.` prefixes).
        ignore: shell patterns (`cls.*`) of keys of the file that may be unused; they are reported.
        source: the file's name for error messages.

    Raises:
        CheckpointError: missing keys, unexpected keys not named in `ignore`, or other shapes, all listed.
    """
    target = module.state_dict()
    module_keys = frozenset(target)
    for migration in (*DEFAULT_MIGRATIONS, *migrations):
        state = migration(state, module_keys)
    unused = set(state) - module_keys
    ignored = {key for pattern in ignore for key in unused if fnmatchcase(key, pattern)}
    unexpected = sorted(unused - ignored)
    missing = sorted(module_keys - set(state))
    shapes = [
        f"{key} {tuple(value.shape)} (the network has {tuple(target[key].shape)})"
        for key, value in state.items()
        if key in module_keys and value.shape != target[key].shape
    ]
    if missing or unexpected or shapes:
        raise unfit(source, type(module).__name__, missing, unexpected, shapes)
    try:
        module.load_state_dict({key: value for key, value in state.items() if key in module_keys}, strict=True)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # sparse or quantised tensors
        reason = str(error).strip().splitlines()[-1][:160]
        raise CheckpointError(f"{source}: holds tensors of a kind that cannot be copied ({reason}).") from error
    return LoadReport(tuple(sorted(module_keys)), tuple(sorted(ignored)))


def unfit(
    source: str, network: str, missing: Sequence[str], unexpected: Sequence[str], shapes: Sequence[str]
) -> CheckpointError:
    """The error for weights of `source` that do not fit `network`, all names listed."""
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    problems = [f"{len(names)} {what}: {listed(names)}" for what, names in kinds if names]
    return CheckpointError(
        f"{source} does not fit {network}: {'; '.join(problems)}. Is it the checkpoint of this model and variant?"
    )


_RANDOM = {"uniform_", "normal_", "trunc_normal_", "erfinv_"} | {
    f"{name}_{kind}_" for name in ("kaiming", "xavier") for kind in ("uniform", "normal")
}


class without_initialisation(TorchFunctionMode):
    """Inside, parameters start at zero instead of random numbers, which is faster; constants and buffers are unchanged.

    For this thread only. The network must then be loaded by `load_strict`, which sets every weight.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, nn.Parameter):
                with torch.no_grad():
                    return tensor.zero_()  # not uninitialised memory: loops that reject outliers must end
        return func(*args, **kwargs)


_FACTORIES = frozenset(
    (
        torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.rand, torch.randint,
        torch.randn, torch.randperm, torch.tril_indices, torch.triu_indices, torch.zeros,
    )
)  # fmt: skip
_SPARE_ELEMENTS, _SPARE_TENSORS = 1 << 26, 2_000  # for masks, tables and constants, which are not in the file


class bounded(TorchFunctionMode):
    """Inside, networks may be little larger than their weights: a million layers or a width of 10**9 is refused.

    For this thread only; counts tensors and their elements before they are allocated.
    """

    def __init__(self, states: Iterable[Mapping[str, Tensor]], source: str) -> None:
        """`states`: the weights; `source`: the file or folder in the error message."""
        super().__init__()
        sizes = [value.numel() for state in states for value in state.values()]
        self.elements, self.tensors = 2 * sum(sizes) + _SPARE_ELEMENTS, 4 * len(sizes) + _SPARE_TENSORS
        self.source = source

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and kwargs.get("out") is None:
            self.elements -= func(*args, **{**kwargs, "device": "meta"}).numel()
            self.tensors -= 1
            if self.elements < 0 or self.tensors < 0:
                what = "elements" if self.elements < 0 else "tensors"
                raise CheckpointError(
                    f"{self.source}: its settings describe a network of many more {what} than its weights hold; the "
                    "settings or the weights are another model's."
                )
        return func(*args, **kwargs)


def save_state(state: Mapping[str, Tensor], path: Path | str, metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically; tensors that share memory are written separately.

    Raises:
        DiskError: the file system refused; the previous file is unchanged.
    """
    seen: set[int] = set()
    plain: State = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and bytes; independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
