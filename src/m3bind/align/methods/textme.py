"""TextME (arXiv:2602.03098): a small network maps each tower's texts to an anchor space; images use the means.

Training uses texts alone. The head maps a text embedding minus the mean text to the anchor's embedding of that text; an
image is later mapped as its embedding minus the mean *image*, by the same head. Loss, text to anchor only: with s_ij
the cosines of a batch, the negatives of row i are those j with .1 s_ii <= s_ij <= .9 s_ii. At the start, while s_ii <=
0, that interval is empty, so the first `warm` steps use all of them and both directions.

`target` is a kind of text encoder (see models.layers.text_encoder, e.g. minilm), or "" for the Procrustes mean of all
towers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.align.heads import TRAINING, SharedTexts, train_heads, weighted_info_nce
from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.methods.procrustes import procrustes_bridges
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig
from m3bind.errors import ConfigError
from m3bind.models.bridges import Head
from m3bind.models.embedding import encode_distinct, evaluating
from m3bind.models.layers.text_encoder import make_text_encoder
from m3bind.training.loop import seed_torch
from m3bind.training.pairs import Batch


class TextME(BindingMethod):
    """A head on every tower, trained on texts alone; only the mean of the images is used."""

    name = "textme"
    towers = False
    uses = ("image means",)
    defaults: ClassVar[Mapping[str, Any]] = {**TRAINING, "lr": 5e-4, "target": "", "tau": 0.07, "warm": 100}

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Heads d_m -> 2d_m -> d, trained.

        Raises:
            ConfigError: the target's dimension is not `align.dim`.
        """
        o = self.options(settings)
        shared = SharedTexts(inputs, settings, o["batch"])
        target = self._target(inputs, settings, shared, o["target"])
        heads: dict[str, Head] = {}
        for m, dim in inputs.dims.items():
            seed_torch(inputs.seed, self.name, m)
            heads[m] = Head(dim, settings.dim, 2 * dim, activation="gelu")
            heads[m].offset_text.copy_(shared.texts[m].mean(0))
            heads[m].offset_image.copy_(inputs.embed_images(m).mean(0))

        def losses(batch: Batch) -> dict[str, Tensor]:
            at, same = batch["at"], batch["same"]
            loss = weighted_info_nce if batch["step"] < o["warm"] else hard_negative_loss
            named = {
                m: loss(head.text(shared.texts[m][at]), target[at], 1 / o["tau"], same=same)
                for m, head in heads.items()
            }
            return named | {"loss": torch.stack(list(named.values())).mean()}

        return train_heads(self.name, heads, shared.batch, losses, inputs, settings, o)

    @torch.no_grad()
    def _target(self, inputs: BindingInputs, settings: AlignConfig, shared: SharedTexts, kind: str) -> Tensor:
        """(K, d) unit rows of the pool texts in the anchor space."""
        if not kind:
            bridges = procrustes_bridges(inputs, settings)
            total = torch.stack([b.text(shared.texts[m]) for m, b in bridges.items()]).sum(0)
            return F.normalize(total, dim=-1)
        try:
            encoder = make_text_encoder(kind, dim=settings.dim, head="identity")
        except ConfigError as error:
            raise ConfigError(f"align.options.target={kind}: set align.dim to that encoder's width ({error})") from None
        table = next(iter(inputs.pairs.values())).texts.table
        with evaluating(encoder):
            texts = table.take(np.asarray(shared.ids))
            rows = encode_distinct(texts, encoder.tokenize, encoder.encode, settings.dim, torch.device("cpu"))
        return torch.from_numpy(np.asarray(rows))


def hard_negative_loss(rows: Tensor, target: Tensor, scale: float, same: Tensor | None = None) -> Tensor:
    """Mean_i of -log(exp(scale s_ii) / sum_{j = i or .1 s_ii <= s_ij <= .9 s_ii} exp(scale s_ij)); (n, d), (n, d).

    `same` (n, n) bool: other rows with the same text are never negatives.
    """
    cosines = rows @ target.T
    own = cosines.diagonal()[:, None]
    eye = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    negatives = (cosines >= 0.1 * own) & (cosines <= 0.9 * own)
    if same is not None:
        negatives &= ~same.to(negatives.device)
    logits = (scale * cosines).masked_fill(~(negatives | eye), -torch.inf)
    return (logits.logsumexp(1) - logits.diagonal()).mean()
