"""transformers' attention masks, made on a device without a look at their values.

* `without_values`: to be called where a network of transformers is built.

transformers leaves a mask out if no token is padding. To see that, the host waits for the device at every forward pass;
there the mask is cheaper. On the host nothing changes.
"""

import functools
from collections.abc import Callable
from typing import Any

_KINDS = ("sdpa", "eager")  # of attention, whose masks transformers makes of padding masks


def without_values() -> None:
    """Make transformers' mask functions so; further calls change nothing."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as known

    for kind in _KINDS:
        if not isinstance(known[kind], _Unseen):
            known[kind] = _Unseen(known[kind])


class _Unseen:
    """A mask function that leaves a mask out on the host only."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        functools.update_wrapper(self, make)

    def __call__(self, *args: Any, **options: Any) -> Any:
        padding = options.get("attention_mask")
        if padding is not None and padding.device.type != "cpu":
            options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        return self._make(*args, **options)
