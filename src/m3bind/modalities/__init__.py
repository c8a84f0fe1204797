"""What is read: one file per modality, from file formats to a canonical array."""

from m3bind.modalities.base import Modality, Sample, get, names

__all__ = ["Modality", "Sample", "get", "names"]
