"""Stage 0: symmetric InfoNCE between the images and texts of one modality (ECG-CLIP, compact models).

Identical texts of a batch are positives of each other, since statements repeat; with labels, part of the weight may go
to pairs of the same label (`positives: mixed`, label supervision). Features of frozen trunks are already computed.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from m3bind.config import PretrainConfig
from m3bind.data.batching import EpochSampler, rng
from m3bind.training.loop import ParameterGroup
from m3bind.training.pairs import Batch, Pairs, contrastive_loss


class PretrainStage:
    """The training stage of one dual encoder."""

    def __init__(self, pairs: Pairs, settings: PretrainConfig, seed: int) -> None:
        """The model in `pairs` is trained in place."""
        self.name = f"pretrain {pairs.modality}"
        self.pairs, self.settings, self.seed = pairs, settings, seed
        size = settings.batches.get(pairs.modality, settings.batch)
        self.sampler = EpochSampler(len(pairs), size, seed, self.name)
        model = pairs.model
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if pairs.images.level != "input":
            model.image_trunk.requires_grad_(False)
        if pairs.texts.level != "input":
            model.text_trunk.requires_grad_(False)
        model.train()

    def groups(self) -> Sequence[ParameterGroup]:
        """The trainable image tower (with the scale) and text tower, whose learning rate may be lower."""
        name, model = self.pairs.modality, self.pairs.model
        text = {id(p) for part in (model.text_trunk, model.text_head) for p in part.parameters()}
        trained = [p for p in model.parameters() if p.requires_grad]
        return [
            ParameterGroup(name, [p for p in trained if id(p) not in text]),
            ParameterGroup(f"{name} text", [p for p in trained if id(p) in text], self.settings.text_lr),
        ]

    def modules(self) -> Mapping[str, nn.Module]:
        """The dual encoder."""
        return {"model": self.pairs.model}

    @property
    def reads_files(self) -> bool:
        """Whether batches are decoded from files."""
        return self.pairs.images.reads_files

    def batch(self, step: int) -> Batch:
        """Images, augmented with random numbers per image, and their captions."""
        pairs, settings, contrastive = self.pairs, self.settings, self.settings.contrastive
        indices = self.sampler.batch(step)
        captions = pairs.draw_captions(indices, self.seed, step, contrastive.concept_probability)
        random = rng(self.seed, self.name, "view", step)
        view = int(random.integers(pairs.images.views))
        augment = int(random.integers(1 << 62)) if settings.augment else None
        loaded = pairs.load(
            indices, captions, settings, contrastive, view=view, augment=augment, degrade=settings.degrade
        )
        return {"items": len(indices), "pairs": loaded}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 1 on a batch."""
        pairs = self.pairs
        image, text = pairs.encode(batch["pairs"], self.settings)
        scale = pairs.model.logit_scale
        loss = contrastive_loss(image, text, scale, batch["pairs"], self.settings.contrastive)
        return {f"clip/{pairs.modality}": loss, "loss": loss}
