"""The SESKD student in training: a text encoder whose frozen part is computed once.

Shapes: n texts, K distinct texts, f width of the trunk's features, d dimension of the bound space.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m3bind.config import StudentConfig
from m3bind.data.batching import IntArray
from m3bind.data.tokens import TokenTable
from m3bind.errors import ConfigError
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.training.pairs import Batch, encode_parts, token_parts
from m3bind.training.parallel import gather, share


class StudentTexts:
    """The student and the run's texts, or the trunk's features of them, computed once."""

    def __init__(self, encoder: TextEncoder, tokens: TokenTable, features: NDArray[np.floating] | None = None) -> None:
        """`tokens` of the K texts; `features`: (K, f) if only the head is trained."""
        self.encoder, self.tokens, self.features = encoder, tokens, features

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

    def load(self, ids: IntArray, micro_tokens: int = 0) -> Batch:
        """What `encode` needs of the texts `ids` (n,), on the host, as `training.pairs.Texts.load`."""
        distinct, inverse = np.unique(ids, return_inverse=True)
        mine = share(distinct)
        batch = {"place": torch.from_numpy(inverse), "count": len(distinct)}
        if self.features is None:
            return batch | token_parts(self.tokens.padded(mine), micro_tokens)
        return batch | {"rows": torch.from_numpy(np.ascontiguousarray(self.features[mine], dtype=np.float32))}

    def encode(self, batch: Batch) -> Tensor:
        """A batch of `load` on the student's device -> (n, d) unit rows; each distinct text is encoded once."""
        if self.features is None:
            rows = encode_parts(lambda tokens: self.encoder.encode(tokens).float(), batch)
        else:
            rows = F.normalize(self.encoder.project(batch["rows"]).float(), dim=-1)
        return torch.index_select(gather(rows, batch["count"]), 0, batch["place"])  # one order of gradients, unlike [ ]
