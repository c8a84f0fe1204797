"""One layer of a BERT, run in one of two ways with equal results.

* `run_layer`: plain or frozen. * `Casts`: copies of frozen weights as a frozen layer needs them.

* plain: its modules are called one by one; always possible.
* frozen: its weights do not train, except LoRA adapters on query, key or value. Query, key, value and their adapters
  are then one node of the graph that saves only the tensors that the adapters' gradients need (`_Projections`), and
  copies of the weights in half precision, or of several side by side, are cached.

Shapes: n texts, T tokens of all texts together, H hidden width, r LoRA rank. Which tokens these are and how they attend
to each other is the layout's matter (bert_packed.py, bert_padded.py).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.models.layers.bert_packed import Packed
from m3bind.models.layers.bert_padded import Padded


def run_layer(layer: Any, x: Tensor, layout: Packed | Padded, casts: "Casts", first_only: bool = False) -> Tensor:
    """One layer, (T, H) -> (T, H); `first_only`: only first tokens, -> (n, H)."""
    parts = _adapted(layer)
    if parts is not None:
        return _frozen_layer(layer, parts, x, layout, casts, first_only)
    out = _plain_layer(layer, x, layout)
    return layout.first(out) if first_only else out


def _dropout(layer: Any) -> float:
    return layer.attention.self.dropout.p if layer.training else 0.0


def _plain_layer(layer: Any, x: Tensor, layout: Packed | Padded) -> Tensor:
    """One layer by calling its modules, (T, H) -> (T, H)."""
    own = layer.attention.self
    a = layout.attention(own, (own.query(x), own.key(x), own.value(x)), _dropout(layer))
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


class Casts:
    """Copies of frozen weights, in another precision or several in one; made again when a weight has changed."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, ...], tuple[list[tuple[Tensor, int, int]], Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Casts":
        return Casts()

    def __getstate__(self) -> dict[str, Any]:
        return {"_copies": {}}

    def __call__(self, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        """The rows of all `weights` in one tensor of type `dtype`."""
        if len(weights) == 1 and weights[0].dtype == dtype:
            return weights[0]
        if any(weight.requires_grad for weight in weights) or torch.compiler.is_compiling():
            return torch.cat(weights).to(dtype)
        state = [(weight, weight._version, weight.data_ptr()) for weight in weights]
        key = tuple(map(id, weights))
        known, copy = self._copies.get(key, ([], weights[0]))
        same = len(known) == len(state) and all(
            a is c and (b, d) == (e, f) for (a, b, d), (c, e, f) in zip(known, state)
        )
        if not same or copy.dtype != dtype or copy.device != weights[0].device:
            with torch.inference_mode(False):  # a copy made by an embedding pass serves training too
                copy = torch.cat([weight.detach() for weight in weights]).to(dtype)
            self._copies[key] = state, copy
        return copy


def _frozen_layer(
    layer: Any, parts: list[_Part], x: Tensor, layout: Packed | Padded, cast: Casts, first_only: bool
) -> Tensor:
    """One layer whose own weights need no gradient, (T, H) -> (T, H); `first_only`: only first tokens, -> (n, H)."""
    device, joined = x.device.type, layout.joined
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        x = x.to(dtype)
        if first_only:
            first = layout.first(x)
            projected = *_project(parts[:1], first, cast, joined), *_project(parts[1:], x, cast, joined)
            x = first
        else:
            projected = _project(parts, x, cast, joined)
        a = layout.attention(layer.attention.self, projected, _dropout(layer))
        x = _add_norm(layer.attention.output, a, x, cast, joined)
        inner = layer.intermediate.dense
        u = F.linear(x, cast(dtype, inner.weight), cast(dtype, inner.bias))
        return _add_norm(layer.output, layer.intermediate.intermediate_act_fn(u), x, cast, joined)


def _add_norm(block: Any, inner: Tensor, residual: Tensor, cast: Casts, joined: bool) -> Tensor:
    """LayerNorm(dropout(dense(inner)) + residual); a GPU adds the bias within the product, a CPU the residual."""
    dense, norm, dtype = block.dense, block.LayerNorm, residual.dtype
    weight, bias = cast(dtype, dense.weight), cast(dtype, dense.bias)
    dropout = block.dropout.p if block.training else 0.0
    if dropout > 0 or joined:
        x = F.linear(inner, weight, bias)
        x = (F.dropout(x, dropout) if dropout > 0 else x) + residual
    else:
        x = torch.addmm(residual, inner, weight.t()).add_(bias)
    return F.layer_norm(x, norm.normalized_shape, cast(dtype, norm.weight), cast(dtype, norm.bias), norm.eps)


def _project(parts: list[_Part], x: Tensor, cast: Casts, joined: bool) -> tuple[Tensor, ...]:
    """Query, key and value, or those of them in `parts`: (T, H) -> (T, H) each, or `joined` in one (T, k H)."""
    frozen: list[Tensor] = []
    trained: list[Tensor] = []
    places: list[tuple[int, int, float]] = []
    dropout = 0.0  # one dropout mask serves all adapters of the layer
    for output, group in enumerate([parts] if joined else [[part] for part in parts]):
        frozen += [cast(x.dtype, *(p.weight for p in group)), cast(x.dtype, *(p.bias for p in group))]
        column = 0
        for part in group:
            if part.adapter:
                places.append((output, column, part.adapter.scale))
                trained += [part.adapter.a, part.adapter.b]
                dropout = max(dropout, part.adapter.dropout)
            column += len(part.weight)
    if not trained and not x.requires_grad:
        return tuple(F.linear(x, weight, bias) for weight, bias in zip(frozen[::2], frozen[1::2]))
    out: tuple[Tensor, ...] = _Projections.apply(x, dropout, places, len(frozen), *frozen, *trained)
    return out


class _Projections(torch.autograd.Function):
    """Frozen projections of x with LoRA: each output is x W.T + bias, and in the columns of an adapter, whose place is
    (number of the output, first column, scale), + scale (x mask) A.T B.T.

    Saved for the backward pass: x as the adapters get it, its products with A (r columns), dropout mask, weights.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, dropout: float, places: list[tuple[int, int, float]], frozen: int, *tensors: Tensor
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
            for (place, column, scale), part, b in zip(places, torch.split(low, [len(a) for a in down], 1), up):
                own = out[place].narrow(1, column, len(b))
                own.addmm_(part, b.to(x.dtype).t(), alpha=scale)
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
            sides = [
                (gradients[place].narrow(1, column, len(b)), scale)
                for (place, column, scale), b in zip(context.places, up)
            ]
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
