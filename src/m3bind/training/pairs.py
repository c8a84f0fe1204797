"""The image-text pairs of one modality for training; outputs of frozen parts are already computed.

* `Images` / `Texts`: one side of a modality at a *level*: raw input, trunk features, or finished embeddings. `load`
  collects a batch on the host (in a worker), `encode` applies the remaining parts of the tower on the device, so a
  stage computes only what it trains. * `ArrayRows`: rows that are stored as an array.
* `in_parts`: a tower applied to parts of a batch, so that only one part's activations are in memory at a time.
* `token_parts`, `encode_parts`: texts cut into parts of limited size, and a text tower applied to them.
* `Pairs`: both sides, the captions and labels of each image, and batches of them. * `contrastive_loss`: Eq. 1.

Shapes: n items of a batch, N images, K distinct texts, v augmented views, f feature width, d_m joint dimension.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from m3bind.config import ContrastiveConfig, TrainConfig
from m3bind.core.device import bound_heap, device_of, moved
from m3bind.data.batching import IntArray, distinct_ids, rng
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.data.tokens import TokenTable
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.layers.bert import micro_batches
from m3bind.training.contrastive import clip_loss, identical_positives, mixed_positives
from m3bind.training.parallel import gather, share

Level = Literal["input", "features", "embedding"]
T = TypeVar("T")
Batch = dict[str, Any]  # nested host or device tensors, and numbers


class ArrayRows:
    """Rows (N, ...) of an array, or (N, v, ...) with several views; `inputs` of pipeline/features.py have this form."""

    live = False  # whether rows are decoded from files at every access

    def __init__(self, array: Any) -> None:
        """`array` may be memory-mapped."""
        self.array, self.shape = array, tuple(array.shape)

    def __len__(self) -> int:
        return len(self.array)

    def packed(self, positions: IntArray, view: int | None = None) -> dict[str, Tensor]:
        """The stored rows, on the host."""
        rows = self.array[positions]
        rows = rows if view is None else rows[:, view]
        return {"rows": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))}

    def expand(self, packed: Mapping[str, Tensor]) -> Tensor:
        """`packed` on any device -> float32 rows (n, ...)."""
        return packed["rows"]


class Images:
    """The images of one modality at a level: inputs (N, ...), else rows (N, f), or (N, v, f) of several views."""

    def __init__(self, model: DualEncoder, level: Level, rows: Any, views: int = 1) -> None:
        """`rows`: an array, an object like `ArrayRows`, or a function that returns one, called at the first access."""
        self.model, self.level, self.views = model, level, views
        self._rows = rows

    @property
    def rows(self) -> Any:
        """All rows, as an object like `ArrayRows`. Access it before a stage puts the model in train mode."""
        if callable(self._rows):
            self._rows = self._rows()
        if not hasattr(self._rows, "packed"):
            self._rows = ArrayRows(self._rows)
        return self._rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def reads_files(self) -> bool:
        """Whether rows are decoded from their files each time."""
        return bool(self.rows.live)

    def load(self, indices: IntArray, view: int = 0, augment: int | None = None, degrade: float = 0.0) -> Batch:
        """What `encode` needs of this process's share of the images `indices` (n,), on the host.

        `augment` is the key (`ItemRandom`) of the model's augmentation of raw input, `degrade` the probability that
        quality is lost too; None: not augmented.
        """
        mine, rows = share(indices), self.rows
        packed = rows.packed(mine, view) if self.views > 1 else rows.packed(mine)
        if augment is not None and self.level == "input":
            packed = {"augmented": self.model.augmented(rows.expand(packed), ItemRandom(augment, mine), degrade)}
        return {"images": packed, "count": len(indices)}

    def encode(self, batch: Batch, micro: int = 0) -> Tensor:
        """A batch of `load` on the model's device -> (n, d_m) unit rows, all processes' shares.

        `micro` limits the number of images per forward pass, and their activations are recomputed in the backward pass.
        """
        packed = batch["images"]
        rows = packed["augmented"] if "augmented" in packed else self.rows.expand(packed)
        if self.level == "input":
            parts = torch.split(rows, micro or max(len(rows), 1))
            recompute = micro > 0 and not getattr(self.model.image_trunk, "recomputes", False)
            rows = in_parts(lambda part: self.model.encode_image(part).float(), parts, recompute)
        elif self.level == "features":
            rows = F.normalize(self.model.project_image(rows).float(), dim=-1)
        return gather(rows, batch["count"])

    def embed(self, indices: IntArray, view: int = 0) -> Tensor:
        """(n,) positions -> (n, d_m) unit rows on the model's device."""
        return self.encode(moved(self.load(indices, view), device_of(self.model)))


class Texts:
    """The distinct texts of a run at a level, as input of the text tower of one modality."""

    def __init__(
        self,
        model: DualEncoder,
        level: Level,
        table: TextTable,
        tokens: TokenTable | None = None,
        compute: Callable[[IntArray], NDArray[Any]] | None = None,
    ) -> None:
        """`tokens` for the level "input"; otherwise `compute`: (n,) text ids -> (n, f) features or (n, d_m) embeddings.

        Rows are computed when they are first needed.
        """
        self.model, self.level, self.table = model, level, table
        self.tokens, self._compute = tokens, compute
        self._ids: IntArray = np.zeros(0, np.int64)  # ascending: texts whose rows are known
        self._rows: NDArray[np.float32] | None = None

    def need(self, ids: IntArray) -> None:
        """Compute the rows of texts that are not known yet; all that batches draw, before workers load them.

        Several processes call this with the same ids, since they share the computation.
        """
        missing = distinct_ids(ids[~np.isin(ids, self._ids)])
        if self.level == "input" or not len(missing):
            return
        assert self._compute is not None
        rows = np.ascontiguousarray(self._compute(missing), dtype=np.float32)
        known = np.concatenate([self._ids, missing])
        order = np.argsort(known)
        self._ids = known[order]
        self._rows = (rows if self._rows is None else np.concatenate([self._rows, rows]))[order]

    def load(self, ids: IntArray, micro_tokens: int = 0) -> Batch:
        """What `encode` needs of the texts `ids` (n,), on the host: this process's share of the distinct ones.

        At most `micro_tokens` real tokens form a forward pass (0: no limit).
        """
        distinct, inverse = np.unique(ids, return_inverse=True)
        mine = share(distinct)
        batch = {"place": torch.from_numpy(inverse), "count": len(distinct)}
        if self.level == "input":
            assert self.tokens is not None
            return batch | token_parts(self.tokens.padded(mine), micro_tokens)
        self.need(distinct)
        assert self._rows is not None
        return batch | {"rows": torch.from_numpy(self._rows[np.searchsorted(self._ids, mine)])}

    def embed(self, ids: IntArray) -> Tensor:
        """(n,) text ids -> (n, d_m) unit rows on the model's device."""
        return self.encode(moved(self.load(ids), device_of(self.model)))

    def encode(self, batch: Batch) -> Tensor:
        """A batch of `load` on the model's device -> (n, d_m) unit rows; each distinct text is encoded once."""
        if self.level == "input":
            rows = encode_parts(lambda tokens: self.model.encode_text(tokens).float(), batch)
        elif self.level == "features":
            rows = F.normalize(self.model.project_text(batch["rows"]).float(), dim=-1)
        else:
            rows = batch["rows"]
        return torch.index_select(gather(rows, batch["count"]), 0, batch["place"])  # one order of gradients, unlike [ ]


def token_parts(tokens: Tokens, micro_tokens: int) -> Batch:
    """Texts (n, L) cut into parts of at most `micro_tokens` real tokens (0: one part), longest texts first.

    Each part is padded to its longest text only. "order" sorts the parts' results back; absent for one part.
    """
    if not micro_tokens:
        return {"parts": [tokens]}
    lengths = tokens["attention_mask"].sum(1)
    groups = list(micro_batches(lengths, micro_tokens))
    parts = [{key: value[rows, : int(lengths[rows].max())] for key, value in tokens.items()} for rows in groups]
    return {"parts": parts, "order": torch.argsort(torch.cat(groups))}


def encode_parts(encode: Callable[[Tokens], Tensor], batch: Batch) -> Tensor:
    """`encode` of the texts of `token_parts`, one part after the other, in their original order: (n, d)."""
    if "order" not in batch:
        return encode(batch["parts"][0])
    return torch.index_select(in_parts(encode, batch["parts"]), 0, batch["order"])


def in_parts(encode: Callable[[T], Tensor], parts: Sequence[T], recompute: bool = True) -> Tensor:
    """`encode` of each part, one after the other: (n, d).

    With gradients, only a part's input and result are stored; its activations are recomputed in the backward pass, with
    the same dropout. Gradients are those of the whole batch. `recompute=False` stores all activations, also for a tower
    that recomputes them itself, layer by layer (attribute `recomputes` of its trunk).
    """

    def bounded(part: T) -> Tensor:  # in the backward pass as well
        bound_heap()
        return encode(part)

    if not recompute or not torch.is_grad_enabled():
        return torch.cat([bounded(part) for part in parts])
    return torch.cat([checkpoint(bounded, part, use_reentrant=False) for part in parts])


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

    def described_by(self) -> IntArray:
        """Ids of all texts that `draw_captions` can draw, ascending."""
        return distinct_ids(self.captions.values, self.concepts.values)

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

    def load(
        self,
        indices: IntArray,
        captions: IntArray,
        settings: TrainConfig,
        contrastive: ContrastiveConfig,
        further: IntArray | None = None,
        view: int = 0,
        augment: int | None = None,
        degrade: float = 0.0,
    ) -> Batch:
        """What `encode` and `loss` need of a batch, on the host.

        Args:
            indices: (n,) images.
            captions: (n,) text ids, one per image.
            settings: of the loop.
            contrastive: which texts are positives of which images.
            further: (s,) more texts, encoded together with the captions.
            view: stored view of the images.
            augment: key of the augmentation; None: none.
            degrade: probability that an augmented image loses quality too.
        """
        texts = captions if further is None else np.concatenate([captions, further])
        return {
            "images": self.images.load(indices, view, augment, degrade),
            "texts": self.texts.load(texts, settings.micro_tokens),
            "positives": self.positives(indices, captions, contrastive),
        }

    def encode(self, batch: Batch, settings: TrainConfig) -> tuple[Tensor, Tensor]:
        """(n, d_m) unit rows of the batch's images and (n + s, d_m) of its captions and further texts."""
        return self.images.encode(batch["images"], settings.micro(self.modality)), self.texts.encode(batch["texts"])


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, batch: Batch, settings: ContrastiveConfig) -> Tensor:
    """Eq. 1 (or 8) of a batch of `Pairs.load`: image and text (n, d) unit rows of the same pairs."""
    return clip_loss(image, text, scale, settings.direction, batch["positives"], settings.reduction)
