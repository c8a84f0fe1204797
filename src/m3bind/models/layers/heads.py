"""Heads: from a trunk's features to another width.

* `make_head`: by kind. `head_of`: from settings.
* `ResidualHead` ("adapter"), `Mlp`: the networks.

n rows, f width of the features, d width of the output.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from m3bind.errors import ConfigError, UnknownNameError

_OPTIONS = {
    "identity": (),
    "linear": ("bias",),
    "adapter": ("hidden", "dropout"),
    "mlp": ("hidden", "dropout", "dropout_in"),
}


class ResidualHead(nn.Module):
    """Residual two-layer network, then a linear map: y = W (x' + V2 gelu(V1 x')), x' = LayerNorm(x); (n, f) -> (n, d).

    V2 starts at zero, so that training starts from a plain linear map of the normalised features.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden: int, dropout: float) -> None:
        """`hidden` is the width between V1 and V2; `dropout` acts on it and on the normalised features."""
        super().__init__()
        self.norm = nn.LayerNorm(in_dim)
        self.inner = nn.Linear(in_dim, hidden)
        self.outer = nn.Linear(hidden, in_dim)
        self.out = nn.Linear(in_dim, out_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(n, f) -> (n, d)."""
        x = self.dropout(self.norm(features))
        x = x + self.outer(self.dropout(torch.nn.functional.gelu(self.inner(x))))
        return self.out(x)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two layers on standardised features, for wide features and few images; (n, f) -> (n, d).

    y = W2 dropout(gelu(LayerNorm(W1 dropout((x - mean) / std)))). `mean` and `std` of the training features are set
    once by `calibrate`, before training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_dim: int, out_dim: int, hidden: int, dropout: float, dropout_in: float) -> None:
        """`dropout_in` acts on the standardised features, `dropout` on the `hidden` ones."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("std", torch.ones(in_dim))
        self.net = nn.Sequential(
            nn.Dropout(dropout_in),
            nn.Linear(in_dim, hidden),
            nn.LayerNorm(hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, out_dim),
        )

    def calibrate(self, features: Tensor) -> None:
        """Set mean and standard deviation to those of training features (n, f); a constant feature is not scaled."""
        std, mean = torch.std_mean(features.float(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, features: Tensor) -> Tensor:
        """(n, f) -> (n, d)."""
        return self.net((features - self.mean) / self.std)  # type: ignore[no-any-return]


def head_of(settings: str | Mapping[str, Any], in_dim: int, out_dim: int) -> nn.Module:
    """The head that `settings` describe: a kind, or {"kind": ..., options}; see `make_head`."""
    options = {"kind": settings} if isinstance(settings, str) else dict(settings)
    return make_head(str(options.pop("kind")), in_dim, out_dim, **options)


def make_head(kind: str, in_dim: int, out_dim: int, **options: Any) -> nn.Module:
    """A head (n, f) -> (n, d).

    Args:
        kind: "identity" (f must equal d), "linear" (one map, starting orthogonal; option `bias`, default False),
            "adapter" (options `hidden`, default 2 f capped at 512, and `dropout`, default 0.1) or "mlp" (options
            `hidden`, default 256, `dropout`, default 0.3, and `dropout_in`, default 0.2).
        in_dim: f.
        out_dim: d.
        options: of the kind; unknown ones are refused.

    Raises:
        UnknownNameError: no such kind or option.
        ConfigError: "identity" between different widths.
    """
    if kind not in _OPTIONS:
        raise UnknownNameError("head", kind, _OPTIONS)
    for key in options:
        if key not in _OPTIONS[kind]:
            raise UnknownNameError(f"option of the {kind} head", key, _OPTIONS[kind])
    if kind == "identity":
        if in_dim != out_dim:
            raise ConfigError(f"head 'identity' needs equal widths, got {in_dim} features for {out_dim} dimensions.")
        return nn.Identity()
    if kind == "linear":
        linear = nn.Linear(in_dim, out_dim, bias=bool(options.get("bias", False)))
        nn.init.orthogonal_(
            linear.weight
        )  # starts as a rotation (or projection), which preserves the features' geometry
        return linear
    if kind == "mlp":
        rates = float(options.get("dropout", 0.3)), float(options.get("dropout_in", 0.2))
        return Mlp(in_dim, out_dim, int(options.get("hidden", 256)), *rates)
    hidden = int(options.get("hidden") or min(2 * in_dim, 512))
    return ResidualHead(in_dim, out_dim, hidden, float(options.get("dropout", 0.1)))
