"""C-MCR (Wang et al. 2023, arXiv:2305.14381): a new space, one small network per tower, texts and soft image pairs.

For a text t of the shared pool, tower m has the text embedding x_m(t) and v_m(t), the average of its memory's images
weighted by similarity to t. Noise is added to both. Heads h_m are trained on

    inter  star InfoNCE over towers of h_m(x_m)  +  star InfoNCE over towers of h_m(v_m)
    intra  1/2 mean_m mean_i ||h_m(x_m) - h_m(v_m)||     attraction without repulsion: reduces the modality gap

Differences to the paper: M towers at once, each against the mean of the others; noise of equal strength in every
dimension; and `weighted`: an ECG sentence has an arbitrary average in a memory of retinas, so pairs are weighted by the
confidence of their averages (False: equal weights, as in the paper). The authors published no training code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from m3bind.align.heads import TRAINING, SharedTexts, perturb, star_info_nce, train_heads
from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig
from m3bind.models.bridges import Head
from m3bind.training.loop import seed_torch
from m3bind.training.pairs import Batch


class CMCR(BindingMethod):
    """A head on every tower; zero-shot within a modality may change."""

    name = "cmcr"
    towers = False
    uses = ("images",)
    defaults: ClassVar[Mapping[str, Any]] = {
        **TRAINING,
        "tau": 0.05,  # of both InfoNCE terms
        "aggregation": 0.01,  # temperature of the soft retrieval of images
        "noise": 2.0,  # expected squared norm of the noise on a unit vector
        "lam": 0.1,  # weight of the intra term
        "memory": 20000,  # images of each tower
        "weighted": True,
    }

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Heads d_m -> 2d -> d, trained."""
        o = self.options(settings)
        shared = SharedTexts(inputs, settings, o["batch"])
        images = shared.aggregated(inputs, o["aggregation"], o["memory"])
        heads: dict[str, Head] = {}
        for m, dim in inputs.dims.items():
            seed_torch(inputs.seed, self.name, m)
            heads[m] = Head(dim, settings.dim, 2 * settings.dim)

        def losses(batch: Batch) -> dict[str, Tensor]:
            at, same = batch["at"], batch["same"]
            x = {m: head.text(perturb(shared.texts[m][at], o["noise"])) for m, head in heads.items()}
            v = {m: head.image(perturb(images[m][0][at], o["noise"])) for m, head in heads.items()}
            sure = [images[m][1][at] for m in heads] if o["weighted"] else None
            return cmcr_loss(list(x.values()), list(v.values()), 1 / o["tau"], o["lam"], sure, same)

        return train_heads(self.name, heads, shared.batch, losses, inputs, settings, o)


def cmcr_loss(
    texts: list[Tensor],
    images: list[Tensor],
    scale: float,
    lam: float,
    confidence: list[Tensor] | None = None,
    same: Tensor | None = None,
) -> dict[str, Tensor]:
    """inter + lam * intra of M towers: `texts` and `images` are M tensors (n, d), `confidence` M tensors (n,)."""
    terms = {
        "text": star_info_nce(texts, scale, None, same),
        "image": star_info_nce(images, scale, confidence, same),
        "intra": _attraction(texts, images, confidence),
    }
    return terms | {"loss": terms["text"] + terms["image"] + lam * terms["intra"]}


def _attraction(texts: list[Tensor], images: list[Tensor], confidence: list[Tensor] | None) -> Tensor:
    """Half the mean distance of a text to its tower's average image."""
    each = torch.stack([(x - v).norm(dim=-1) for x, v in zip(texts, images, strict=True)])  # (M, n)
    w = torch.ones_like(each) if confidence is None else torch.stack(confidence).to(each)
    return (w * each).sum() / w.sum().clamp(min=1e-12) / 2
