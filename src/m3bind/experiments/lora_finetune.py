"""Few-shot by fine-tuning: low-rank adapters in a model's image tower and a linear layer on its features.

* `LoraFinetune`: a few-shot method (`evaluate.adapters.Adapter`) for `few_shot_rows`, trained by training/loop.py.
* `finetune_of`: the method for the files of given records.

The method is not in `evaluate/adapters/` because it needs the tower and the adapters of stage 1, while evaluation uses
only embeddings. AdamW 1e-4 and 50 epochs are those of FLAIR for fine-tuning; its early stopping is not used.

Shapes: n samples, f features, c classes or labels.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.align.lora import freeze_running_stats, inject, lora_parameters
from m3bind.config import LoraConfig, TrainConfig
from m3bind.core.device import device_of, pick
from m3bind.core.files import sha256_text
from m3bind.data.batching import EpochSampler
from m3bind.data.records import Record
from m3bind.evaluate.adapters import Adapter, FewShotProblem, Samples, Scorer
from m3bind.evaluate.adapters.descent import task_loss
from m3bind.evaluate.confidence import Floats
from m3bind.models.base import DualEncoder
from m3bind.pipeline.features import WIDE, FeatureExtractor
from m3bind.training import loop

Inputs = Callable[[Sequence[str]], NDArray[np.float32]]  # ids of files -> model inputs
SETTINGS = TrainConfig(lr=1e-4, batch=16, weight_decay=0.01)
HEAD_LR = 10.0  # learning rate of the new layer as a multiple of the adapters'


class LoraFinetune(Adapter):
    """Adapters in a copy of the image trunk and a linear layer, which starts at zero, on centred features."""

    def __init__(
        self,
        model: DualEncoder,
        inputs: Inputs,
        folder: Path,
        settings: TrainConfig = SETTINGS,
        lora: LoraConfig | None = None,
        epochs: int = 50,
        max_steps: int = 2000,
    ) -> None:
        """The number of steps follows from `epochs` and the samples, up to `max_steps`, not from `settings`.

        Each list of samples and seed trains in a separate folder below `folder`; a finished one is loaded.
        """
        super().__init__("lora_finetune")
        self.model, self.inputs, self.folder, self.settings = model, inputs, folder, settings
        self.lora, self.epochs, self.max_steps = lora, epochs, max_steps

    def fit(self, train: Samples, valid: Samples | None, problem: FewShotProblem) -> Scorer:
        """A scorer of the adapted tower; `valid` is not used, the model does not change.

        Raises:
            ConfigError: the model's card names no LoRA targets for images.
            NotFiniteError: training diverged.
        """
        model, compute = _with_own_trunk(self.model), pick(str(device_of(self.model)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(problem.seed)
            inject(model, "image", self.lora)
            tower = _TunedTower(model, np.asarray(train.features), len(problem.classes)).to(compute.device)
        freeze_running_stats(tower.trunk)
        size = len(train)
        steps = min(self.epochs * (size // min(self.settings.batch, size)), self.max_steps)
        settings = self.settings.model_copy(update={"steps": steps})
        stage = _Stage(tower, train, self.inputs, settings.batch, problem.seed)
        name = sha256_text(str(problem.seed), str(self.lora), *train.ids)[:16]
        tower.trunk.train()
        loop.train(stage, settings, self.folder / name, problem.seed, compute)
        tower.eval()

        @torch.inference_mode()
        def scores(samples: Samples) -> Floats:
            parts = [samples.ids[i : i + settings.batch] for i in range(0, len(samples), settings.batch)]
            logits = [tower(torch.from_numpy(self.inputs(part)).to(compute.device)) for part in parts]
            return torch.cat(logits).cpu().double().numpy()

        return scores


def finetune_of(
    model: DualEncoder, records: Sequence[Record], encoder: FeatureExtractor, folder: Path, **options: Any
) -> LoraFinetune:
    """The method for samples whose ids are those of `records`; `options` as in `LoraFinetune`."""
    place = {record.id: i for i, record in enumerate(records)}
    rows = encoder.inputs(records, model)

    def inputs(ids: Sequence[str]) -> NDArray[np.float32]:
        return np.ascontiguousarray(rows[[place[identity] for identity in ids]], dtype=np.float32)

    return LoraFinetune(model, inputs, folder, **options)


def _with_own_trunk(model: DualEncoder) -> DualEncoder:
    """The model with a copy of its image trunk; everything else is shared."""
    copied = copy.copy(model)
    copied._modules = dict(model._modules)
    copied.image_trunk = copy.deepcopy(model.image_trunk)
    return copied


class _TunedTower(nn.Module):
    """Inputs (n, ...) -> logits (n, c)."""

    mean: Tensor
    spread: Tensor

    def __init__(self, model: DualEncoder, features: NDArray[Any], classes: int) -> None:
        super().__init__()
        self.trunk, self.head = model.image_trunk, nn.Linear(features.shape[1], classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.from_numpy(features.mean(0)).float())
        self.register_buffer("spread", torch.tensor(float(features.std(0).mean())).clamp(min=1e-6))
        wide = getattr(model.image_head, "in_features", 0) > WIDE
        self.features: Callable[[Tensor], Tensor] = model.encode_image if wide else model.image_features

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        return self.head((self.features(inputs).float() - self.mean) / self.spread)  # type: ignore[no-any-return]


class _Stage:
    """The training stage."""

    name = "lora_finetune"

    def __init__(self, tower: _TunedTower, samples: Samples, inputs: Inputs, batch: int, seed: int) -> None:
        self.tower, self.samples, self.inputs = tower, samples, inputs
        self.sampler = EpochSampler(len(samples), batch, seed, "finetune")
        truth = torch.from_numpy(samples.labels)
        self.truth = truth.float() if samples.several else truth.long()

    def groups(self) -> list[loop.ParameterGroup]:
        """The adapters and the new layer."""
        adapters = list(lora_parameters(self.tower.trunk).values())
        return [
            loop.ParameterGroup("lora", adapters),
            loop.ParameterGroup("head", list(self.tower.head.parameters()), HEAD_LR),
        ]

    def modules(self) -> Mapping[str, nn.Module]:
        """The trunk and the new layer."""
        return {"trunk": self.tower.trunk, "head": self.tower.head}

    def batch(self, step: int) -> dict[str, Any]:
        """Inputs and labels."""
        rows = self.sampler.batch(step)
        inputs = torch.from_numpy(self.inputs([self.samples.ids[i] for i in rows]))
        return {"items": len(rows), "inputs": inputs, "truth": self.truth[torch.from_numpy(rows)]}

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss of a batch."""
        return {"loss": task_loss(self.tower(batch["inputs"]), batch["truth"])}
