"""Training state on disk: trainable weights, buffers, optimiser and step, in one safetensors file.

A checkpoint is one file written atomically, so it is either whole or absent. Samplers, schedule and random numbers are
functions of (seed, step), so only the step is stored. The two newest checkpoints are retained.

* `save_state` / `load_state`: named tensors plus a small JSON description.
* `pack_optimizer` / `unpack_optimizer`: AdamW moments by parameter name.
* `module_state` / `restore_modules`: trainable parameters and buffers of modules.
* `Checkpoints`: the folder of one stage: newest readable checkpoint, save, finish.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m3bind.core import sums
from m3bind.core.files import atomic_path, check_plain
from m3bind.core.stored import parse_json
from m3bind.errors import CheckpointError
from m3bind.models.weights.weight_files import check_count


def save_state(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description to `path` atomically."""
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"description": json.dumps(dict(description))})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file written by `save_state`.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        check_plain(path)
        check_count(path)
        with safe_open(path, framework="pt") as handle:
            description = parse_json((handle.metadata() or {}).get("description", "{}"), path)
            if not isinstance(description, dict) or not isinstance(description.get("step", 0), int):
                raise ValueError("its description is not an object, or its step is not a number")
            return {name: handle.get_tensor(name) for name in handle.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged checkpoint ({error}); delete it to resume from the previous one"
        ) from error


def module_state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Trainable parameters and all buffers of `modules`, by prefixed name; frozen parameters are omitted."""
    state: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                state[f"{prefix}.{name}"] = parameter
        for name, buffer in module.named_buffers():
            state[f"{prefix}.{name}"] = buffer
    return state


def restore_modules(modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], path: Path) -> None:
    """Copy `state` back into `modules` in place.

    Raises:
        CheckpointError: names or shapes differ from those of the modules.
    """
    here = module_state(modules)
    wrong = sorted(set(here) ^ set(state)) or [name for name in here if here[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: does not fit the network of this run ({', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}); "
            "the settings changed since it was written: use another run name or delete the stage's folder"
        )
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(state[name])


def pack_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Per-parameter optimiser state as named tensors; `names` maps id(parameter) to its name."""
    packed: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            packed[f"{names[id(parameter)]}|{key}"] = torch.as_tensor(value)
    return packed


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], packed: Mapping[str, Tensor]
) -> None:
    """Inverse of `pack_optimizer`; parameters without stored state keep their initial state.

    The optimiser places and casts each tensor as it needs it: moments on their parameter's device.

    Raises:
        CheckpointError: state of an unknown parameter, or of another shape.
    """
    order = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
    numbers = {id(parameter): number for number, parameter in enumerate(order)}
    state = optimizer.state_dict()
    for name, value in packed.items():
        owner, _, key = name.rpartition("|")
        parameter = parameters.get(owner)
        if parameter is None or value.shape not in (parameter.shape, ()):
            raise CheckpointError(f"the optimiser's state {name[:60]!r} does not fit; delete the checkpoint")
        state["state"].setdefault(numbers[id(parameter)], {})[key] = value.clone()
    optimizer.load_state_dict(state)


class Checkpoints:
    """The checkpoint files of one stage in `folder`: step_00000100.safetensors ..., final.safetensors when done."""

    def __init__(self, folder: Path) -> None:
        """`folder` is created when the first file is written."""
        self.folder = folder
        self.final = folder / "final.safetensors"

    def all(self) -> list[Path]:
        """Checkpoints, newest first."""
        return sorted(filter(Path.is_file, self.folder.glob("step_*.safetensors")), reverse=True)

    def newest(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The newest readable checkpoint; damaged ones are removed."""
        for path in self.all():
            try:
                return (path, *load_state(path))
            except CheckpointError:
                path.unlink(missing_ok=True)
        return None

    def save(self, step: int, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps and remove all but the two newest checkpoints."""
        path = self.folder / f"step_{step:08d}.safetensors"
        save_state(path, tensors, {**description, "step": step})
        for old in self.all()[2:]:
            old.unlink(missing_ok=True)
        return path

    def finish(self, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        """Write the final weights, then remove the checkpoints."""
        with sums.writing(self.folder, self.final.name):
            save_state(self.final, tensors, description)
        for old in self.all():
            old.unlink(missing_ok=True)
