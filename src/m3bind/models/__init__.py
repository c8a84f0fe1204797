"""The CLIP-like models: one file per model, found by itself; see `m3bind.models.base` for what each offers."""

from m3bind.models.base import DualEncoder, ModelCard, Tokens
from m3bind.models.registry import build, card, load, names, save

__all__ = ["DualEncoder", "ModelCard", "Tokens", "build", "card", "load", "names", "save"]
