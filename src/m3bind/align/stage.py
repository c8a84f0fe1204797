"""Stage 1: one step of text-space alignment.

A step samples one image-text batch per modality (Eq. 1) and one shared text batch that every text tower encodes (Eq.
2). A tower encodes both in one call, each distinct text once. Total: Eq. 6. Beyond the paper, `align.consistency` draws
augmented copies of an image, which may have lost quality (`pretrain.views`, `.degrade`), to the image.

Shapes: n pairs of a batch, s shared texts, d dimension of the bound space.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from m3bind.align import lora
from m3bind.align.balance import learning_rate_scales, loss_weights
from m3bind.align.methods.base import BindingInputs
from m3bind.align.objective import text_contrastive, text_mse, total
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig
from m3bind.data.batching import EpochSampler, PoolSampler, rng
from m3bind.models.base import DualEncoder
from m3bind.training.loop import ParameterGroup, seed_torch
from m3bind.training.pairs import Batch, Pairs, contrastive_loss


class AlignStage:
    """The training stage; towers and bridges are trained in place."""

    name = "align"

    def __init__(self, inputs: BindingInputs, bridges: Mapping[str, BaseBridge], settings: AlignConfig) -> None:
        """`bridges`: initial bridges, one per modality of `inputs.pairs`."""
        self.pairs, self.bridges, self.settings, self.seed = inputs.pairs, bridges, settings, inputs.seed
        balance, sizes = settings.balance, inputs.sizes
        self.weights = loss_weights(sizes, balance.literal) if balance.weights else dict.fromkeys(sizes, 1.0)
        self.scales = learning_rate_scales(sizes, balance.literal) if balance.lr else dict.fromkeys(sizes, 1.0)
        shares = inputs.pool_probabilities(balance)
        self.pool = PoolSampler(
            [inputs.pool[m] for m in self.pairs], [shares[m] for m in self.pairs], settings.shared_batch, self.seed
        )
        self.samplers = {
            m: EpochSampler(len(pairs), settings.batches.get(m, settings.batch), self.seed, f"align {m}")
            for m, pairs in self.pairs.items()
        }
        for modality, pairs in self.pairs.items():
            seed_torch(self.seed, "lora", modality)
            set_trainable(pairs.model, settings)
            bridges[modality].requires_grad_(settings.train_bridge and settings.image != "frozen")

    def groups(self) -> Sequence[ParameterGroup]:
        """Per modality: tower parameters and bridge, with Eq. 4's learning-rate scale."""
        groups = []
        for m, pairs in self.pairs.items():
            groups.append(ParameterGroup(m, [p for p in pairs.model.parameters() if p.requires_grad], self.scales[m]))
            bridge = [p for p in self.bridges[m].parameters() if p.requires_grad]
            groups.append(ParameterGroup(f"{m} bridge", bridge, self.scales[m] * self.settings.bridge_lr))
        return groups

    def modules(self) -> Mapping[str, nn.Module]:
        """Dual encoders (only trainable parameters are saved) and bridges."""
        towers: dict[str, nn.Module] = {f"model.{m}": pairs.model for m, pairs in self.pairs.items()}
        return towers | {f"bridge.{m}": bridge for m, bridge in self.bridges.items()}

    @property
    def reads_files(self) -> bool:
        """Whether batches are decoded from files."""
        return any(pairs.images.reads_files for pairs in self.pairs.values())

    def batch(self, step: int) -> Batch:
        """The shared texts' ids, and per modality a batch of pairs whose texts include the shared ones."""
        settings = self.settings
        shared, _ = self.pool.batch(step)
        loaded, items = {}, len(shared)
        for m, pairs in self.pairs.items():
            indices = self.samplers[m].batch(step)
            captions = pairs.draw_captions(indices, self.seed, step, settings.contrastive.concept_probability)
            loaded[m] = pairs.load(indices, captions, settings, settings.contrastive, further=shared)
            if settings.consistency and pairs.images.views > 1:
                view = int(rng(self.seed, "copy", m, step).integers(1, pairs.images.views))
                loaded[m]["copies"] = pairs.images.load(indices, view)
            items += len(indices)
        return {"items": items, "shared": torch.from_numpy(shared), "pairs": loaded}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 6: sum_m w_m L_CLIP(m) + lambda sum_{a<b} w_a w_b L_MSE(a, b), plus options."""
        settings = self.settings
        clip: dict[str, Tensor] = {}
        drift: dict[str, Tensor] = {}
        shared_texts: list[Tensor] = []
        for m, pairs in self.pairs.items():
            clip[m], text, image = self._modality(m, pairs, batch["pairs"][m])
            shared_texts.append(text)
            if "copies" in batch["pairs"][m]:
                drift[m] = self._drift(m, pairs, batch["pairs"][m]["copies"], image)
        weights = [self.weights[m] for m in self.pairs]
        mse = contrastive = None
        if len(shared_texts) > 1:
            mse = text_mse(shared_texts, weights, reduction=settings.mse_reduction)
            if settings.text_contrastive:
                scale = settings.text_contrastive_scale
                contrastive = text_contrastive(shared_texts, scale, weights, batch["shared"])
        text_term = contrastive, settings.text_contrastive
        return total(clip, self.weights, mse, settings.mse_weight, *text_term, drift, settings.consistency)

    def _modality(self, m: str, pairs: Pairs, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 1 of one modality, its embeddings (s, d) of the shared texts, and those (n, d) of its images."""
        image, text = pairs.encode(batch, self.settings)
        bridge = self.bridges[m]
        text = bridge.text(text)
        own, common = text[: len(image)], text[len(image) :]
        image = bridge.image(image)
        scale = pairs.model.logit_scale.detach()
        return contrastive_loss(image, own, scale, batch, self.settings.contrastive), common, image

    def _drift(self, m: str, pairs: Pairs, copies: Batch, image: Tensor) -> Tensor:
        """Mean squared distance of copies of images to their embeddings (n, d), which are not drawn to the copies."""
        rows = self.bridges[m].image(pairs.images.encode(copies, self.settings.micro(m)))
        return (rows - image.detach()).square().sum(-1).mean()


def set_trainable(model: DualEncoder, settings: AlignConfig) -> None:
    """Freeze all but the parts that the settings train; modules with running statistics stay in eval mode."""
    model.requires_grad_(False)
    model.train()
    if settings.text == "lora":
        lora.inject(model, "text", settings.lora)
    elif settings.text == "head":
        model.text_head.requires_grad_(True)
    if settings.image == "lora":
        lora.inject(model, "image", settings.lora)
    elif settings.image == "head":
        model.image_head.requires_grad_(True)
    lora.freeze_running_stats(model)
