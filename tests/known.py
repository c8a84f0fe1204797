"""Tests with their own modalities and models: only those named are registered, temporarily."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from m3bind import modalities
from m3bind.models import registry


@contextlib.contextmanager
def only(register: Callable[[], None]) -> Iterator[None]:
    """Both registries hold what `register` puts there and nothing else, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry._registry, "_classes", None)
        patch.setattr(modalities.base._registry, "_classes", None)
        register()
        yield
