"""Training data: manifests, texts and splits; import the other modules (batching, cache, phantom) by name."""

from m3bind.data.manifest import read_manifest, usable_modalities
from m3bind.data.records import BadRow, Manifest, Record, format_bad_rows
from m3bind.data.splits import carve_valid, leak_check, patient_splits
from m3bind.data.texts import clean_text, concept_phrases, length_report, load_extra_texts, unique_texts

__all__ = [
    "BadRow",
    "Manifest",
    "Record",
    "carve_valid",
    "clean_text",
    "concept_phrases",
    "format_bad_rows",
    "leak_check",
    "length_report",
    "load_extra_texts",
    "patient_splits",
    "read_manifest",
    "unique_texts",
    "usable_modalities",
]
