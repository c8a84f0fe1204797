"""Exports a space, its student or its towers in formats that other programs read. `m3bind export`.

| to | what is written | opened with |
|---|---|---|
| `sentence-transformers` | the student | `SentenceTransformer(FOLDER)`, nothing else installed |
| `hf` | the student: network, tokenizer, projection | `AutoModel`, and the lines in the folder's README |
| `onnx` | student and image towers, `parity.json` | onnxruntime |
| `hub` | the whole space and its model card | `m3bind.load(FOLDER)` |
| `parquet`, `npz` | embeddings of an encoded archive | pandas, polars, numpy |

Every folder is written as a whole and has `export.json`: format, code that opens it, SHA-256 of each file (`verify`).
`m3bind.load` opens the hub layout; for another export its error names the format and how to open it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3bind.encode.job import Encoded
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.export.base import export_folder, verify
from m3bind.export.card import EvaluationResult
from m3bind.export.onnx import Inputs
from m3bind.space.bundle import Space
from m3bind.space.exported_folders import MARKER

__all__ = ["ARRAYS", "FORMATS", "MARKER", "EvaluationResult", "Exported", "export_arrays", "export_space", "verify"]

FORMATS = {
    "sentence-transformers": 'sentence_transformers.SentenceTransformer("FOLDER")',
    "hf": 'transformers.AutoModel.from_pretrained("FOLDER"), then as in its README.md',
    "onnx": 'onnxruntime.InferenceSession("FOLDER/FILE.onnx")',
    "hub": 'm3bind.load("FOLDER")',
}
ARRAYS = {"parquet": 'pandas.read_parquet("FOLDER/embeddings.parquet")', "npz": 'numpy.load("FOLDER/embeddings.npz")'}


@dataclass
class Exported:
    """The written folder, and the parts that could not be exported."""

    folder: Path
    kind: str
    use: str  # code that opens it
    refused: dict[str, str] = field(default_factory=dict)  # part -> reason


def export_space(
    space: Space,
    to: str,
    out: Path | str,
    *,
    texts: Sequence[str] = (),
    inputs: Inputs | None = None,
    results: Sequence[EvaluationResult] = (),
) -> Exported:
    """Write a space, or its student, in another format.

    Args:
        space: a saved space, on any device; it is neither moved nor changed.
        to: a key of `FORMATS`.
        out: folder to write; an older export there is replaced as a whole.
        texts: for "onnx": texts to compare the student on; default: the templates of the space's prompts.
        inputs: for "onnx": outputs of `space.read`, per modality, to compare image towers on; default: generated ones.
        results: for "hub": lines of the evaluation table.

    Raises:
        UnknownNameError: unknown format.
        SpaceError: the space has no student, or was never saved.
        ConfigError: the student cannot be written in this format, an extra is missing, or `out` is not an export.
        DiskError: the file system refused; an older export there is left unchanged.
    """
    from m3bind.export import hf, hub, onnx, sentence_transformers
    from m3bind.export.samples import sample_inputs, sample_texts
    from m3bind.export.student import on_cpu

    if to not in FORMATS:
        raise UnknownNameError("format of a space's export", to, FORMATS)
    if to in ("sentence-transformers", "hf") and space.student is None:
        raise SpaceError(f"this space has no student to export as {to}; run distill, or export it to onnx or hub")
    facts = _facts(space)
    use = FORMATS[to].replace("FOLDER", str(out))
    refused: dict[str, str] = {}
    with export_folder(out, to, FORMATS[to], facts) as folder:
        if to == "hub":
            hub.write(space, folder, results)
        elif to == "onnx":
            inputs = inputs or {}
            samples = {name: inputs.get(name) or sample_inputs(space.model(name)) for name in space.modalities}
            refused = onnx.write(space, folder, facts, texts or sample_texts(space), samples)
        else:
            writer = sentence_transformers if to == "sentence-transformers" else hf
            assert space.student is not None
            student = on_cpu(space.student)
            writer.write(student, folder, {**facts, "max_tokens": student.max_tokens})
    return Exported(Path(out), to, use, refused)


def export_arrays(encoded: Encoded, to: str, out: Path | str, columns: Sequence[str] = ()) -> Exported:
    """Write the embeddings of an encoded archive as one file.

    Args:
        encoded: an opened archive.
        to: a key of `ARRAYS`.
        out: folder to write; an older export there is replaced as a whole.
        columns: columns beside `id` and `modality`; they may identify people.

    Raises:
        UnknownNameError: unknown format or column.
        ConfigError: the archive is empty, or `out` is not an export.
        DiskError: the file system refused; an older export there is left unchanged.
    """
    from m3bind.export import arrays

    if to not in ARRAYS:
        raise UnknownNameError("format of an archive's export", to, ARRAYS)
    if not len(encoded):
        raise ConfigError(f"{encoded.folder}: has no embeddings to export")
    names = arrays.exported_columns(encoded, columns)
    facts = {"space": encoded.fingerprint, "gap_corrected": encoded.gap_corrected, "n": len(encoded), "columns": names}
    with export_folder(out, to, ARRAYS[to], {**facts, "dim": int(encoded.embeddings.shape[1])}) as folder:
        (arrays.write_parquet if to == "parquet" else arrays.write_npz)(encoded, folder, names)
    return Exported(Path(out), to, ARRAYS[to].replace("FOLDER", str(out)))


def _facts(space: Space) -> dict[str, Any]:
    """The properties of a space that every export states."""
    return {
        "space": space.fingerprint,
        "dim": space.dim,
        "modalities": list(space.modalities),
        "licences": space.licences,
        "synthetic": space.synthetic,
    }
