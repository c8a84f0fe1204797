"""BERT's tokens without padding: what a CPU computes fastest.

* `Packed`: the real tokens of texts sorted by length, and attention within each text.

Shapes: n texts, L padded length, T real tokens of all texts together, H hidden width, A attention heads.

Attention is computed in groups of texts of equal length, so no mask is needed and the result of a text depends neither
on the padding nor on its neighbours: many small operations, and lengths that the host knows.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Packed:
    """The tokens of n texts as one (T, H) matrix, longest text first."""

    joined = False

    def __init__(self, real: Tensor, lengths: Tensor) -> None:
        """`real` is bool (n, L), `lengths` int64 (n,) its sums, descending."""
        self.real, self.lengths = real, lengths
        # (number of texts, their common length)
        self.groups = [(len(list(run)), length) for length, run in itertools.groupby(lengths.tolist())]

    def embed(self, embeddings: Any, ids: Tensor) -> Tensor:
        """(n, L) -> (T, H)."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)[self.real]
        out: Tensor = embeddings(input_ids=ids[self.real][None], position_ids=positions[None])[0]
        return out

    def attention(self, own: Any, projected: tuple[Tensor, ...], dropout: float) -> Tensor:
        """Query, key and value -> as the queries, which are those of all tokens (T, H) or of first tokens (n, H)."""
        tokens = [count * length for count, length in self.groups]
        q, k, v = projected
        queries = tokens if len(q) == len(k) else [count for count, _ in self.groups]
        mixed = []
        parts = zip(torch.split(q, queries), torch.split(k, tokens), torch.split(v, tokens), self.groups)
        for *rows, (count, _) in parts:
            # each (count, A, length, H / A)
            a, b, c = (
                x.view(count, -1, own.num_attention_heads, own.attention_head_size).transpose(1, 2) for x in rows
            )
            out = F.scaled_dot_product_attention(a, b, c, dropout_p=dropout, scale=own.scaling)
            mixed.append(out.transpose(1, 2).reshape(-1, q.shape[1]))
        return torch.cat(mixed)

    def first(self, x: Tensor) -> Tensor:
        """First tokens, (T, H) -> (n, H)."""
        return x[self.lengths.cumsum(0) - self.lengths]

    def pool(self, x: Tensor, pooling: str) -> Tensor:
        """(T, H) -> (n, H): first ("cls") or last tokens ("last"), or their mean ("mean")."""
        if pooling == "cls":
            return self.first(x)
        if pooling == "last":
            return x[self.lengths.cumsum(0) - 1]
        text = torch.repeat_interleave(self.lengths)  # (T,) the text of each token
        sums = x.new_zeros(len(self.lengths), x.shape[1]).index_add(0, text, x)
        return sums / self.lengths[:, None].to(x.dtype)

    def spread(self, x: Tensor) -> Tensor:
        """(T, H) -> (n, L, H), zero at padding."""
        return x.new_zeros(*self.real.shape, x.shape[1]).index_put((self.real,), x)
