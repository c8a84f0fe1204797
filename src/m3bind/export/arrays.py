"""Exports the embeddings of an encoded archive as one file: Parquet, or NumPy's .npz.

* `write_parquet`: one row per item, its vector in the column `embedding` (a list of float32 of fixed length).
* `write_npz`: arrays `embedding` (n, d) float32 and one array of texts per column; no pickles.

Columns are `id` and `modality`; others (paths, labels, dates) may identify people and are opt-in.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3bind.encode.job import Encoded
from m3bind.errors import UnknownNameError

BLOCK = 8192  # items held in memory at once
COLUMNS = ("id", "modality")


def exported_columns(encoded: Encoded, extra: Sequence[str]) -> list[str]:
    """Names of the columns to write.

    Raises:
        UnknownNameError: the archive has no such column.
    """
    known = [str(name) for name in encoded.items.columns if name != "row"]
    for name in extra:
        if name not in known:
            raise UnknownNameError("column of the encoded archive", name, known)
    return list(dict.fromkeys([*(name for name in COLUMNS if name in known), *extra]))


def write_parquet(encoded: Encoded, folder: Path, columns: Sequence[str]) -> None:
    """Write embeddings.parquet; the file's metadata states the space and gap correction."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = encoded.embeddings.shape[1]
    types = [pa.field(name, pa.string()) for name in columns]
    about = {"space": encoded.fingerprint, "gap_corrected": str(encoded.gap_corrected).lower(), "rows": "unit"}
    schema = pa.schema([*types, pa.field("embedding", pa.list_(pa.float32(), dim))], metadata=about)
    with pq.ParquetWriter(folder / "embeddings.parquet", schema) as writer:
        for start in range(0, len(encoded), BLOCK):
            rows: Any = np.ascontiguousarray(encoded.embeddings[start : start + BLOCK], np.float32)
            items = encoded.items.iloc[start : start + BLOCK]
            arrays = [pa.array(items[name].astype(str).tolist(), pa.string()) for name in columns]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dim)
            writer.write_table(pa.Table.from_arrays([*arrays, vectors], schema=schema))


def write_npz(encoded: Encoded, folder: Path, columns: Sequence[str]) -> None:
    """Write embeddings.npz."""
    with zipfile.ZipFile(folder / "embeddings.npz", "w", zipfile.ZIP_STORED) as archive:
        header = {"descr": "<f4", "fortran_order": False, "shape": encoded.embeddings.shape}
        with archive.open("embedding.npy", "w", force_zip64=True) as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for start in range(0, len(encoded), BLOCK):
                handle.write(np.ascontiguousarray(encoded.embeddings[start : start + BLOCK], "<f4").tobytes())
        texts = {name: encoded.items[name].astype(str).to_numpy(dtype=str) for name in columns}
        for name, values in {**texts, "space": np.array(encoded.fingerprint)}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, values, allow_pickle=False)
