"""What encoding is made of: evaluation mode, distinct texts by length, cosines, gap correction.

* `evaluating`, `encode_distinct`: used by `Space`. * `similarity`, `correct_gap`: on embeddings.

Shapes: n, m items, d dimension of the space, d_m joint dimension of a modality's model.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.data.batching import length_buckets
from m3bind.errors import NotFiniteError
from m3bind.models.base import Tokens

TOKEN_BUDGET = 4096  # tokens (with padding) encoded at once
Array = NDArray[np.float32]


def similarity(a: Array, b: Array) -> Array:
    """Cosines (n, m) float32 of unit rows (n, d) and (m, d)."""
    return np.asarray(a, np.float32) @ np.asarray(b, np.float32).T


def correct_gap(rows: NDArray[Any], mean: NDArray[Any]) -> Array:
    """(n, d) unit rows without their modality's mean (d,), normalised again, float32 (modality-gap correction)."""
    values: Array = F.normalize(torch.from_numpy(np.asarray(rows, np.float32) - mean), dim=-1).numpy()
    return values


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode, put back afterwards."""
    training = [child for module in modules for child in module.modules() if child.training]
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for child in training:
            child.training = True


def encode_distinct(
    texts: Sequence[str],
    tokenize: Callable[[Sequence[str]], Tokens],
    encode: Callable[[Tokens], Tensor],
    dim: int,
    device: torch.device,
) -> Array:
    """(n, d): each distinct text once, grouped by length."""
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    distinct = list(place)
    out = np.empty((len(distinct), dim), np.float32)
    lengths: list[int] = []
    for start in range(0, len(distinct), 1024):
        lengths += tokenize(distinct[start : start + 1024])["attention_mask"].sum(dim=1).tolist()
    for group in length_buckets(lengths, TOKEN_BUDGET):
        tokens = tokenize([distinct[number] for number in group])
        out[group] = encode({key: value.to(device) for key, value in tokens.items()}).float().cpu().numpy()
    if not np.isfinite(out).all():
        raise NotFiniteError("a text embedding is not finite; look at the weights of the text tower")
    return out[[place[text] for text in texts]]
