"""Modality-gap correction: take a modality's mean embedding away before images of different modalities are compared.

Embeddings of one modality share a common offset, and that offset dominates image-to-image cosines across modalities.
* `modality_mean`: the offset, estimated on training data and stored with the space.
* `correct_gap`: embeddings without it, unit rows again.

Shapes: n items, d joint dimension.
"""

import numpy as np
import numpy.typing as npt

from m3bind.errors import ConfigError

Array = npt.NDArray[np.float32]


def modality_mean(embeddings: Array) -> Array:
    """(n, d) unit embeddings of one modality's training images -> their mean (d,), float32, not normalised.

    Raises:
        ConfigError: there is nothing to average.
    """
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ConfigError(f"modality_mean: expected (n, d) embeddings with n > 0, got shape {embeddings.shape}")
    return np.asarray(embeddings.mean(axis=0, dtype=np.float64), dtype=np.float32)


def correct_gap(embeddings: Array, mean: Array) -> Array:
    """(n, d) embeddings and their modality's mean (d,) -> normalised differences (n, d), float32.

    An embedding that equals the mean has no direction left; it becomes zeros, with cosine 0 to everything.

    Raises:
        ConfigError: `mean` is not (d,).
    """
    if mean.shape != embeddings.shape[-1:]:
        raise ConfigError(f"correct_gap: mean has shape {mean.shape}, embeddings {embeddings.shape}; expected (d,)")
    centred = embeddings.astype(np.float64) - mean
    norms = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.where(norms > 0, norms, 1), dtype=np.float32)
