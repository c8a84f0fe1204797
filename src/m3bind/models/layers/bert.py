"""A BERT text trunk: on a CPU nothing is computed for padding, on a GPU nothing waits for the host.

* `BertTrunk`: transformers' BertModel (its own modules and state-dict keys), pooled or not.
* `micro_batches`: rows of similar length, grouped under a token budget.
* `distinct`: each text once, and the index of each text in them.

Shapes: n texts, L padded length, T tokens of all texts together, H hidden width.

All linear, LayerNorm and GELU layers get one (T, H) matrix of tokens; only attention is computed per text. Which tokens
these are is the layout's matter: real ones only (`Packed`) or padding too (`Padded`), with equal results. A layer is
run by bert_layer.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.models.layers.bert_layer import Casts, run_layer
from m3bind.models.layers.bert_packed import Packed
from m3bind.models.layers.bert_padded import Padded

Pooling = Literal["mean", "cls", "last", "pooler", "padded"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def distinct(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Each text once, in order of first appearance, and the int64 (n,) index with `texts[i] == unique[index[i]]`."""
    place: dict[str, int] = {}
    index = [place.setdefault(text, len(place)) for text in texts]
    return list(place), torch.tensor(index, dtype=torch.int64)


def micro_batches(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Row numbers, longest texts first, in groups of up to `budget` tokens (a longer text forms its own group).

    `lengths` is int64 (n,). Also for callers that bound memory by accumulating gradients.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    start, total = 0, 0
    for position, length in enumerate(lengths[order].tolist()):
        if total and total + length > budget:
            yield order[start:position]
            start, total = position, 0
        total += length
    if len(order):
        yield order[start:]


class BertTrunk(nn.Module):
    """transformers' BertModel, pooled. `bert` holds the unmodified network.

    Poolings: the first token ("cls"), its image under BERT's own tanh layer ("pooler"), the last real token ("last"),
    the mean of real tokens ("mean"). "padded" is the mean over all L positions, padding included, as in some published
    models; the only pooling whose result depends on how far a batch is padded.
    """

    def __init__(
        self,
        config: Any,
        pooling: Pooling = "mean",
        token_budget: int = 4096,
        states: Sequence[int] = (-1,),
        combine: Literal["mean", "sum"] = "mean",
    ) -> None:
        """`config` is a transformers.BertConfig; `token_budget` bounds the packed tokens that pass the layers together.

        `states`: the hidden states that are pooled, 0 the embeddings, -1 the last layer; several are averaged or summed
        (`combine`).

        Raises:
            ConfigError: unknown pooling, or a state that the network does not have.
        """
        from transformers import BertModel

        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling={pooling!r} is unknown; choose one of {', '.join(POOLINGS)}.")
        layers = config.num_hidden_layers
        if not states or any(not -layers - 1 <= state <= layers for state in states):
            raise ConfigError(f"hidden states {tuple(states)} of a BERT with {layers} layers; use 0 to {layers}.")
        self.config, self.pooling, self.token_budget, self.combine = config, pooling, token_budget, combine
        self.states = tuple(state % (layers + 1) for state in states)
        self.bert = BertModel(config, add_pooling_layer=pooling == "pooler")
        self._casts = Casts()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pooled hidden states: int64 (n, L) and a 0/1 mask (n, L) -> (n, H).

        Raises:
            ConfigError: more tokens than the network has positions or, on the host, a text without any token (on
                another device its row is NaN).
        """
        if len(input_ids) == 0:
            return torch.zeros(0, self.config.hidden_size, device=input_ids.device)
        parts = self._layouts(attention_mask.bool())
        pooled = [self._pooled(input_ids if rows is None else input_ids[rows], layout) for rows, layout in parts]
        chosen = [rows for rows, _ in parts if rows is not None]
        return torch.cat(pooled)[torch.argsort(torch.cat(chosen))] if chosen else pooled[0]

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states of all tokens, (n, L) and a 0/1 mask (n, L) -> (n, L, H), zero at padding.

        Raises:
            ConfigError: as `forward`.
        """
        out = torch.zeros(*input_ids.shape, self.config.hidden_size, device=input_ids.device)
        if len(input_ids) == 0:
            return out
        for rows, layout in self._layouts(attention_mask.bool()):
            if rows is None:
                return layout.spread(self._tokens(input_ids, layout))
            x = layout.spread(self._tokens(input_ids[rows], layout))
            out = out.to(x.dtype).index_copy(0, rows, x)
        return out

    def _layouts(self, real: Tensor) -> list[tuple[Tensor | None, Packed | Padded]]:
        """The layouts in which the texts of a mask (n, L) pass the layers, and the rows of each (None: all).

        Packed on the host, padded on every other device and where the pooling includes padding.
        """
        lengths = self._lengths(real) if real.device.type == "cpu" else None
        if lengths is not None and self.pooling != "padded":
            rows = micro_batches(lengths, self.token_budget)
            return [(chosen, Packed(real[chosen], lengths[chosen])) for chosen in rows]
        self._check_length(real.shape[1])
        return [(None, Padded(real))]

    def _lengths(self, real: Tensor) -> Tensor:
        lengths = real.sum(1)
        if int(lengths.min()) == 0:
            raise ConfigError("a text has no token at all (a row of attention_mask is zero); give it at least one.")
        self._check_length(int(real.any(0).nonzero()[-1, 0]) + 1)
        return lengths

    def _check_length(self, length: int) -> None:
        positions = self.config.max_position_embeddings
        if length > positions:
            raise ConfigError(f"a text of {length} tokens for a BERT of {positions} positions; lower max_tokens.")

    def _tokens(self, ids: Tensor, layout: Packed | Padded, first_only: bool = False) -> Tensor:
        """(n, L) -> the states of all tokens (T, H), combined; `first_only`: those of first tokens, (n, H)."""
        x = layout.embed(self.bert.embeddings, ids)
        layers = list(self.bert.encoder.layer)
        states = [x] * self.states.count(0)
        for number, layer in enumerate(layers, 1):
            x = run_layer(layer, x, layout, self._casts, first_only and number == len(layers))
            states += [x] * self.states.count(number)
        total = states[0]
        for state in states[1:]:
            total = total + state
        return total / len(states) if self.combine == "mean" and len(states) > 1 else total

    def _pooled(self, ids: Tensor, layout: Packed | Padded) -> Tensor:
        """(n, L) -> (n, H)."""
        of_first = self.pooling in ("cls", "pooler")
        early = of_first and self.states == (len(self.bert.encoder.layer),)
        x = self._tokens(ids, layout, early)
        if not of_first:
            return layout.pool(x, self.pooling)
        x = x if early else layout.pool(x, "cls")
        return torch.tanh(self.bert.pooler.dense(x)) if self.pooling == "pooler" else x
