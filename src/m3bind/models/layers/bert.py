"""A BERT text trunk that computes nothing for padding.

* `BertTrunk`: transformers' BertModel (its own modules and state-dict keys), run on packed tokens, pooled or not.
* `micro_batches`: rows of similar length, grouped under a token budget.
* `distinct`: each text once, and the index of each text in them.

Shapes: n texts, L padded length, T real tokens of all texts together, H hidden width, A attention heads, r LoRA rank.

All linear, LayerNorm and GELU layers get one (T, H) matrix; only attention is computed per text, in groups of texts
of equal length, so no mask is needed and the result of a text depends neither on the padding nor on its neighbours.

A layer runs in one of two ways, with equal results:
* plain: its modules are called one by one; always possible.
* frozen: its weights do not train, except LoRA adapters on query, key or value. Query, key, value and their adapters
  are then one node of the graph that saves only the tensors that the adapters' gradients need (`_Projections`),
  residuals are added by the matrix products, and half-precision copies of the weights are cached.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import ConfigError

Pooling = Literal["mean", "cls", "last", "pooler", "padded"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
Groups = list[tuple[int, int]]  # (number of texts, their common length), longest first


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
    """transformers' BertModel, pooled, without work on padding. `bert` holds the unmodified network.

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
        """`config` is a transformers.BertConfig; `token_budget` bounds the tokens that pass the layers together.

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
        self._casts = _Casts()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pooled hidden states: int64 (n, L) and a 0/1 mask (n, L) -> (n, H).

        Raises:
            ConfigError: a text without any token, or more tokens than the network has positions.
        """
        real = attention_mask.bool()
        lengths = self._lengths(real)
        if len(lengths) == 0:
            return torch.zeros(0, self.config.hidden_size, device=input_ids.device)
        if self.pooling == "padded":
            return self._padded(input_ids, attention_mask)
        rows = list(micro_batches(lengths, self.token_budget))
        pooled = [self._pool(self._tokens(input_ids[c], real[c], lengths[c]), lengths[c]) for c in rows]
        return torch.cat(pooled)[torch.argsort(torch.cat(rows))]

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states of all tokens, (n, L) and a 0/1 mask (n, L) -> (n, L, H), zero at padding.

        Raises:
            ConfigError: as `forward`.
        """
        real = attention_mask.bool()
        lengths = self._lengths(real)
        out: Tensor | None = None
        for chosen in micro_batches(lengths, self.token_budget):
            x = self._tokens(input_ids[chosen], real[chosen], lengths[chosen], every=True)
            if out is None:
                out = x.new_zeros(*input_ids.shape, x.shape[1])
            part = x.new_zeros(len(chosen), input_ids.shape[1], x.shape[1])
            out = out.index_copy(0, chosen, part.index_put((real[chosen],), x))
        return out if out is not None else torch.zeros(*input_ids.shape, self.config.hidden_size)

    def _lengths(self, real: Tensor) -> Tensor:
        lengths = real.sum(1)
        if len(lengths) == 0:
            return lengths
        if int(lengths.min()) == 0:
            raise ConfigError("a text has no token at all (a row of attention_mask is zero); give it at least one.")
        used = real.any(0).nonzero()[-1, 0] + 1
        if used > self.config.max_position_embeddings:
            raise ConfigError(
                f"a text of {int(used)} tokens for a BERT of {self.config.max_position_embeddings} positions; "
                "lower max_tokens."
            )
        return lengths

    def _padded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, L), (n, L) -> (n, H), padding included in the mean; the mask only excludes it from attention."""
        inner = self.states != (len(self.bert.encoder.layer),)
        output: Any = self.bert(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=inner)
        if not inner:
            return output.last_hidden_state.mean(1)  # type: ignore[no-any-return]
        return self._combined([output.hidden_states[state] for state in self.states]).mean(1)

    def _combined(self, states: list[Tensor]) -> Tensor:
        total = states[0]
        for state in states[1:]:
            total = total + state
        return total / len(states) if self.combine == "mean" and len(states) > 1 else total

    def _tokens(self, ids: Tensor, real: Tensor, lengths: Tensor, every: bool = False) -> Tensor:
        """(m, L), (m, L), (m,) sorted by length -> (T, H), or (m, H) if only first tokens are needed."""
        groups = [(len(list(run)), length) for length, run in itertools.groupby(lengths.tolist())]
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)[real]
        x: Tensor = self.bert.embeddings(input_ids=ids[real][None], position_ids=positions[None])[0]  # (T, H)
        layers = list(self.bert.encoder.layer)
        first_only = not every and self.pooling in ("cls", "pooler") and self.states == (len(layers),)
        states = [x] * self.states.count(0)
        for number, layer in enumerate(layers, 1):
            parts = _adapted(layer)
            if parts is None:
                x = _plain_layer(layer, x, groups)
            else:
                x = _frozen_layer(layer, parts, x, groups, self._casts, first_only and number == len(layers))
            states += [x] * self.states.count(number)
        return self._combined(states)

    def _pool(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(T, H) or first tokens (m, H), (m,) -> (m, H)."""
        if self.pooling == "mean":
            text = torch.repeat_interleave(lengths)  # (T,) the text of each token
            sums = x.new_zeros(len(lengths), x.shape[1]).index_add(0, text, x)
            return sums / lengths[:, None].to(x.dtype)
        if self.pooling == "last":
            return x[lengths.cumsum(0) - 1]
        if len(x) != len(lengths):
            x = x[_starts(lengths)]
        if self.pooling == "pooler":
            return torch.tanh(self.bert.pooler.dense(x))
        return x


def _starts(lengths: Tensor) -> Tensor:
    """Row of the first token of each text, (n,)."""
    return lengths.cumsum(0) - lengths


def _attention(own: Any, q: Tensor, k: Tensor, v: Tensor, groups: Groups, training: bool) -> Tensor:
    """Attention within each text: queries of all tokens (T, H) or of first tokens only (n, H) -> as the queries."""
    dropout = own.dropout.p if training else 0.0
    tokens = [count * length for count, length in groups]
    queries = tokens if len(q) == len(k) else [count for count, _ in groups]
    mixed = []
    for *rows, (count, _) in zip(torch.split(q, queries), torch.split(k, tokens), torch.split(v, tokens), groups):
        # each (count, A, length, H / A)
        a, b, c = (x.view(count, -1, own.num_attention_heads, own.attention_head_size).transpose(1, 2) for x in rows)
        out = F.scaled_dot_product_attention(a, b, c, dropout_p=dropout, scale=own.scaling)
        mixed.append(out.transpose(1, 2).reshape(-1, q.shape[1]))
    return torch.cat(mixed)


def _plain_layer(layer: Any, x: Tensor, groups: Groups) -> Tensor:
    """One layer by calling its modules, (T, H) -> (T, H)."""
    own = layer.attention.self
    a = _attention(own, own.query(x), own.key(x), own.value(x), groups, layer.training)
    x = layer.attention.output(a, x)
    out: Tensor = layer.output(layer.intermediate(x), x)
    return out


class _Adapter(NamedTuple):
    """LoRA on one projection: adds scale * dropout(x) @ a.T @ b.T."""

    a: Tensor  # (r, H)
    b: Tensor  # (H, r)
    scale: float
    dropout: float


class _Part(NamedTuple):
    """A frozen linear projection and its adapter, if any."""

    weight: Tensor
    bias: Tensor
    adapter: _Adapter | None


def _adapted(layer: Any) -> list[_Part] | None:
    """Query, key and value of a layer that can run frozen; None if only the plain way is certain to be right."""
    own = layer.attention.self
    parts = [_part(module) for module in (own.query, own.key, own.value)]
    if any(part is None for part in parts) or not isinstance(layer.intermediate.intermediate_act_fn, nn.Module):
        return None
    adapters = {id(t) for part in parts if part and part.adapter for t in part.adapter[:2]}
    grad = torch.is_grad_enabled()
    for module in layer.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if grad and any(p.requires_grad and id(p) not in adapters for p in module.parameters(recurse=False)):
            return None
    return [part for part in parts if part]


def _part(module: Any) -> _Part | None:
    if type(module) is nn.Linear and module.bias is not None:
        return _Part(module.weight, module.bias, None)
    kind = type(module)
    if (kind.__module__, kind.__name__) != ("peft.tuners.lora.layer", "Linear"):
        return None
    base, active = module.get_base_layer(), module.active_adapters
    if module.merged or module.disable_adapters:
        return None
    if type(base) is not nn.Linear or base.bias is None or len(active) != 1 or list(module.lora_A) != active:
        return None
    name = active[0]
    if name in module.lora_variant or module.lora_B[name].bias is not None:
        return None
    dropout = module.lora_dropout[name]
    p = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    adapter = _Adapter(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], p)
    return _Part(base.weight, base.bias, adapter)


class _Casts:
    """Cached copies of frozen weights in another precision; a changed weight is copied again."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.dtype], tuple[Tensor, int, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Casts":
        return _Casts()

    def __getstate__(self) -> dict[str, Any]:
        return {"_copies": {}}

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.dtype == dtype:
            return weight
        if weight.requires_grad:
            return weight.to(dtype)
        copy = self._copies.get((id(weight), dtype))
        if copy is None or copy[0] is not weight or copy[1] != weight._version or copy[2].device != weight.device:
            copy = (weight, weight._version, weight.detach().to(dtype))
            self._copies[id(weight), dtype] = copy
        return copy[2]


def _frozen_layer(
    layer: Any, parts: list[_Part], x: Tensor, groups: Groups, cast: _Casts, first_only: bool = False
) -> Tensor:
    """One layer whose own weights need no gradient, (T, H) -> (T, H); `first_only`: only first tokens, -> (n, H)."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        x = x.to(dtype)
        if first_only:
            lengths = torch.tensor([length for count, length in groups for _ in range(count)], device=x.device)
            first = x[_starts(lengths)]
            q, k, v = *_project(parts[:1], first, cast), *_project(parts[1:], x, cast)
            x = first
        else:
            q, k, v = _project(parts, x, cast)
        a = _attention(layer.attention.self, q, k, v, groups, layer.training)
        x = _add_norm(layer.attention.output, a, x, cast)
        inner = layer.intermediate.dense
        u = F.linear(x, cast(inner.weight, dtype), cast(inner.bias, dtype))
        return _add_norm(layer.output, layer.intermediate.intermediate_act_fn(u), x, cast)


def _add_norm(block: Any, inner: Tensor, residual: Tensor, cast: _Casts) -> Tensor:
    """LayerNorm(dropout(dense(inner)) + residual)."""
    dense, norm, dtype = block.dense, block.LayerNorm, residual.dtype
    weight, bias = cast(dense.weight, dtype), cast(dense.bias, dtype)
    if block.training and block.dropout.p > 0:
        x = F.dropout(F.linear(inner, weight, bias), block.dropout.p) + residual
    else:
        x = torch.addmm(residual, inner, weight.t()).add_(bias)
    return F.layer_norm(x, norm.normalized_shape, cast(norm.weight, dtype), cast(norm.bias, dtype), norm.eps)


def _project(parts: list[_Part], x: Tensor, cast: _Casts) -> tuple[Tensor, ...]:
    """Query, key and value, or those of them in `parts`: (T, H) -> (T, H) each."""
    frozen = [cast(tensor, x.dtype) for part in parts for tensor in (part.weight, part.bias)]
    adapters = [(place, part.adapter) for place, part in enumerate(parts) if part.adapter]
    # One dropout mask serves all adapters of the layer.
    dropout = max((adapter.dropout for _, adapter in adapters), default=0.0)
    places = tuple((place, adapter.scale) for place, adapter in adapters)
    trained = [tensor for _, adapter in adapters for tensor in (adapter.a, adapter.b)]
    out: tuple[Tensor, ...] = _Projections.apply(x, dropout, places, len(frozen), *frozen, *trained)
    return out


class _Projections(torch.autograd.Function):
    """Frozen projections of x with LoRA, one output each: x W.T + bias + scale (x mask) A.T B.T.

    Saved for the backward pass: x as the adapters get it, its products with A (r columns), dropout mask, weights.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, dropout: float, places: tuple[tuple[int, float], ...], frozen: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        weights, biases = tensors[0:frozen:2], tensors[1:frozen:2]
        down, up = tensors[frozen::2], tensors[frozen + 1 :: 2]
        out = tuple(torch.addmm(bias, x, weight.t()) for weight, bias in zip(weights, biases))
        seen, mask, low = None, None, None
        if places:
            seen = x
            if dropout > 0:
                seen, mask = torch.native_dropout(x, dropout, True)
            low = seen @ torch.cat(down).to(x.dtype).t()  # (T, sum of r)
            for (place, scale), part, b in zip(places, torch.split(low, [len(a) for a in down], 1), up):
                out[place].addmm_(part, b.to(x.dtype).t(), alpha=scale)
        context.save_for_backward(seen, mask, low, *weights, *down, *up)
        context.places, context.dropout = places, dropout
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        seen, mask, low, *rest = context.saved_tensors
        count = len(context.places)
        weights, adapters = rest[: len(rest) - 2 * count], rest[len(rest) - 2 * count :]
        down, up = adapters[:count], adapters[count:]
        trained: list[Tensor | None] = []
        if count:
            ranks = [len(a) for a in down]
            sides = [(gradients[place], scale) for place, scale in context.places]
            grad_low = torch.cat([(g @ b.to(g.dtype)).mul_(scale) for (g, scale), b in zip(sides, up)], 1)
            grad_down = torch.split(grad_low.t() @ seen, ranks)
            for (g, scale), part, grad_a in zip(sides, torch.split(low, ranks, 1), grad_down):
                grad_b = (part.t() @ g).mul_(scale).t()  # this order: tall and narrow products are slow
                trained += [grad_a.to(down[0].dtype), grad_b.to(up[0].dtype)]
        grad_x = None
        if context.needs_input_grad[0]:
            grad_x = gradients[0] @ weights[0]
            for g, weight in zip(gradients[1:], weights[1:]):
                grad_x.addmm_(g, weight)
            if count and mask is not None:
                grad_x.addcmul_(grad_low @ torch.cat(down).to(grad_x.dtype), mask, value=1 / (1 - context.dropout))
            elif count:
                grad_x.addmm_(grad_low, torch.cat(down).to(grad_x.dtype))
        return (grad_x, None, None, None, *[None] * (2 * len(weights)), *trained)
