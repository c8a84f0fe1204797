"""Outputs of frozen text trunks, computed once and cached.

* `text_features`: features of texts, each distinct token sequence once.

Shapes: K texts, f feature width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from m3bind.core.device import device_of
from m3bind.data.batching import length_buckets
from m3bind.data.cache import FeatureCache
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.training.pairs import pad, token_lists


def text_features(
    cache: FeatureCache, texts: Sequence[str], model: DualEncoder | TextEncoder, weights_hash: str, label: str
) -> NDArray[np.float32]:
    """(K, f): text trunk features of a dual encoder or text encoder, each distinct token sequence once."""
    sequences = token_lists(model.tokenize, texts)
    if isinstance(model, TextEncoder):
        trunk, features = model.trunk, model.features
    else:
        trunk, features = model.text_trunk, model.text_features
    device = device_of(model)
    order = np.concatenate(length_buckets([len(s) for s in sequences], 1 << 30)) if sequences else np.zeros(0, np.int64)

    @torch.inference_mode()
    def compute(at: list[int]) -> NDArray[np.float32]:
        tokens = {name: rows.to(device) for name, rows in pad([sequences[order[i]] for i in at]).items()}
        return features(tokens).float().cpu().numpy()

    items = [",".join(map(str, sequences[i])) for i in order]
    kind = f"text/{type(trunk).__name__}/{getattr(trunk, 'pooling', '')}"
    rows = np.asarray(cache.get_or_compute(kind, weights_hash, items, compute, 128, f"encode {label}"))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return rows[back]
