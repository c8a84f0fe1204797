"""The CLIP-like models: one file per model, registered by name; `m3bind.models.base` defines their interface."""

from m3bind.models.base import DualEncoder, ModelCard, Tokens
from m3bind.models.registry import build, card, load, names, save

__all__ = ["DualEncoder", "ModelCard", "Tokens", "build", "card", "load", "names", "save"]
