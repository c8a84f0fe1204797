"""Modalities, one file each: from file formats to a canonical array."""

from m3bind.modalities.base import Cut, Modality, Sample, get, names
from m3bind.modalities.formats.isolation import decode, decode_parts, read

__all__ = ["Cut", "Modality", "Sample", "decode", "decode_parts", "get", "names", "read"]
