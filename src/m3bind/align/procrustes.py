"""Initial maps of linear bridges (the bridges themselves: `m3bind.models.bridges`).

* `identity_map`, `orthonormal_map`: initial maps that preserve cosines.
* `procrustes`: initial maps that also align the modalities' text embeddings, in closed form.

Shapes: K texts, M towers, d_m joint dimension of tower m, d shared dimension. A map is (d_m, d) and acts from the
right, x @ map. If d_m <= d its rows are orthonormal, so every cosine within the modality is preserved. If d_m > d that
is impossible; its columns are orthonormal, a projection, and cosines change.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.errors import ConfigError
from m3bind.models.bridges import BaseBridge, Bridge

__all__ = ["BaseBridge", "Bridge", "identity_map", "orthonormal_map", "procrustes"]

_START_ROWS = 768  # size of the initial eigenproblem; larger towers enter it by their leading axes


def identity_map(source: int, dim: int) -> Tensor:
    """(source, dim) with ones on the diagonal: coordinates are copied, padded with zeros or truncated."""
    _check_dim(source, dim)
    return torch.eye(source, dim, dtype=torch.float64)


def orthonormal_map(source: int, dim: int, seed: int = 0) -> Tensor:
    """(source, dim) random map, uniform (Haar) over those with orthonormal rows (columns if source > dim)."""
    _check_dim(source, dim)
    return _polar(torch.randn(source, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def procrustes(
    embeddings: Sequence[Tensor | npt.NDArray[np.floating]],
    dim: int,
    iterations: int = 50,
    tol: float = 1e-5,
    center: bool = False,
    weights: Sequence[float] | None = None,
) -> list[Tensor]:
    """Generalised orthogonal Procrustes: the maps R_m that align M configurations of the same K points.

    Maximises sum_{a<b} w_a w_b <X_a R_a, X_b R_b>, which for d_m <= d, where maps preserve norms, equals minimising
    sum_{a<b} w_a w_b ||X_a R_a - X_b R_b||^2, the text term of Eq. 6. Each sweep sets every R_a in turn to its exact
    optimum given the others, the orthogonal polar factor (by SVD) of X_a^T sum_{b != a} w_b X_b R_b, so the objective
    never decreases. K enters only through the d_a x d_b cross-products, computed once, in float64 throughout.

    The initial maps are symmetric in the towers: leading eigenvectors of the block matrix of all cross-products, each
    tower's block orthonormalised; for noiseless rotations they are the solution. The common rotation, which the
    objective does not determine, is fixed as well: axes of the shared space are the principal axes of the weighted mean
    configuration, by decreasing variance, each signed so that the overall mean is not negative on it. So the result
    does not depend on the order of towers, except on axes along which the texts do not vary.

    Args:
        embeddings: M arrays (K, d_m), on any device, row i of each the same text; normally unit rows.
        dim: d. Towers with d_m < d get orthonormal rows (isometric, as if padded with zeros), towers with d_m > d the
            orthonormal columns that are best for the objective.
        iterations: maximum number of sweeps over the towers.
        tol: stop when a sweep improves the objective by less than this fraction.
        center: fit on embeddings minus their tower's mean. The maps stay linear and are to be applied to the original
            embeddings, since a translation would change cosines.
        weights: w_m >= 0, default all 1.

    Returns:
        M float64 maps (d_m, d) on the host. A single tower is rotated to its principal axes.

    Raises:
        ConfigError: no towers, unequal K, values that are not finite, or weights that do not fit.
    """
    towers = _points(embeddings)
    means = [x.mean(0) for x in towers]
    points = [x - mean for x, mean in zip(towers, means, strict=True)] if center else towers
    w = _weights(weights, len(points))
    crosses = _crosses(points)
    maps = _start(crosses, dim, w)
    objective = sum(w[a] * float((own * _pull(crosses, maps, w, a)).sum()) for a, own in enumerate(maps))
    for _ in range(iterations if len(points) > 1 else 0):
        gain = sum(_improve(crosses, maps, w, a) for a in range(len(maps)))
        objective += gain
        if gain <= tol * abs(objective):
            break
    return _fix_rotation(crosses, maps, w, means)


def _points(embeddings: Sequence[Tensor | npt.NDArray[np.floating]]) -> list[Tensor]:
    """The towers' embeddings on the host, where there is float64."""
    if not embeddings:
        raise ConfigError("procrustes: no towers given; at least one (K, d_m) array is needed")
    points = [torch.as_tensor(x).detach().to("cpu", torch.float64) for x in embeddings]
    shapes = [tuple(x.shape) for x in points]
    if any(x.ndim != 2 or len(x) != len(points[0]) or x.numel() == 0 for x in points):
        raise ConfigError(f"procrustes: towers have shapes {shapes}; all must be (K, d_m) for the same K > 0 texts")
    for index, x in enumerate(points):
        if not x.isfinite().all():
            raise ConfigError(f"procrustes: tower {index} has embeddings that are NaN or infinite; check that tower")
    return points


def _weights(weights: Sequence[float] | None, towers: int) -> list[float]:
    w = [1.0] * towers if weights is None else [float(value) for value in weights]
    if len(w) != towers or not all(0 <= value < float("inf") for value in w) or sum(w) == 0:
        raise ConfigError(f"procrustes: weights {w} do not fit {towers} towers; give one finite w >= 0 each, not all 0")
    return [value * towers / sum(w) for value in w]


def _crosses(points: list[Tensor]) -> list[list[Tensor]]:
    """C_ab = X_a^T X_b / K, (d_a, d_b), for all pairs; C_ba is the transpose of C_ab."""
    count, towers = len(points[0]), range(len(points))
    upper = {(a, b): points[a].T @ points[b] / count for a in towers for b in towers if a <= b}
    return [[upper[a, b] if a <= b else upper[b, a].T for b in towers] for a in towers]


def _pull(crosses: list[list[Tensor]], maps: list[Tensor], w: list[float], a: int) -> Tensor:
    """Sum over b != a of w_b C_ab R_b, (d_a, d)."""
    total = torch.zeros_like(maps[a])
    for b in range(len(maps)):
        if b != a:
            total += w[b] * (crosses[a][b] @ maps[b])
    return total


def _improve(crosses: list[list[Tensor]], maps: list[Tensor], w: list[float], a: int) -> float:
    """Set R_a to its optimum given the others, in place; returns the gain of the objective (over ordered pairs)."""
    pull = _pull(crosses, maps, w, a)
    best = _polar(pull)
    gain = 2 * w[a] * float(((best - maps[a]) * pull).sum())
    maps[a] = best
    return gain


def _polar(matrix: Tensor) -> Tensor:
    """Nearest matrix with orthonormal rows (columns, if it is taller than wide): U V^T of its thin SVD."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    polar: Tensor = u @ vt
    return polar


def _start(crosses: list[list[Tensor]], dim: int, w: list[float]) -> list[Tensor]:
    """Spectral start: leading eigenvectors of the block matrix of w_a w_b C_ab (a != b), each block orthonormalised.

    A tower's own block would favour variation of that tower alone; it is used for a single tower only.
    """
    towers = range(len(crosses))
    axes = [_leading_axes(crosses[a][a], _START_ROWS // len(crosses)) for a in towers]
    blocks = [
        [w[a] * w[b] * (axes[a].T @ crosses[a][b] @ axes[b]) * (a != b or len(crosses) == 1) for b in towers]
        for a in towers
    ]
    values, vectors = torch.linalg.eigh(torch.cat([torch.cat(row, dim=1) for row in blocks]))
    keep = min(dim, len(values))
    vectors = vectors.flip(1)[:, :keep] * values.flip(0)[:keep].clamp(min=0).sqrt()
    vectors = F.pad(vectors, (0, dim - keep))
    parts = torch.split(vectors, [axis.shape[1] for axis in axes])
    return [_polar(axis @ part) for axis, part in zip(axes, parts)]


def _leading_axes(second_moment: Tensor, maximum: int) -> Tensor:
    """(d_m, r) directions of the largest variation of a tower; the identity if d_m <= `maximum`."""
    if len(second_moment) <= maximum:
        return torch.eye(len(second_moment), dtype=second_moment.dtype)
    axes: Tensor = torch.linalg.eigh(second_moment)[1]
    return axes.flip(1)[:, :maximum]


def _fix_rotation(crosses: list[list[Tensor]], maps: list[Tensor], w: list[float], means: list[Tensor]) -> list[Tensor]:
    """Rotate all maps to the principal axes of the weighted mean configuration, signs from the overall mean."""
    moment = torch.stack([w[a] * maps[a].T @ _pull(crosses, maps, w, a) for a in range(len(maps))]).sum(0)
    for a, own in enumerate(maps):
        moment += w[a] ** 2 * own.T @ crosses[a][a] @ own
    turn = torch.linalg.eigh((moment + moment.T) / 2)[1].flip(1)
    mean = torch.stack([w[a] * means[a].to(own) @ own for a, own in enumerate(maps)]).sum(0) @ turn
    turn = turn * torch.where(mean < 0, -1.0, 1.0).to(turn)
    return [own @ turn for own in maps]


def _check_dim(source: int, dim: int) -> None:
    if source < 1 or dim < 1:
        raise ConfigError(f"bridge: cannot map {source} to {dim} dimensions; both must be at least 1")
