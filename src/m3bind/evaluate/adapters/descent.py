"""Training of small networks on features in memory within seconds; without checkpoints and log (see training/loop.py).

* `Descent`: optimiser, rate, length; `descend`: the training; `rate`: its schedule.
* `task_loss`: cross-entropy, or binary cross-entropy for several labels; `tensors`: its inputs.

Shapes: n samples, f features, c classes or labels.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.core.files import sha256_text


@dataclass(frozen=True)
class Descent:
    """Optimiser and schedule."""

    lr: float
    epochs: int
    batch: int
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["constant", "cosine", "step"] = "constant"  # step: a tenth of the rate from epoch `step_at` on
    step_at: int = 0
    warmup: int = 0  # steps, linear
    eps: float = 1e-8
    clip: float = 0.0  # maximum norm of the gradient; 0: no limit
    patience: int = 0  # stop after so many epochs without a lower validation loss, and restore the best; 0: never
    min_steps: int = 0  # more epochs if they have fewer steps


def tensors(x: NDArray[np.floating], y: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Inputs as float32; class numbers stay integers, several labels become float32."""
    truth = torch.from_numpy(np.asarray(y))
    return torch.from_numpy(np.asarray(x, dtype=np.float32)), truth.float() if truth.ndim == 2 else truth.long()


def task_loss(logits: Tensor, y: Tensor, positive: Tensor | None = None) -> Tensor:
    """Cross-entropy with class numbers (n,); with labels (n, c) the mean binary one over known labels (not -1).

    `positive` (c,): weights of the positives of each label.
    """
    if y.ndim == 1:
        return F.cross_entropy(logits, y)
    known = y >= 0
    each = F.binary_cross_entropy_with_logits(logits, y.clamp(min=0), pos_weight=positive, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def descend(
    module: nn.Module,
    train: tuple[Tensor, Tensor],
    settings: Descent,
    seed: int,
    valid: tuple[Tensor, Tensor] | None = None,
    positive: Tensor | None = None,
) -> None:
    """Train `module` (inputs (n, f) -> logits (n, c)) on `task_loss`, and leave it in eval mode.

    Order and dropout depend on `seed`; the global random state is unchanged.
    """
    x, y = train
    batches = math.ceil(len(x) / settings.batch)
    epochs = max(settings.epochs, math.ceil(settings.min_steps / batches))
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = kind(parameters, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay, fused=True)
    best_loss, best, waited, step = math.inf, None, 0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sha256_text("descent", str(seed))[:15], 16))
        for epoch in range(epochs):
            module.train()
            for rows in torch.split(torch.randperm(len(x)), settings.batch):
                for group in optimizer.param_groups:
                    group["lr"] = rate(settings, step, epoch, epochs * batches)
                optimizer.zero_grad(set_to_none=True)
                task_loss(module(x[rows]), y[rows], positive).backward()  # type: ignore[no-untyped-call]
                if settings.clip:
                    nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
                optimizer.step()
                step += 1
            if valid is None or not settings.patience:
                continue
            module.eval()
            with torch.no_grad():
                loss = float(task_loss(module(valid[0]), valid[1], positive))
            waited += 1
            if loss < best_loss:
                best_loss, best, waited = loss, copy.deepcopy(module.state_dict()), 0
            if waited >= settings.patience:
                break
    if best is not None:
        module.load_state_dict(best)
    module.eval()


def rate(settings: Descent, step: int, epoch: int, steps: int) -> float:
    """Learning rate of the 0-based `step` of `steps`, in the 0-based `epoch`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "cosine":
        progress = (step - settings.warmup) / max(1, steps - settings.warmup)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * (0.1 if settings.schedule == "step" and epoch >= settings.step_at else 1.0)
