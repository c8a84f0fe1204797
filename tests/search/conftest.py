"""The tiny space of `space.tiny`, also for the tests here."""

from space.conftest import _registered, start

__all__ = ["_registered", "start"]
