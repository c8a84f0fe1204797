"""BERT's tokens with padding and a mask: what a GPU computes fastest.

* `Padded`: the tokens of texts in the shape they have, and masked attention.

Shapes: n texts, L padded length, T = n L tokens, padding included, H hidden width, A attention heads.

A GPU waits for the host to start each operation, and for the host to learn a number such as a length: here are few
operations, whose sizes are those of the input. What padding costs is for the caller to save: it knows the lengths
before the tokens leave the host, and groups texts by them. `torch.nn.attention.varlen` computes nothing for padding,
but needs the number of real tokens on the host, half precision and an NVIDIA GPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Padded:
    """The tokens of n texts as one (T, H) matrix, text by text."""

    joined = True  # query, key and value are one product

    def __init__(self, real: Tensor) -> None:
        """`real` is bool (n, L)."""
        self.real = real
        self._bias: Tensor | None = None

    def embed(self, embeddings: Any, ids: Tensor) -> Tensor:
        """(n, L) -> (T, H); NaN for a text without tokens, since to look for one the host would wait."""
        out: Tensor = embeddings(input_ids=ids)
        empty = ~self.real.any(1)
        return out.masked_fill(empty[:, None, None], float("nan")).flatten(0, 1)

    def attention(self, own: Any, projected: tuple[Tensor, ...], dropout: float) -> Tensor:
        """Query, key and value, or several of them side by side -> (T, H), or (n, H) with queries of first tokens."""
        q, k, v = (heads for matrix in projected for heads in self._heads(own, matrix))
        bias = self._mask(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=own.scaling)
        return out.transpose(1, 2).reshape(-1, own.all_head_size)

    def _heads(self, own: Any, matrix: Tensor) -> tuple[Tensor, ...]:
        """(T, k H) -> k tensors (n, A, L, H / A)."""
        count = matrix.shape[1] // own.all_head_size
        split = matrix.view(len(self.real), -1, count, own.num_attention_heads, own.attention_head_size)
        return split.permute(2, 0, 3, 1, 4).unbind()

    def _mask(self, dtype: torch.dtype) -> Tensor:
        """(n, 1, 1, L) to add to the scores: attention would make it of a boolean mask in every layer again."""
        if self._bias is None or self._bias.dtype != dtype:
            zeros = torch.zeros(self.real.shape, dtype=dtype, device=self.real.device)
            self._bias = zeros.masked_fill_(~self.real, float("-inf"))[:, None, None]
        return self._bias

    def first(self, x: Tensor) -> Tensor:
        """First tokens, (T, H) -> (n, H)."""
        return self._texts(x)[:, 0]

    def pool(self, x: Tensor, pooling: str) -> Tensor:
        """(T, H) -> (n, H): first ("cls") or last real tokens ("last"), the mean of real ("mean") or all ("padded")."""
        if pooling == "mean":
            return self.spread(x).sum(1) / self.real.sum(1, keepdim=True)
        if pooling == "last":
            columns = torch.arange(self.real.shape[1], device=x.device)
            last = (columns * self.real).argmax(1)  # (n,)
            return self._texts(x).gather(1, last[:, None, None].expand(-1, 1, x.shape[1]))[:, 0]
        return self._texts(x).mean(1) if pooling == "padded" else self.first(x)

    def spread(self, x: Tensor) -> Tensor:
        """(T, H) -> (n, L, H), zero at padding."""
        return self._texts(x) * self.real[..., None]

    def _texts(self, x: Tensor) -> Tensor:
        return x.view(*self.real.shape, x.shape[1])
