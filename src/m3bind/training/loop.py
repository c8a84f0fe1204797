"""The one training loop of all stages: AdamW, warm-up and cosine, clipping, checkpoints, resume, NaN policy, logs.

* `Stage`: what a stage must offer: parameter groups, modules to save, and `losses(step)`.
* `train(stage, settings, ...)`: runs it to the end, or resumes where a killed run stopped. The weights are the same
  bits as those of an uninterrupted run where `provenance.arithmetic` is the same (torch, number of threads, instruction
  set): these decide the order of sums. Where it differs, a warning says so: rounding differs, and steps amplify it.
* `learning_rate(step, settings)`: linear warm-up, then cosine.

Random numbers of a step (dropout, augmentation) are seeded from (seed, stage, step), so they need not be stored.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from m3bind.config import TrainConfig
from m3bind.core import sums
from m3bind.core.files import sha256_text, write_text
from m3bind.core.progress import progress
from m3bind.core.provenance import arithmetic
from m3bind.core.stored import MOST_JSON, read_text
from m3bind.errors import CheckpointError, NotFiniteError
from m3bind.training import checkpoint
from m3bind.training.parallel import average_gradients, world

log = logging.getLogger(__name__)


@dataclass
class ParameterGroup:
    """Parameters with a learning rate of `scale` x the schedule's (Eq. 4 hands in s_m)."""

    name: str
    parameters: list[nn.Parameter]
    scale: float = 1.0


class Stage(Protocol):
    """What the loop needs from a stage."""

    name: str

    def groups(self) -> Sequence[ParameterGroup]:
        """The parameters that train."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Modules whose training parameters and buffers a checkpoint holds."""

    def losses(self, step: int) -> dict[str, Tensor]:
        """Named scalar losses of step `step` (0-based); "loss" is the one that is minimised."""


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Learning rate of the 0-based `step`: linear warm-up to `lr`, then a cosine to `lr * lr_floor`."""
    warm = max(round(settings.warmup * settings.steps), 1)
    if step < warm:
        return settings.lr * (step + 1) / warm
    progress_ = (step - warm) / max(settings.steps - warm, 1)
    return settings.lr * (settings.lr_floor + (1 - settings.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress_)))


def bf16_pays(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware (a GPU, or a CPU with AMX or AVX512-BF16), not emulated."""
    from m3bind.core.device import compute_dtype, may_round

    if device.type == "cuda":
        return may_round() and bool(torch.cuda.is_bf16_supported())
    return compute_dtype() is torch.bfloat16


def autocast(settings: TrainConfig, device: torch.device) -> AbstractContextManager[None]:
    """The precision a stage computes its towers in; losses are always formed in float32."""
    enabled = settings.precision == "bf16" or (settings.precision == "auto" and bf16_pays(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def train(stage: Stage, settings: TrainConfig, folder: Path, seed: int, accelerator: Accelerator | None = None) -> None:
    """Train `stage` for `settings.steps` steps, leaving `folder/final.safetensors` and `folder/log.jsonl`.

    Called again after a kill it continues from the newest checkpoint; called again after the end it only loads the
    final weights into the stage's modules.

    Raises:
        NotFiniteError: a loss or the gradient is NaN or infinite; says step, loss name and the last good checkpoint.
        CheckpointError: the folder holds state of other settings.
        ResultError: the final weights are not as they were written.
        DiskError: a checkpoint could not be written.
    """
    files = checkpoint.Checkpoints(folder)
    modules = stage.modules()
    fingerprint = sha256_text(stage.name, str(seed), settings.model_dump_json(exclude=_FREE))[:16]
    if files.final.exists():
        sums.check(folder, [files.final.name])
        state, description = checkpoint.load_state(files.final)
        _same_run(description, fingerprint, files.final)
        checkpoint.restore_modules(modules, state, files.final)
        return
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    with repeatable(accelerator.device):
        _Run(stage, settings, files, fingerprint, seed, accelerator).run()


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, gradients on a CPU are added in one order, whatever its threads do.

    Otherwise those of rows that were gathered several times (`x[ids]`) are added by several threads as they come: the
    last bits differ from run to run, most of all on a busy machine. On a GPU nothing changes.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill


_FREE = {"checkpoint_steps", "checkpoint_seconds", "log_steps"}  # settings that do not change the result


def _same_run(description: Mapping[str, object], fingerprint: str, path: Path) -> None:
    if description.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{path}: was written with other settings or another seed; "
            f"use another run name (--set name=...) or delete {path.parent}"
        )


def _warn_of_other_arithmetic(description: Mapping[str, object], path: Path) -> None:
    then, now = description.get("arithmetic"), arithmetic()
    if isinstance(then, dict) and then != now:
        changed = [f"{name} {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]]
        log.warning(
            "%s: begun in another arithmetic (%s); rounding will differ, so weights agree closely but not to the bit",
            path.parent, ", ".join(changed),
        )  # fmt: skip


class _Run:
    """State of one call of `train`."""

    def __init__(
        self,
        stage: Stage,
        settings: TrainConfig,
        files: checkpoint.Checkpoints,
        fingerprint: str,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.stage, self.settings, self.files, self.seed, self.accelerator = stage, settings, files, seed, accelerator
        self.fingerprint = fingerprint
        self.description = {"fingerprint": fingerprint, "arithmetic": arithmetic()}
        self.groups = [g for g in stage.groups() if g.parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": g.parameters, "lr": 0.0, "weight_decay": settings.weight_decay} for g in self.groups],
            betas=(0.9, 0.999),
        )
        self.parameters = {f"{g.name}.{i}": p for g in self.groups for i, p in enumerate(g.parameters)}
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.log_path = files.folder / "log.jsonl"
        self.main = world()[0] == 0

    def resume(self) -> int:
        """Restore the newest checkpoint, cut the log back to it, return the step to go on with."""
        found = self.files.newest()
        if found is None:
            if self.main:
                self.log_path.unlink(missing_ok=True)
            return 0
        path, tensors, description = found
        _same_run(description, self.fingerprint, path)
        _warn_of_other_arithmetic(description, path)
        weights = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
        checkpoint.restore_modules(self.stage.modules(), weights, path)
        packed = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        checkpoint.unpack_optimizer(self.optimizer, self.parameters, packed)
        step = int(description["step"])
        if self.main:  # written in any case: a link that somebody put there is replaced, not followed
            text = read_text(self.log_path, MOST_JSON) if self.log_path.is_file() else ""
            write_text(self.log_path, "".join(line + "\n" for line in text.splitlines() if _logged_step(line) <= step))
        return step

    def save(self, step: int) -> None:
        """Checkpoint after `step` steps."""
        tensors = {f"module.{k}": v for k, v in checkpoint.module_state(self.stage.modules()).items()}
        tensors |= {f"optimizer.{k}": v for k, v in checkpoint.pack_optimizer(self.optimizer, self.names).items()}
        if self.main:
            self.files.save(step, tensors, self.description)

    def run(self) -> None:
        """All remaining steps."""
        settings = self.settings
        step = self.resume()
        saved = time.monotonic()
        board = SummaryWriter(str(self.files.folder / "tensorboard"), purge_step=step) if self.main else None
        self.files.folder.mkdir(parents=True, exist_ok=True)
        with (
            progress(self.stage.name, total=settings.steps, done=step) as bar,
            open(self.log_path, "a", encoding="utf-8") as log,
        ):
            while step < settings.steps:
                row = self.step(step)
                step += 1
                bar.advance(1, note=f"loss {row['loss']:.4f}")
                if self.main and (step % settings.log_steps == 0 or step == settings.steps):
                    log.write(json.dumps({"stage": self.stage.name, "step": step, **row}) + "\n")
                    log.flush()
                    if board is not None:
                        for key, value in row.items():
                            board.add_scalar(f"{self.stage.name}/{key}", value, step)
                if step < settings.steps and (
                    step % settings.checkpoint_steps == 0 or time.monotonic() - saved > settings.checkpoint_seconds
                ):
                    self.save(step)
                    saved = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)  # gradients would stay as long as the modules do
        if board is not None:
            board.close()
        if self.main:
            self.files.finish(checkpoint.module_state(self.stage.modules()), {**self.description, "step": step})
        self.accelerator.wait_for_everyone()

    def step(self, step: int) -> dict[str, float]:
        """One optimiser step; returns what is logged."""
        torch.manual_seed(int(sha256_text(str(self.seed), self.stage.name, str(step))[:15], 16))
        rate = learning_rate(step, self.settings)
        for group, entry in zip(self.groups, self.optimizer.param_groups, strict=True):
            entry["lr"] = rate * group.scale
        with autocast(self.settings, self.accelerator.device):
            losses = self.stage.losses(step)
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        self.check(step, values)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        average_gradients(self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm or math.inf)
        if not math.isfinite(float(norm)):
            self.check(step, self._gradient_norms())
            self.check(step, {"gradient": float(norm)})
        self.optimizer.step()
        return {**values, "gradient_norm": float(norm), "lr": rate}

    def _gradient_norms(self) -> dict[str, float]:
        return {
            f"gradient of {g.name}": float(sum(p.grad.square().sum() for p in g.parameters if p.grad is not None))
            for g in self.groups
        }

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Stop when a value is not finite."""
        bad = [name for name, value in values.items() if not math.isfinite(value) and name != "loss"] or [
            name for name, value in values.items() if not math.isfinite(value)
        ]
        if bad:
            good = self.files.all()
            last = f"last good checkpoint: {good[0]}" if good else "no checkpoint was written yet"
            raise NotFiniteError(
                f"{self.stage.name}, step {step + 1}: {', '.join(bad)} is not finite; training stopped and nothing was "
                f"overwritten ({last}). Lower the learning rate ({self.settings.lr:g}) or check the modality's inputs, "
                "then run the same command."
            )


def _logged_step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 1 << 62  # a half-written last line is dropped
