"""Bridges: maps from a modality's own joint space into the shared one, for images and for texts.

* `BaseBridge`: the interface. * `Bridge`: one bias-free linear map for both sides; `TwoMaps`: one for each.
* `Sided`: a bridge with affine steps of its own for images and for texts (`Affine`) around another bridge.
* `Relative`: cosines to anchors instead of coordinates. * `Head`: a small network.
* `restore`: an untrained bridge of a stored kind. `freeze`: a bridge in its final state.

Shapes: n rows, a anchors, d_m joint dimension of modality m, d shared dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import ConfigError, UnknownNameError

_SMALLEST = 1e-6  # a smaller standard deviation counts as none


class BaseBridge(nn.Module, ABC):
    """B_m: unit rows (n, d_m) of modality m -> unit rows (n, d) of the shared space, for images and for texts."""

    kind: ClassVar[str]  # the name under which it is stored

    def __init__(self, source: int, dim: int) -> None:
        """`source` d_m, `dim` d."""
        super().__init__()
        self.source, self.dim = source, dim

    @abstractmethod
    def image(self, embeddings: Tensor) -> Tensor:
        """Image embeddings (n, d_m) -> (n, d) unit rows."""

    @abstractmethod
    def text(self, embeddings: Tensor) -> Tensor:
        """Text embeddings (n, d_m) -> (n, d) unit rows."""

    def settings(self) -> dict[str, Any]:
        """Arguments (JSON values) of an untrained bridge of the same shape, see `bridges.restore`."""
        return {"source": self.source, "dim": self.dim}


class Bridge(BaseBridge):
    """Linear, one map for images and texts: normalise(x @ weight) with `weight` (d_m, d)."""

    kind = "linear"

    def __init__(self, weight: Tensor) -> None:
        """`weight` is copied, in float32."""
        if weight.ndim != 2:
            raise ConfigError(f"bridge: weight has shape {tuple(weight.shape)}, expected (d_m, d)")
        super().__init__(*weight.shape)
        self.weight = nn.Parameter(weight.detach().to(torch.float32).clone())

    def forward(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return F.normalize(embeddings @ self.weight, dim=-1)

    def image(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.forward(embeddings)

    def text(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows, by the same map."""
        return self.forward(embeddings)

    def extra_repr(self) -> str:
        """Both dimensions, for printing."""
        return f"{self.source} -> {self.dim}"


class TwoMaps(BaseBridge):
    """Linear, one map for images and one for texts, which start equal."""

    kind = "two_maps"

    def __init__(self, weight: Tensor) -> None:
        """`weight` (d_m, d) is copied twice, in float32."""
        super().__init__(*weight.shape)
        self.images, self.texts = Bridge(weight), Bridge(weight)

    def image(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.images.image(embeddings)

    def text(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.texts.text(embeddings)


class Affine(nn.Module):
    """x -> normalise(x @ weight + bias); `weight` (d, d'), `bias` (d',)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Both are copied, in float32; without `bias` it is zero."""
        super().__init__()
        bias = torch.zeros(weight.shape[1]) if bias is None else bias
        self.register_buffer("weight", weight.detach().float().clone())
        self.register_buffer("bias", bias.detach().float().clone())

    def forward(self, rows: Tensor) -> Tensor:
        """(n, d) -> (n, d') unit rows."""
        return F.normalize(rows @ self.weight + self.bias, dim=-1)


class Sided(BaseBridge):
    """`inner` with affine steps before and after it, separate for images and for texts.

    Steps before act on the modality's own embeddings (IsoCLIP), steps after on bound ones (centring, rotation, ...).
    """

    kind = "sided"

    def __init__(
        self,
        inner: BaseBridge,
        image: Sequence[Affine] = (),
        text: Sequence[Affine] = (),
        before: Sequence[Affine] = (),
    ) -> None:
        """`before`: (for images, for texts)."""
        super().__init__(inner.source, inner.dim)
        self.inner = inner
        self.after_image, self.after_text = nn.Sequential(*image), nn.Sequential(*text)
        self.before = nn.ModuleList(before)

    def image(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        rows = self.before[0](embeddings) if len(self.before) else embeddings
        return self.after_image(self.inner.image(rows))  # type: ignore[no-any-return]

    def text(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        rows = self.before[1](embeddings) if len(self.before) else embeddings
        return self.after_text(self.inner.text(rows))  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        """The inner bridge and the number of steps."""
        return {
            "inner": {"kind": self.inner.kind, **self.inner.settings()},
            "image": len(self.after_image),
            "text": len(self.after_text),
            "before": bool(len(self.before)),
        }


class Relative(BaseBridge):
    """Relative representation: cosines to a anchors, each z-scored on its side, normalised; d = a.

    r(x) = normalise((x @ anchors.T - mean) / std), with mean and std (a,) of images or of texts.
    """

    kind = "relative"
    anchors: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, anchors: Tensor) -> None:
        """`anchors` (a, d_m): unit rows, the same texts in every tower; `calibrate` sets mean and std of each side."""
        super().__init__(anchors.shape[1], anchors.shape[0])
        self.register_buffer("anchors", anchors.detach().float().clone())
        self.register_buffer("mean", torch.zeros(2, len(anchors)))
        self.register_buffer("std", torch.ones(2, len(anchors)))

    def calibrate(self, images: Tensor, texts: Tensor) -> None:
        """Mean and standard deviation of each cosine over images (N, d_m) and over texts (K, d_m)."""
        for side, rows in enumerate((images, texts)):
            std, mean = torch.std_mean(rows.float() @ self.anchors.T, dim=0, correction=0)
            self.mean[side], self.std[side] = mean, std.clamp(min=_SMALLEST)

    def image(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, a) unit rows."""
        return self._relative(embeddings, 0)

    def text(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, a) unit rows."""
        return self._relative(embeddings, 1)

    def _relative(self, rows: Tensor, side: int) -> Tensor:
        return F.normalize((rows @ self.anchors.T - self.mean[side]) / self.std[side], dim=-1)


class Head(BaseBridge):
    """One network for images and texts: normalise(net(stem(x - offset))), with an offset for each side.

    `net` is `blocks` times (linear -> BatchNorm -> activation -> linear -> BatchNorm), Xavier; `stem` an optional
    linear map d_m -> d_m that starts as the identity.
    """

    kind = "head"
    offset_image: Tensor
    offset_text: Tensor

    def __init__(
        self,
        source: int,
        dim: int,
        hidden: int,
        blocks: int = 1,
        stem: bool = False,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        """`hidden`: width between the two linear maps of a block. Offsets start at zero."""
        super().__init__(source, dim)
        self.shape = {"hidden": hidden, "blocks": blocks, "stem": stem}
        self.activation = activation
        self.register_buffer("offset_image", torch.zeros(source))
        self.register_buffer("offset_text", torch.zeros(source))
        self.stem = nn.Linear(source, source, bias=False) if stem else nn.Identity()
        if isinstance(self.stem, nn.Linear):
            nn.init.eye_(self.stem.weight)
        layers: list[nn.Module] = []
        for block in range(blocks):
            act = nn.ReLU() if activation == "relu" else nn.GELU()
            layers += [nn.Linear(dim if block else source, hidden), nn.BatchNorm1d(hidden), act]
            layers += [nn.Linear(hidden, dim), nn.BatchNorm1d(dim)]
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.net = nn.Sequential(*layers)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, d_m), the offset already subtracted -> (n, d) unit rows."""
        return F.normalize(self.net(self.stem(rows)), dim=-1)

    def image(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.forward(embeddings - self.offset_image)

    def text(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.forward(embeddings - self.offset_text)

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().settings(), **self.shape, "activation": self.activation}


def restore(kind: str, settings: Mapping[str, Any]) -> BaseBridge:
    """A bridge of `kind` whose tensors are still to be loaded (`load_state_dict`).

    Raises:
        UnknownNameError: no such kind.
    """
    if kind in (Bridge.kind, TwoMaps.kind):
        linear = Bridge if kind == Bridge.kind else TwoMaps
        return linear(torch.zeros(settings["source"], settings["dim"]))
    if kind == Relative.kind:
        return Relative(torch.zeros(settings["dim"], settings["source"]))
    if kind == Head.kind:
        return Head(**settings)
    if kind == Sided.kind:
        inner_settings = dict(settings["inner"])
        inner = restore(inner_settings.pop("kind"), inner_settings)
        images, texts = _blank(inner.dim, settings["image"]), _blank(inner.dim, settings["text"])
        before = _blank(inner.source, 2 if settings["before"] else 0)
        return Sided(inner, images, texts, before)
    raise UnknownNameError("kind of bridge", kind, [k.kind for k in (Bridge, TwoMaps, Relative, Head, Sided)])


def _blank(dim: int, count: int) -> list[Affine]:
    return [Affine(torch.zeros(dim, dim)) for _ in range(count)]


def freeze(bridge: BaseBridge) -> BaseBridge:
    """`bridge` itself, untrainable and in eval mode."""
    return bridge.requires_grad_(False).eval()
