"""What is read: one file per modality, from file formats to a canonical array."""

from m3bind.modalities.base import Modality, Sample, decode, get, names, read

__all__ = ["Modality", "Sample", "decode", "get", "names", "read"]
