"""The image-text pairs of one modality for training; outputs of frozen parts are already computed.

* `Images` / `Texts`: one side of a modality at a *level*: raw input, trunk features, or finished embeddings. `encode`
  applies only the remaining parts of the tower, so a stage computes only what it trains.
* `token_lists`, `pad`: token ids of texts without and with padding.
* `in_parts`: a tower applied to parts of a batch, so that only one part's activations are in memory at a time.
* `encode_texts`: a text tower applied to texts in parts of limited size.
* `Pairs`: both sides, the captions and labels of each image, and Eq. 1 on a batch of them.

Shapes: n items of a batch, N images, K distinct texts, v augmented views, f feature width, d_m joint dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from m3bind.config import ContrastiveConfig
from m3bind.data.batching import IntArray, rng
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.bert import micro_batches
from m3bind.training.contrastive import clip_loss, identical_positives, mixed_positives
from m3bind.training.parallel import encode_sharded

Level = Literal["input", "features", "embedding"]
T = TypeVar("T")


class Images:
    """The images of one modality at a level: array (N, ...), or (N, v, ...) with several views."""

    def __init__(self, model: DualEncoder, level: Level, array: Any, views: int = 1) -> None:
        """`array` may be memory-mapped, or a function that returns it, called at the first access."""
        self.model, self.level, self.views = model, level, views
        self._array = array

    @property
    def array(self) -> Any:
        """All rows. Access it before a stage puts the model in train mode."""
        if callable(self._array):
            self._array = self._array()
        return self._array

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, indices: Tensor, view: int = 0) -> Tensor:
        """The stored rows, float32, on the model's device."""
        index = indices.cpu().numpy()
        rows = self.array[index]
        if self.views > 1:
            rows = rows[:, view]
        return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).to(self.model.logit_scale.device)

    def encode(
        self, indices: Tensor, view: int = 0, generator: torch.Generator | None = None, micro: int = 0
    ) -> Tensor:
        """(n,) indices -> (n, d_m) unit rows.

        `generator` enables the model's augmentation of raw input. `micro` limits the number of images per forward pass,
        and their activations are recomputed in the backward pass.
        """
        rows = self.rows(indices, view)
        if self.level == "input":
            if generator is not None:
                rows = self.model.augment(rows, generator)
            parts = torch.split(rows, micro or max(len(rows), 1))
            recompute = micro > 0 and not getattr(self.model.image_trunk, "recomputes", False)
            return in_parts(lambda part: self.model.encode_image(part).float(), parts, recompute)
        if self.level == "features":
            return F.normalize(self.model.project_image(rows).float(), dim=-1)
        return rows


class Texts:
    """The distinct texts as input of the text tower of one modality."""

    def __init__(self, model: DualEncoder, level: Level, table: TextTable, array: NDArray[Any] | None = None) -> None:
        """`array`: (K, f) features or (K, d_m) embeddings; None for the level "input" (texts tokenised once)."""
        self.model, self.level, self.table, self.array = model, level, table, array
        self._ids: dict[int, list[int]] = {}

    def tokens(self, ids: Sequence[int]) -> Tokens:
        """Tokens of texts, padded to the longest; each text is tokenised only once."""
        missing = [i for i in ids if i not in self._ids]
        self._ids.update(
            zip(missing, token_lists(self.model.tokenize, self.table.take(np.array(missing, np.int64))), strict=True)
        )
        padded = pad([self._ids[i] for i in ids])
        return {name: tensor.to(self.model.logit_scale.device) for name, tensor in padded.items()}

    def encode(self, ids: Tensor, micro_tokens: int = 0) -> Tensor:
        """(n,) text indices -> (n, d_m) unit rows; each distinct text once, at most `micro_tokens` tokens together."""
        distinct, inverse = torch.unique(ids, return_inverse=True)
        rows = encode_sharded(lambda part: self._encode(part, micro_tokens), distinct)
        return torch.index_select(rows, 0, inverse)  # unlike rows[inverse], adds gradients in one order

    def _encode(self, ids: Tensor, micro_tokens: int) -> Tensor:
        if self.level == "input":
            return encode_texts(lambda t: self.model.encode_text(t).float(), self.tokens(ids.tolist()), micro_tokens)
        assert self.array is not None
        rows = torch.from_numpy(np.ascontiguousarray(self.array[ids.cpu().numpy()], dtype=np.float32))
        rows = rows.to(self.model.logit_scale.device)
        if self.level == "features":
            return F.normalize(self.model.project_text(rows).float(), dim=-1)
        return rows


def in_parts(encode: Callable[[T], Tensor], parts: Sequence[T], recompute: bool = True) -> Tensor:
    """`encode` of each part, one after the other: (n, d).

    With gradients, only a part's input and result are stored; its activations are recomputed in the backward pass, with
    the same dropout. Gradients are those of the whole batch. `recompute=False` stores all activations, also for a tower
    that recomputes them itself, layer by layer (attribute `recomputes` of its trunk).
    """
    if not recompute or not torch.is_grad_enabled():
        return torch.cat([encode(part) for part in parts])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


def encode_texts(encode: Callable[[Tokens], Tensor], tokens: Tokens, micro_tokens: int) -> Tensor:
    """`encode` of texts (n, L), at most `micro_tokens` real tokens together (0: all): (n, d)."""
    lengths = tokens["attention_mask"].sum(1)
    if not micro_tokens:
        return encode(tokens)
    groups = list(micro_batches(lengths, micro_tokens))
    parts: list[Tokens] = []
    for rows in groups:
        longest = int(lengths[rows].max())
        parts.append({key: value[rows, :longest] for key, value in tokens.items()})
    return in_parts(encode, parts)[torch.argsort(torch.cat(groups))]


def token_lists(tokenize: Callable[[Sequence[str]], Tokens], texts: Sequence[str], chunk: int = 512) -> list[list[int]]:
    """The token ids of each text without padding."""
    lists: list[list[int]] = []
    for start in range(0, len(texts), chunk):
        tokens = tokenize(texts[start : start + chunk])
        for row, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True):
            lists.append(row[mask.bool()].tolist())
    return lists


def pad(sequences: Sequence[list[int]]) -> Tokens:
    """Token ids padded with zeros to the longest, and their mask."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@dataclass
class Pairs:
    """Image-text pairs of one modality: N images with one or more captions each."""

    modality: str
    model: DualEncoder
    images: Images
    texts: Texts
    captions: Ragged  # per image: ids of texts that describe it; the first is canonical
    concepts: Ragged  # per image: ids of phrases shared by modalities, may be empty
    labels: IntArray  # (N,) class index for label supervision, -1: none
    patients: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def draw_captions(self, indices: IntArray, seed: int, step: int, concept_probability: float = 0.0) -> IntArray:
        """One caption id per image of a batch, shape (n,), determined by (seed, modality, step)."""
        random = rng(seed, "captions", self.modality, step)
        choice, concept, which = random.random(len(indices)), random.random(len(indices)), random.random(len(indices))
        ids = self.captions.draw(indices, choice)
        shared = np.flatnonzero((self.concepts.lengths[indices] > 0) & (concept < concept_probability))
        ids[shared] = self.concepts.draw(indices[shared], which[shared])
        return ids

    def positives(self, indices: IntArray, caption_ids: IntArray, settings: ContrastiveConfig) -> Tensor | None:
        """Target weights (n, n) of images and texts of the batch, None for the diagonal."""
        if settings.positives == "diagonal":
            return None
        ids = torch.from_numpy(caption_ids)
        if settings.positives == "identical":
            return identical_positives(ids)
        labels = [int(label) if label >= 0 else None for label in self.labels[indices]]
        return mixed_positives(ids, labels, settings.label_weight)

    def loss(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        indices: IntArray,
        caption_ids: IntArray,
        settings: ContrastiveConfig,
    ) -> Tensor:
        """Eq. 1 (or 8) of a batch: image and text (n, d) unit rows of the same pairs."""
        positives = self.positives(indices, caption_ids, settings)
        return clip_loss(image, text, scale, settings.direction, positives, settings.reduction)
