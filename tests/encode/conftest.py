"""The tiny space of `space.tiny`, for the tests here as well."""

from space.conftest import _registered, start

__all__ = ["_registered", "start"]
