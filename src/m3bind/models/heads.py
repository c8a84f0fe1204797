"""Heads: from a trunk's features to another width.

n rows, f width of the features, d width of the output.
"""

from typing import Any

import torch
from torch import Tensor, nn

from m3bind.errors import ConfigError, UnknownNameError

KINDS = ("identity", "linear", "adapter")


class Adapter(nn.Module):
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


def make_head(kind: str, in_dim: int, out_dim: int, **options: Any) -> nn.Module:
    """A head (n, f) -> (n, d).

    Args:
        kind: "identity" (f must equal d), "linear" (one map; option `bias`, default False) or "adapter"
            (options `hidden`, default 2 f capped at 512, and `dropout`, default 0.1).
        in_dim: f.
        out_dim: d.
        options: of the kind; unknown ones are refused.

    Raises:
        UnknownNameError: no such kind or option.
        ConfigError: "identity" between different widths.
    """
    allowed = {"identity": (), "linear": ("bias",), "adapter": ("hidden", "dropout")}
    if kind not in allowed:
        raise UnknownNameError("head", kind, KINDS)
    for key in options:
        if key not in allowed[kind]:
            raise UnknownNameError(f"option of the {kind} head", key, allowed[kind])
    if kind == "identity":
        if in_dim != out_dim:
            raise ConfigError(f"head 'identity' needs equal widths, got {in_dim} features for {out_dim} dimensions.")
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(in_dim, out_dim, bias=bool(options.get("bias", False)))
    hidden = int(options.get("hidden") or min(2 * in_dim, 512))
    return Adapter(in_dim, out_dim, hidden, float(options.get("dropout", 0.1)))
