"""Ex-MCR (Zhang et al. 2023, arXiv:2310.08884): leaf spaces are mapped into an unchanged base space.

A leaf's head is a linear map that starts as the identity, then two small networks. With x(t), v(t) the text embedding
and the averaged images of a text in the leaf, X(t), V(t) the same in the base (see cmcr):

    L = 1/4 sum over {x, v} x {X, V} of InfoNCE(head(leaf side), base side)  +  lam mean ||linear(x) - linear(v)||

`base` is a modality, whose bridge is then the identity and whose zero-shot is unchanged; or "" for the Procrustes mean
of all towers, where every modality is a leaf. Confidence weights and noise as in cmcr. The authors' training code is
not public.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.align.heads import TRAINING, SharedTexts, aggregate, perturb, train_heads, weighted_info_nce
from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.methods.procrustes import identity_bridges, procrustes_bridges
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig
from m3bind.errors import UnknownNameError
from m3bind.models.bridges import Head, freeze
from m3bind.training.loop import seed_torch
from m3bind.training.pairs import Batch


class ExMCR(BindingMethod):
    """A head on every leaf."""

    name = "exmcr"
    towers = False
    uses = ("images",)
    defaults: ClassVar[Mapping[str, Any]] = {
        **TRAINING,
        "base": "",  # a modality, or "": the Procrustes mean
        "tau": 0.05,
        "aggregation": 0.01,
        "noise": 2.0,
        "lam": 0.1,
        "memory": 20000,
        "weighted": True,
    }

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Trained heads of the leaves, and the identity for the base if it is a modality.

        Raises:
            UnknownNameError: `base` is not a modality of the run.
        """
        o = self.options(settings)
        base = o["base"]
        if base and base not in inputs.pairs:
            raise UnknownNameError("modality for align.options.base", base, inputs.pairs)
        shared = SharedTexts(inputs, settings, o["batch"])
        images = shared.aggregated(inputs, o["aggregation"], o["memory"])
        target, target_images, target_sure, base_bridge = self._base(inputs, settings, shared, o)
        heads: dict[str, Head] = {}
        for m, dim in inputs.dims.items():
            if m != base:
                seed_torch(inputs.seed, self.name, m)
                heads[m] = Head(dim, settings.dim, 2 * settings.dim, blocks=2, stem=True)

        def losses(batch: Batch) -> dict[str, Tensor]:
            at, same = batch["at"], batch["same"]
            named: dict[str, Tensor] = {}
            for m, head in heads.items():
                x, v = perturb(shared.texts[m][at], o["noise"]), perturb(images[m][0][at], o["noise"])
                sure = images[m][1][at] if o["weighted"] else None
                sides = (target[at], target_images[at], target_sure[at] if o["weighted"] else None)
                dense = dense_loss((head.text(x), head.image(v), sure), sides, 1 / o["tau"], same)
                gap = (head.stem(x) - head.stem(v)).norm(dim=-1)
                named[m] = dense + o["lam"] * (gap.mean() if sure is None else (sure * gap).sum() / sure.sum())
            return named | {"loss": torch.stack(list(named.values())).mean()}

        return train_heads(self.name, heads, shared.batch, losses, inputs, settings, o) | base_bridge

    @torch.no_grad()
    def _base(
        self, inputs: BindingInputs, settings: AlignConfig, shared: SharedTexts, o: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, BaseBridge]]:
        """Base texts (K, d), averaged base images (K, d), their confidence (K,), and the base modality's bridge."""
        if o["base"]:
            m = o["base"]
            bridges = {m: identity_bridges(inputs, settings)[m]}
            texts = bridges[m].text(shared.texts[m])
        else:
            bridges = procrustes_bridges(inputs, settings)
            texts = F.normalize(sum(b.text(shared.texts[m]) for m, b in bridges.items()), dim=-1)  # type: ignore[arg-type]
        memory = torch.cat([b.image(inputs.embed_images(m, o["memory"])) for m, b in bridges.items()])
        rows, sure = aggregate(texts, memory, o["aggregation"])
        return texts, rows, sure, {m: freeze(b) for m, b in bridges.items()} if o["base"] else {}


def dense_loss(
    leaf: tuple[Tensor, Tensor, Tensor | None],
    base: tuple[Tensor, Tensor, Tensor | None],
    scale: float,
    same: Tensor | None = None,
) -> Tensor:
    """Mean of the four InfoNCE terms; each side is (texts (n, d), averaged images (n, d), confidence (n,) or None).

    A text has confidence 1; a term's rows are weighted by the product of both sides' confidence.
    """
    ones = torch.ones(len(leaf[0]), device=leaf[0].device)
    sides = [[(side[0], ones), (side[1], ones if side[2] is None else side[2])] for side in (leaf, base)]
    terms = [weighted_info_nce(a, b, scale, u * w, same) for a, u in sides[0] for b, w in sides[1]]
    return torch.stack(terms).mean()
