"""Adaptive modality balancing: sampling, learning rate and loss weight by a modality's size (Eq. 3-5).

* `sampling_probabilities` (Eq. 3), `learning_rate_scales` (Eq. 4), `loss_weights` (Eq. 5).

|D_m| is the number of pairs of modality m that are actually used. Sizes come as a mapping from modality to size or as a
sequence in the modalities' order; the result has the same form (dict, tuple or list). All is computed in logarithms, so
no size over- or underflows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import overload

from m3bind.errors import ConfigError

_Sizes = Mapping[str, int] | Sequence[int]
_Values = dict[str, float] | Sequence[float]


@overload
def sampling_probabilities(sizes: Mapping[str, int], beta: float = 0.5) -> dict[str, float]: ...
@overload
def sampling_probabilities(sizes: Sequence[int], beta: float = 0.5) -> Sequence[float]: ...
def sampling_probabilities(sizes: _Sizes, beta: float = 0.5) -> _Values:
    """Probability that a text of the shared batch is drawn from modality m, Eq. 3: p_m = |D_m|^-beta / sum of the same.

    beta = 0 is uniform over modalities, beta = 1 inversely proportional to size, beta = -1 proportional to size.

    Raises:
        ConfigError: no modality, a size that is not positive and finite, or beta not finite.
    """
    if not math.isfinite(beta):
        raise ConfigError(f"balance: beta {beta} is not a finite number")

    def softmax(logs: list[float]) -> list[float]:
        top = max(-beta * value for value in logs)
        powers = [math.exp(-beta * value - top) for value in logs]
        return [power / sum(powers) for power in powers]

    return _per_modality(sizes, softmax)


@overload
def learning_rate_scales(sizes: Mapping[str, int], literal: bool = False) -> dict[str, float]: ...
@overload
def learning_rate_scales(sizes: Sequence[int], literal: bool = False) -> Sequence[float]: ...
def learning_rate_scales(sizes: _Sizes, literal: bool = False) -> _Values:
    """Factor s_m on the base learning rate for modality m's parameters, Eq. 4: eta_m = eta_0 * s_m.

    s_m = 1/sqrt|D_m| divided by the geometric mean of the same, so that the factors' product is 1. `literal=True`
    omits the division, as printed in the paper: 377,110 pairs then turn 2e-5 into 3.3e-8, which learns nothing.

    Raises:
        ConfigError: no modality, or a size that is not positive and finite.
    """

    def scales(logs: list[float]) -> list[float]:
        centre = 0.0 if literal else math.fsum(logs) / len(logs)
        return [math.exp(-(value - centre) / 2) for value in logs]

    return _per_modality(sizes, scales)


@overload
def loss_weights(sizes: Mapping[str, int], literal: bool = False) -> dict[str, float]: ...
@overload
def loss_weights(sizes: Sequence[int], literal: bool = False) -> Sequence[float]: ...
def loss_weights(sizes: _Sizes, literal: bool = False) -> _Values:
    """Weight w_m of modality m's losses in Eq. 6, by Eq. 5.

    w_m = 1/sqrt|D_m| divided by the arithmetic mean of the same, so that weights average 1. `literal=True` omits the
    division: weights near 1e-3 and products near 1e-6.

    Raises:
        ConfigError: no modality, or a size that is not positive and finite.
    """

    def weights(logs: list[float]) -> list[float]:
        if literal:
            return [math.exp(-value / 2) for value in logs]
        low = min(logs)
        roots = [math.exp(-(value - low) / 2) for value in logs]
        return [root * len(roots) / math.fsum(roots) for root in roots]

    return _per_modality(sizes, weights)


def _per_modality(sizes: _Sizes, rule: Callable[[list[float]], list[float]]) -> _Values:
    """`rule` applied to the logarithms of the checked sizes, in the form of `sizes`."""
    named = list(sizes.items()) if isinstance(sizes, Mapping) else list(enumerate(sizes))
    if not named:
        raise ConfigError("balance: no modality given; at least one size is needed")
    for name, size in named:
        if not (size > 0 and math.isfinite(size)):
            raise ConfigError(f"balance: modality {name!r} has {size} pairs; leave a modality without data out")
    values = rule([math.log(size) for _, size in named])
    if isinstance(sizes, Mapping):
        return dict(zip(sizes, values))
    return tuple(values) if isinstance(sizes, tuple) else values
