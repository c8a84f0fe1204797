"""Bridges: from a modality's own joint space into the shared one, for images and for texts.

* `BaseBridge`: what a bridge is. * `Bridge`: one bias-free linear map for both sides; `TwoMaps`: one for each.
* `Sided`: a bridge with affine steps of its own for images and for texts (`Affine`) around another bridge.
* `Relative`: cosines to anchors instead of coordinates. * `Head`: a small network.
* `restore`: an untrained bridge of a stored kind. `freeze`: a finished bridge.

Shapes: n rows, a anchors, d_m joint dimension of modality m, d shared dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.errors import ConfigError, UnknownNameError

_SMALLEST = 1e-6  # a coordinate with a smaller standard deviation does not vary


class BaseBridge(nn.Module, ABC):
    """B_m: unit rows (n, d_m) of modality m -> unit rows (n, d) of the shared space, for images and for texts."""

    kind: ClassVar[str]  # the name it is stored by

    @property
    @abstractmethod
    def source(self) -> int:
        """d_m."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """d."""

    @abstractmethod
    def image(self, embeddings: Tensor) -> Tensor:
        """Image embeddings (n, d_m) -> (n, d) unit rows."""

    @abstractmethod
    def text(self, embeddings: Tensor) -> Tensor:
        """Text embeddings (n, d_m) -> (n, d) unit rows."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments (JSON values) of an untrained bridge of the same shape, see `bridges.restore`."""


class Bridge(BaseBridge):
    """Linear, one map for images and texts: normalise(x @ weight) with `weight` (d_m, d)."""

    kind = "linear"

    def __init__(self, weight: Tensor) -> None:
        """`weight` is copied, in float32: a starting map of this module, or one that was stored."""
        super().__init__()
        if weight.ndim != 2:
            raise ConfigError(f"bridge: weight has shape {tuple(weight.shape)}, expected (d_m, d)")
        self.weight = nn.Parameter(weight.detach().to(torch.float32).clone())

    @property
    def source(self) -> int:
        """d_m."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """d."""
        return self.weight.shape[1]

    def forward(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return F.normalize(embeddings @ self.weight, dim=-1)

    def image(self, embeddings: Tensor) -> Tensor:
        """The map."""
        return self.forward(embeddings)

    def text(self, embeddings: Tensor) -> Tensor:
        """The same map."""
        return self.forward(embeddings)

    def settings(self) -> dict[str, Any]:
        """Both dimensions."""
        return {"source": self.source, "dim": self.dim}

    def extra_repr(self) -> str:
        """Both dimensions, for printing."""
        return f"{self.source} -> {self.dim}"


class TwoMaps(BaseBridge):
    """Linear, one map for images and one for texts, which start equal."""

    kind = "two_maps"

    def __init__(self, weight: Tensor) -> None:
        """`weight` (d_m, d) is copied twice, in float32."""
        super().__init__()
        self.images, self.texts = Bridge(weight), Bridge(weight)

    @property
    def source(self) -> int:
        """d_m."""
        return self.images.source

    @property
    def dim(self) -> int:
        """d."""
        return self.images.dim

    def image(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.images.image(embeddings)

    def text(self, embeddings: Tensor) -> Tensor:
        """(n, d_m) -> (n, d) unit rows."""
        return self.texts.text(embeddings)

    def settings(self) -> dict[str, Any]:
        """Both dimensions."""
        return {"source": self.source, "dim": self.dim}


class Affine(nn.Module):
    """x -> normalise(x @ weight + bias); `weight` (d, d'), `bias` (d',)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Both are copied, in float32; no bias is zero."""
        super().__init__()
        bias = torch.zeros(weight.shape[1]) if bias is None else bias
        self.register_buffer("weight", weight.detach().float().clone())
        self.register_buffer("bias", bias.detach().float().clone())

    def forward(self, rows: Tensor) -> Tensor:
        """(n, d) -> (n, d') unit rows."""
        return F.normalize(rows @ self.weight + self.bias, dim=-1)


class Sided(BaseBridge):
    """`inner` with affine steps before and after it, of their own for images and for texts.

    Steps before act on the modality's own embeddings (IsoCLIP), steps after on bound ones (centring, rotation, ...).
    """

    kind = "sided"

    def __init__(
        self,
        inner: BaseBridge,
        image: Sequence[Affine] = (),
        text: Sequence[Affine] = (),
        before: tuple[Affine, Affine] | None = None,
    ) -> None:
        """`before`: (for images, for texts)."""
        super().__init__()
        self.inner = inner
        self.after_image, self.after_text = nn.Sequential(*image), nn.Sequential(*text)
        self.before = nn.ModuleList(before or ())

    @property
    def source(self) -> int:
        """d_m."""
        return self.inner.source

    @property
    def dim(self) -> int:
        """d."""
        return self.inner.dim

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
        super().__init__()
        self.register_buffer("anchors", anchors.detach().float().clone())
        self.register_buffer("mean", torch.zeros(2, len(anchors)))
        self.register_buffer("std", torch.ones(2, len(anchors)))

    @property
    def source(self) -> int:
        """d_m."""
        return self.anchors.shape[1]

    @property
    def dim(self) -> int:
        """Number of anchors."""
        return self.anchors.shape[0]

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

    def settings(self) -> dict[str, Any]:
        """Both dimensions."""
        return {"source": self.source, "dim": self.dim}


class Head(BaseBridge):
    """A network for images and texts alike: normalise(net(stem(x - offset))), the offset being the side's own.

    `net` is `blocks` times (linear -> BatchNorm -> activation -> linear -> BatchNorm), Xavier; `stem` a linear map
    d_m -> d_m that starts as the identity, where there is one.
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
        super().__init__()
        self.shape = {"source": source, "dim": dim, "hidden": hidden, "blocks": blocks, "stem": stem}
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

    @property
    def source(self) -> int:
        """d_m."""
        return int(self.shape["source"])

    @property
    def dim(self) -> int:
        """d."""
        return int(self.shape["dim"])

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
        """The network's shape."""
        return {**self.shape, "activation": self.activation}


def restore(kind: str, settings: Mapping[str, Any]) -> BaseBridge:
    """A bridge of `kind` whose tensors are still to be loaded (`load_state_dict`).

    Raises:
        UnknownNameError: no such kind.
    """
    if kind == Bridge.kind:
        return Bridge(torch.zeros(settings["source"], settings["dim"]))
    if kind == TwoMaps.kind:
        return TwoMaps(torch.zeros(settings["source"], settings["dim"]))
    if kind == Relative.kind:
        return Relative(torch.zeros(settings["dim"], settings["source"]))
    if kind == Head.kind:
        return Head(**settings)
    if kind == Sided.kind:
        described = dict(settings["inner"])
        inner = restore(described.pop("kind"), described)
        after = [[_blank(inner.dim) for _ in range(settings[side])] for side in ("image", "text")]
        before = (_blank(inner.source), _blank(inner.source)) if settings["before"] else None
        return Sided(inner, after[0], after[1], before)
    raise UnknownNameError("kind of bridge", kind, [k.kind for k in (Bridge, TwoMaps, Relative, Head, Sided)])


def _blank(dim: int) -> Affine:
    return Affine(torch.zeros(dim, dim))


def freeze(bridge: BaseBridge) -> BaseBridge:
    """The same bridge, untrainable and in eval mode."""
    return bridge.requires_grad_(False).eval()
