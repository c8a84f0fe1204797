"""The one training loop of all stages: AdamW, warm-up and cosine, clipping, checkpoints, resume, NaN policy, logs.

* `Stage`: interface of a stage: parameter groups, modules to save, `batch(step)` on the host, `losses(batch)`.
* `train(stage, settings, ...)`: trains a stage, or resumes a killed run. The weights are bit-identical to those of an
  uninterrupted run if `provenance.arithmetic` is the same (torch, number of threads, instruction set), which determines
  the order of sums. If it differs, a warning is logged: rounding differs, and further steps amplify it.
* `learning_rate(step, settings)`: linear warm-up, then cosine.
* `seed_torch`: torch's random state as a function of a seed and names.

Random numbers of a step are functions of (seed, stage, step), so they need not be stored. Augmentation draws per item
and is the same on any number of processes; dropout draws per process, so with dropout (of adapters, .1 in the paper) a
run on several processes differs from one on a single process as two seeds do.
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
from torch import Tensor, nn

from m3bind.config import TrainConfig
from m3bind.core import sums
from m3bind.core.device import Compute, maybe_compile, moved, pick
from m3bind.core.files import sha256_text, write_text
from m3bind.core.progress import progress
from m3bind.core.provenance import arithmetic
from m3bind.core.stored import MAX_JSON, read_text
from m3bind.errors import CheckpointError, NotFiniteError
from m3bind.models.frozen import halve
from m3bind.training import checkpoint, loader
from m3bind.training.monitor import Pace, Trackers, profiler
from m3bind.training.pairs import Batch
from m3bind.training.parallel import distributed, wait, world

log = logging.getLogger(__name__)


@dataclass
class ParameterGroup:
    """Parameters whose learning rate is `scale` x the schedule's (s_m of Eq. 4)."""

    name: str
    parameters: list[nn.Parameter]
    scale: float = 1.0


class Stage(Protocol):
    """The interface between the loop and a stage."""

    name: str

    def groups(self) -> Sequence[ParameterGroup]:
        """The trainable parameters."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Modules whose trainable parameters and buffers a checkpoint stores."""

    def batch(self, step: int) -> Batch:
        """Host tensors for step `step` (0-based), a pure function of it; "items" counts the images and texts."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch that was moved to the device; "loss" is minimised."""


def learning_rate(step: int, settings: TrainConfig) -> float:
    """Learning rate of the 0-based `step`: linear warm-up to `lr`, then a cosine to `lr * lr_floor`."""
    warm = max(round(settings.warmup * settings.steps), 1)
    if step < warm:
        return settings.lr * (step + 1) / warm
    progress_ = (step - warm) / max(settings.steps - warm, 1)
    return settings.lr * (settings.lr_floor + (1 - settings.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress_)))


def tower_dtype(settings: TrainConfig, compute: Compute) -> torch.dtype:
    """In which a stage's towers multiply matrices."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}.get(settings.precision, compute.dtype)


def autocast(settings: TrainConfig, compute: Compute) -> AbstractContextManager[None]:
    """The precision of a stage's towers; losses are always computed in float32."""
    return compute.autocast(tower_dtype(settings, compute))


def train(stage: Stage, settings: TrainConfig, folder: Path, seed: int, compute: Compute | None = None) -> None:
    """Train `stage` for `settings.steps` steps and write `folder/final.safetensors` and `folder/log.jsonl`.

    After a killed run, it resumes from the newest checkpoint; after a finished run, it only loads the final weights
    into the stage's modules.

    Raises:
        NotFiniteError: a loss or the gradient is NaN or infinite; names step, loss and the last good checkpoint.
        CheckpointError: the folder contains a state of other settings.
        ResultError: the final weights were changed after they were written.
        DiskError: a checkpoint could not be written.
    """
    files = checkpoint.Checkpoints(folder)
    modules = stage.modules()
    fingerprint = fingerprint_of(stage.name, settings, seed)
    if files.final.exists():
        sums.check(folder, [files.final.name])
        state, description = checkpoint.load_state(files.final)
        _same_run(description, fingerprint, files.final)
        checkpoint.restore_modules(modules, state, files.final)
        return
    compute = compute or pick()
    with repeatable(compute.device):
        _Run(stage, settings, files, fingerprint, seed, compute).run()


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, gradients on a CPU are summed in a fixed order; on a GPU nothing changes.

    Otherwise several threads add the gradients of rows that were gathered repeatedly (`x[ids]`) in arbitrary order: the
    last bits differ from run to run, especially on a busy machine.
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


@contextlib.contextmanager
def half_frozen(modules: Mapping[str, nn.Module], settings: TrainConfig, compute: Compute) -> Iterator[None]:
    """Inside, frozen weights on a GPU are stored in the precision of `autocast`: the same result, half the memory."""
    dtype, restore = tower_dtype(settings, compute), []
    if compute.device.type != "cpu" and dtype != torch.float32:
        restore = [halve(module, dtype) for module in modules.values()]
    try:
        yield
    finally:
        for back in restore:
            back()


def seed_torch(seed: int, *names: str) -> None:
    """Seed torch's random numbers by `seed` and `names` alone."""
    torch.manual_seed(int(sha256_text(str(seed), *names)[:15], 16))


_FREE = {"checkpoint_steps", "checkpoint_seconds", "log_steps"}  # settings that do not change the result
_LATER = {"degrade": 0.0, "consistency": 0.0}  # later settings, with the values that reproduce older versions


def fingerprint_of(name: str, settings: TrainConfig, seed: int) -> str:
    """Hash of what determines the result of the stage `name`, the same for runs of older versions."""
    unchanged = {key for key, value in _LATER.items() if getattr(settings, key, value) == value}
    return sha256_text(name, str(seed), settings.model_dump_json(exclude=_FREE | unchanged))[:16]


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
            "%s: started with other arithmetic (%s): rounding differs, so weights are close but not bit-identical",
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
        compute: Compute,
    ) -> None:
        self.stage, self.settings, self.files, self.seed, self.compute = stage, settings, files, seed, compute
        for module in stage.modules().values():
            module.to(compute.device)
            towers = [getattr(module, name, None) for name in ("image_trunk", "text_trunk", "trunk")]
            maybe_compile(compute, *(tower for tower in towers if isinstance(tower, nn.Module)))
        self.description = {"fingerprint": fingerprint, "arithmetic": arithmetic()}
        self.groups = [g for g in stage.groups() if g.parameters]
        self.optimizer = torch.optim.AdamW(
            [{"params": g.parameters, "lr": 0.0, "weight_decay": settings.weight_decay} for g in self.groups],
            betas=(0.9, 0.999),
            fused=compute.device.type == "cuda",
        )
        self.parameters = {f"{g.name}.{i}": p for g in self.groups for i, p in enumerate(g.parameters)}
        self.names = {id(p): name for name, p in self.parameters.items()}
        self.log_path = files.folder / "log.jsonl"
        self.rank = world()[0]
        self.main = self.rank == 0
        self.losses = distributed(stage.modules().values(), stage.losses)

    def resume(self) -> int:
        """Restore the newest checkpoint, truncate the log to it, return the step to resume at."""
        newest = self.files.newest()
        if newest is None:
            if self.main:
                self.log_path.unlink(missing_ok=True)
            return 0
        path, tensors, description = newest
        _same_run(description, str(self.description["fingerprint"]), path)
        _warn_of_other_arithmetic(description, path)
        weights = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
        checkpoint.restore_modules(self.stage.modules(), weights, path)
        packed = {k.removeprefix("optimizer."): v for k, v in tensors.items() if k.startswith("optimizer.")}
        checkpoint.unpack_optimizer(self.optimizer, self.parameters, packed)
        step = int(description["step"])
        if self.main:  # always written: a link at this path is replaced, not followed
            text = read_text(self.log_path, MAX_JSON) if self.log_path.is_file() else ""
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
        settings, stage, compute, folder = self.settings, self.stage, self.compute, self.files.folder
        step = self.resume()
        saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        trackers = Trackers(compute, stage.name, folder, settings, step) if self.main else None
        pace = Pace(compute)
        with (
            half_frozen(stage.modules(), settings, compute),
            progress(stage.name, total=settings.steps, done=step, shown=self.main) as bar,
            profiler(compute, folder) as profile,
            open(self.log_path, "a", encoding="utf-8") as log,
        ):
            for batch in pace.timed(loader.batches(stage, step, settings.steps, compute)):
                row = self.step(step, batch)
                step += 1
                pace.items += batch["items"]
                bar.advance(1, note=f"loss {row['loss']:.4f}, {pace.note()}")
                if profile is not None:
                    profile.step()
                if trackers is not None and (step % settings.log_steps == 0 or step == settings.steps):
                    log.write(json.dumps({"stage": stage.name, "step": step, **row}) + "\n")
                    log.flush()
                    trackers.log({**row, **pace.values()}, step)
                if step < settings.steps and (
                    step % settings.checkpoint_steps == 0 or time.monotonic() - saved > settings.checkpoint_seconds
                ):
                    self.save(step)
                    saved = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)  # gradients would live as long as the modules
        if trackers is not None:
            trackers.close()
        if self.main:
            self.files.finish(checkpoint.module_state(self.stage.modules()), {**self.description, "step": step})
        wait()

    def step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the values to log. The host waits for the device once, to read them."""
        seed_torch(self.seed, self.stage.name, str(step), *([f"rank {self.rank}"] if self.rank else []))
        rate = learning_rate(step, self.settings)
        for group, entry in zip(self.groups, self.optimizer.param_groups, strict=True):
            entry["lr"] = rate * group.scale
        with autocast(self.settings, self.compute):
            losses = self.losses(moved(batch, self.compute.device))
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm or math.inf)
        measured = torch.stack([*(loss.detach().float() for loss in losses.values()), norm.float()]).tolist()
        values = dict(zip(losses, measured[:-1], strict=True))
        self.check(step, values)
        if not math.isfinite(measured[-1]):
            self.check(step, self._gradient_norms())
            self.check(step, {"gradient": measured[-1]})
        self.optimizer.step()
        return {**values, "gradient_norm": measured[-1], "lr": rate}

    def _gradient_norms(self) -> dict[str, float]:
        return {
            f"gradient of {g.name}": float(sum(p.grad.square().sum() for p in g.parameters if p.grad is not None))
            for g in self.groups
        }

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Stop when a value is not finite."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        bad = [name for name in bad if name != "loss"] or bad
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
