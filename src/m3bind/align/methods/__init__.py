"""Methods that bind dual encoders: one file each, all from the same inputs to one bridge per modality."""

from m3bind.align.methods.base import BindingInputs, BindingMethod, get, names

__all__ = ["BindingInputs", "BindingMethod", "get", "names"]
