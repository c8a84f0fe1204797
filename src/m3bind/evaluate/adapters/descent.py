"""Small networks on features in memory, trained in seconds: no checkpoints, no log (those are training/loop.py's).

* `Descent`: optimiser, rate, length. * `descend`: runs it.
* `task_loss`: cross-entropy, or its form for several labels.

Shapes: n samples, f features, c classes or labels.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.core.files import sha256_text


@dataclass(frozen=True)
class Descent:
    """How a network is trained."""

    lr: float
    epochs: int
    batch: int
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "adam"] = "adamw"
    schedule: Literal["constant", "cosine", "step"] = "constant"  # step: a tenth of the rate from epoch `step_at` on
    step_at: int = 0
    warmup: int = 0  # steps, linear
    eps: float = 1e-8
    clip: float = 0.0  # largest norm of the gradient; 0: any
    patience: int = 0  # stop after so many epochs without a lower validation loss, and keep the best; 0: never
    least_steps: int = 0  # more epochs where they would be fewer steps


def tensors(x: NDArray[Any], y: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Inputs as float32; class numbers stay integers, several labels become float32."""
    truth = torch.from_numpy(np.asarray(y))
    return torch.from_numpy(np.asarray(x, dtype=np.float32)), truth.float() if truth.ndim == 2 else truth.long()


def task_loss(logits: Tensor, y: Tensor, positive: Tensor | None = None) -> Tensor:
    """Cross-entropy with class numbers (n,); with labels (n, c) the mean binary one over known labels (not -1).

    `positive` (c,) weighs the positives of each label.
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

    Order and dropout are drawn from `seed`; the global random state is left as it was.
    """
    x, y = train
    batches = math.ceil(len(x) / settings.batch)
    epochs = max(settings.epochs, math.ceil(settings.least_steps / batches))
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = kind(parameters, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay, fused=True)
    best, kept, waited, step = math.inf, None, 0, 0
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
            if loss < best:
                best, kept, waited = loss, copy.deepcopy(module.state_dict()), 0
            if waited >= settings.patience:
                break
    if kept is not None:
        module.load_state_dict(kept)
    module.eval()


def rate(settings: Descent, step: int, epoch: int, steps: int) -> float:
    """Learning rate of the 0-based `step` of `steps`, in the 0-based `epoch`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "cosine":
        done = (step - settings.warmup) / max(1, steps - settings.warmup)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    return settings.lr * (0.1 if settings.schedule == "step" and epoch >= settings.step_at else 1.0)
