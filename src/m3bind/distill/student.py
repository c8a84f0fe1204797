"""The SESKD student in training: a text encoder whose frozen part is computed once.

Shapes: n texts, K distinct texts, f width of the trunk's features, d dimension of the bound space.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m3bind.config import StudentConfig
from m3bind.data.text_table import TextTable
from m3bind.errors import ConfigError
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.training.pairs import encode_texts
from m3bind.training.parallel import encode_sharded


class StudentTexts:
    """The student and the run's texts, or the trunk's features of them, computed once."""

    def __init__(self, encoder: TextEncoder, table: TextTable, features: NDArray[np.floating] | None = None) -> None:
        """`features`: (K, f) if only the head is trained."""
        self.encoder, self.table, self.features = encoder, table, features

    def prepare(self, settings: StudentConfig) -> None:
        """Make the parameters trainable that `settings.train` names.

        Raises:
            ConfigError: train = "head" without precomputed features.
        """
        self.encoder.requires_grad_(False)
        self.encoder.train()
        self.encoder.head.requires_grad_(True)
        if settings.train == "full":
            self.encoder.trunk.requires_grad_(True)
        elif self.features is None:
            raise ConfigError(
                "distill.student.train=head needs the trunk's features of all texts; they were not computed"
            )

    def encode(self, ids: Tensor, micro_tokens: int = 0) -> Tensor:
        """(n,) text indices -> (n, d) unit rows; each distinct text once, at most `micro_tokens` tokens together."""
        distinct, inverse = torch.unique(ids, return_inverse=True)
        rows = encode_sharded(lambda part: self._encode(part, micro_tokens), distinct)
        return torch.index_select(rows, 0, inverse)  # unlike rows[inverse], adds gradients in one order

    def _encode(self, ids: Tensor, micro_tokens: int) -> Tensor:
        if self.features is None:
            tokens = self.encoder.tokenize(self.table.take(ids.numpy()))
            return encode_texts(lambda part: self.encoder.encode(part).float(), tokens, micro_tokens)
        rows = torch.from_numpy(np.ascontiguousarray(self.features[ids.numpy()], dtype=np.float32))
        return F.normalize(self.encoder.project(rows).float(), dim=-1)
