"""What is read: one file per modality, from file formats to a canonical array."""

from m3bind.modalities._isolation import decode, read
from m3bind.modalities.base import Modality, Sample, get, names

__all__ = ["Modality", "Sample", "decode", "get", "names", "read"]
