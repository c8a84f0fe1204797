"""transformers' attention masks, built on a GPU without reading their values.

* `avoid_mask_syncs`: to be called before a network of transformers is built.

transformers omits a mask if no token is padding. To check this, the host waits for the GPU at every forward pass, which
costs more than the mask. On a CPU nothing changes.
"""

import functools
from collections.abc import Callable
from typing import Any

_KINDS = ("sdpa", "eager")  # of attention, whose masks transformers makes of padding masks


def avoid_mask_syncs() -> None:
    """Replace transformers' mask functions, once in a process."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as known

    for kind in _KINDS:
        if not isinstance(known[kind], _WithoutSync):
            known[kind] = _WithoutSync(known[kind])


class _WithoutSync:
    """A mask function that omits masks on a CPU only."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        functools.update_wrapper(self, make)

    def __call__(self, *args: Any, **options: Any) -> Any:
        padding = options.get("attention_mask")
        if padding is not None and padding.device.type != "cpu":
            options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return self._make(*args, **options)
