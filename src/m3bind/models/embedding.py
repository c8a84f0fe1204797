"""Encoding and its arithmetic: evaluation mode, distinct texts by length, cosines, gap correction.

* `evaluating`: evaluation mode as a context. * `similarity`, `softmax`, `correct_gap`: on embeddings.
* `encode_distinct`: many texts through one tower, each once. * `text_dtype`: the precision of a tower.

Shapes: n, m items, L tokens, d dimension of the space, d_m joint dimension of a modality's model.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.core.progress import progress
from m3bind.data.batching import length_buckets
from m3bind.errors import NotFiniteError
from m3bind.models.base import Tokens
from m3bind.models.frozen import MIN_COSINE, FrozenPass, agreement

TOKEN_BUDGET = 4096  # tokens (with padding) per batch
WINDOW = 1 << 16  # texts whose tokens are held at once
CHUNK = 512  # texts tokenised at once
LONG_JOB = 2000  # texts from which progress is shown
MEAN_COSINE = 0.9999  # of half precision to float32, below which texts are encoded in float32
# Texts on which half precision is compared with float32: a word, and reports of growing length.
PROBES = (
    "Pneumonia",
    "12-lead ECG showing atrial fibrillation with rapid ventricular response",
    *(
        "Heart size is normal. No pleural effusion or pneumothorax. " * repeats
        + "Patchy opacity in the left lower lobe, 2.3 cm, suspicious for infection; follow-up is recommended."
        for repeats in (0, 2, 5, 10, 16)
    ),
)
Array = NDArray[np.float32]


def similarity(a: Array, b: Array) -> Array:
    """Cosines (n, m) float32 of unit rows (n, d) and (m, d)."""
    return np.asarray(a, np.float32) @ np.asarray(b, np.float32).T


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Rows (n, m) that sum to 1."""
    weights = np.exp(np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


def correct_gap(rows: NDArray[Any], mean: NDArray[Any]) -> Array:
    """(n, d) unit rows minus their modality's mean (d,), normalised again, float32 (modality-gap correction)."""
    values: Array = F.normalize(torch.from_numpy(np.asarray(rows, np.float32) - mean), dim=-1).numpy()
    return values


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """No gradients and evaluation mode; the modules' modes are restored afterwards."""
    training = [child for module in modules for child in module.modules() if child.training]
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for child in training:
            child.training = True


class _TokenRows:
    """Texts as token ids without padding, tokenised once; batches of any of them, padded to the longest.

    If the tokenizer pads even a single text (to a length its model needs), its padding is retained.
    """

    def __init__(self, tokenize: Callable[[Sequence[str]], Tokens], texts: Sequence[str]) -> None:
        shortest = min(range(len(texts)), key=lambda number: len(texts[number]))
        alone = tokenize([texts[shortest]])
        self.keys = list(alone)
        padded = alone["attention_mask"].shape[1] > int(_used(alone)[0])
        self.rows: list[NDArray[np.int32]] = []  # (keys, tokens) each
        for start in range(0, len(texts), CHUNK):
            tokens = tokenize(texts[start : start + CHUNK])
            stacked = torch.stack([tokens[key] for key in self.keys], 1).to(torch.int32).numpy()
            ends = [stacked.shape[2]] * len(stacked) if padded else _used(tokens).tolist()
            self.rows += [row[:, :end].copy() for row, end in zip(stacked, ends)]
        self.lengths = [row.shape[1] for row in self.rows]
        order = np.argsort(self.lengths, kind="stable")
        pair = tokenize([texts[order[0]], texts[order[-1]]])
        self._padding = [int(pair[key][0, -1]) for key in self.keys]  # after the shorter text of a pair

    def batch(self, numbers: Sequence[int]) -> Tokens:
        """Tokens (n, L) of the texts `numbers`."""
        longest = max(self.lengths[number] for number in numbers)
        tokens = {}
        for place, key in enumerate(self.keys):
            table = np.full((len(numbers), longest), self._padding[place], np.int64)
            for row, number in enumerate(numbers):
                table[row, : self.lengths[number]] = self.rows[number][place]
            tokens[key] = torch.from_numpy(table)
        return tokens


def _used(tokens: Tokens) -> Tensor:
    """(n,) columns up to the last real token, at least 1."""
    mask = tokens["attention_mask"].bool()
    columns = torch.arange(1, mask.shape[1] + 1)
    return (mask * columns).amax(1).clamp(min=1)


def encode_distinct(
    texts: Sequence[str],
    tokenize: Callable[[Sequence[str]], Tokens],
    encode: Callable[[Tokens], Tensor],
    dim: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Array:
    """(n, d) unit rows: each distinct text tokenised and encoded once, texts of similar length together.

    Args:
        texts: n texts.
        tokenize: the tower's tokenizer.
        encode: tokens -> (n, d) unit rows, without gradient.
        dim: d.
        device: where the tower is.
        dtype: precision of matrix products; rows come back as float32 unit rows in any case.

    Raises:
        NotFiniteError: a row is NaN or infinite.
    """
    distinct, forward = list(dict.fromkeys(texts)), FrozenPass(encode, device, dtype)
    out = np.empty((len(distinct), dim), np.float32)
    long = len(distinct) >= LONG_JOB
    with progress("encode texts", len(distinct)) if long else contextlib.nullcontext() as bar:
        for start in range(0, len(distinct), WINDOW):
            rows = _TokenRows(tokenize, distinct[start : start + WINDOW])
            for group in length_buckets(rows.lengths, TOKEN_BUDGET):
                out[start + group] = _rows(forward, rows.batch(group.tolist()), dtype).numpy()
                if bar is not None:
                    bar.advance(len(group))
    if not np.isfinite(out).all():
        raise NotFiniteError("a text embedding is not finite; check the weights of the text tower")
    if len(distinct) == len(texts):
        return out
    place = {text: number for number, text in enumerate(distinct)}
    return out[[place[text] for text in texts]]


def _rows(encode: FrozenPass, tokens: Tokens, dtype: torch.dtype) -> Tensor:
    """(n, d) unit rows; rounded ones are a little shorter or longer."""
    rows = encode(tokens)
    return rows if dtype == torch.float32 else F.normalize(rows, dim=-1)


def text_dtype(
    tokenize: Callable[[Sequence[str]], Tokens],
    encode: Callable[[Tokens], Tensor],
    device: torch.device,
    preferred: torch.dtype,
) -> tuple[torch.dtype, float, float]:
    """`preferred` if its rows of `PROBES` are close to those of float32, else float32; mean and smallest cosine."""
    if preferred == torch.float32:
        return preferred, 1.0, 1.0
    tokens = tokenize(list(PROBES))
    exact, rounded = (_rows(FrozenPass(encode, device, dtype), tokens, dtype) for dtype in (torch.float32, preferred))
    cosines = agreement(exact, rounded)
    close = cosines.mean >= MEAN_COSINE and cosines.smallest >= MIN_COSINE
    return (preferred if close else torch.float32), *cosines
