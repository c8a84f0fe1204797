"""Generated items for tests of indexes; also imported by processes the tests start."""

import numpy as np
import pandas as pd

MODALITIES = ("ct", "xray", "ecg")
LABELS = ("normal", "pneumonia", "normal|nodule", "a_b%c", "")
DIM = 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vectors(n, seed=0, dim=DIM):
    """Unit rows that lie in clusters, as embeddings do."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 50), dim))
    return unit(centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, dim)))


def items(ids, seed=0):
    rng = np.random.default_rng(seed)
    n = len(ids)
    return pd.DataFrame(
        {
            "id": list(ids),
            "modality": rng.choice(MODALITIES, n),
            "path": [f"/archive/{name}.dcm" for name in ids],
            "label": rng.choice(LABELS, n),
            "patient": [f"p{i}" for i in rng.integers(0, 9, n)],
            "date": rng.choice(["", "2019-12-31", "2020-01-01", "2020-06-30T10:00:00", "2021-12-31T23:59:59"], n),
        }
    )


def names(start, n):
    return [f"é{i:05d}" for i in range(start, start + n)]
