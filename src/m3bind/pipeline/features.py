"""Outputs of frozen parts, computed once and cached: image inputs, trunk features, embeddings and text features.

* `FeatureExtractor`: computes them for any dual encoder, and training pairs from them.
* `levels`: the level up to which each side is frozen in a stage.

Shapes: N images, K texts, v views, f feature width.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.config import RunConfig
from m3bind.core.children import usable_cores
from m3bind.core.device import device_of
from m3bind.core.files import sha256_text
from m3bind.data.batching import IntArray
from m3bind.data.cache import FeatureCache
from m3bind.data.packing import Floats
from m3bind.data.ragged import Ragged
from m3bind.data.records import BadRow, Record, Records
from m3bind.data.text_table import TextTable
from m3bind.data.texts import concept_phrases
from m3bind.models.base import DualEncoder
from m3bind.models.frozen import FrozenPass
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.ingest import Ingested, ingest
from m3bind.pipeline.stored_inputs import BadFilesError, FileReader, Inputs, LiveInputs, StoredInputs, levels_of
from m3bind.pipeline.text_features import TextFeatures, text_trunk
from m3bind.training.pairs import Images, Level, Pairs, Texts

log = logging.getLogger(__name__)
TOGETHER = 512 << 20  # maximum bytes of inputs in a batch of a frozen tower
WIDE = 16384  # features wider than this are not cached on disk, embeddings are


def captions_of(records: Records, table: TextTable) -> Ragged:
    """The captions of records as indices in `table`."""
    captions = records.captions
    used, inverse = np.unique(captions.values, return_inverse=True)
    return Ragged(captions.offsets, table.ids_of(records.texts, used)[inverse])


def phrases_of(records: Records, table: TextTable) -> Ragged:
    """All phrases of the concepts of records, as indices in `table`."""
    concepts = records.concepts
    used, inverse = np.unique(concepts.values, return_inverse=True)
    names = records.columns.concept_names
    phrases = Ragged.of(table.ids(concept_phrases(names[concept])) for concept in used).take(inverse)
    return Ragged(phrases.offsets[concepts.offsets], phrases.values)


class FeatureExtractor:
    """Applies the frozen parts of dual encoders to files and texts and caches the outputs."""

    def __init__(
        self, cache: FeatureCache, batch: int = 32, workers: int | None = None, inputs_gb: float = 20.0
    ) -> None:
        """Batches of a trunk have at most `batch` images and 512 MiB; `workers` threads decode (default: all cores).

        A modality whose inputs need more than `inputs_gb` on disk is read from its files each time.
        """
        self.cache, self.batch, self.inputs_gb = cache, batch, inputs_gb
        self.workers = workers or usable_cores()
        self._hashes: dict[int, tuple[list[tuple[int, int]], str]] = {}
        self._levels: dict[str, Floats | None] = {}
        self._live: set[str] = set()  # kinds of inputs that were too many to store
        self.texts = TextFeatures(cache)

    def readable(self, records: Sequence[Record], model: DualEncoder) -> tuple[Records, list[BadRow]]:
        """Records whose files can be decoded and preprocessed, and the others with reasons; inputs are stored."""
        columns = Records.of(records)
        faults = self._ingest(columns, model).faults if len(columns) else {}
        at = sorted(faults)
        bad = [BadRow(record.row, faults[i], str(record.path)) for i, record in zip(at, columns.take(at))]
        return columns.take(np.delete(np.arange(len(columns)), at)), bad

    def inputs(self, records: Sequence[Record], model: DualEncoder) -> Inputs:
        """(N, ...) float32: `model.preprocess` of each file.

        Raises:
            BadFilesError: some files cannot be read; the others are stored.
        """
        return self._inputs(records, model)[0]

    def _inputs(self, records: Sequence[Record], model: DualEncoder) -> tuple[Inputs, list[str]]:
        """Inputs and content keys."""
        if not len(records):
            return StoredInputs(self.cache.shards("empty"), np.empty((0, 2), np.int64), None), []
        found = self._ingest(Records.of(records), model)
        if found.faults:
            raise BadFilesError(found.faults, Records.of(records).paths)
        return found.inputs, [key for key in found.keys if key is not None]

    def _ingest(self, records: Records, model: DualEncoder) -> Ingested:
        name = preprocessing(model)
        if name not in self._levels:
            self._levels[name] = levels_of(model)
        reader = FileReader(records[0].modality, model, name, self._levels[name])
        limit = 0.0 if reader.kind in self._live else self.inputs_gb * 1e9
        found = ingest(records, reader, self.cache, self.workers, limit)
        if isinstance(found.inputs, LiveInputs):
            self._live.add(reader.kind)
        return found

    def _together(self, inputs: Inputs, times: int) -> int:
        """Number of inputs in a batch."""
        size = 4 * int(np.prod(inputs.shape[1:], dtype=np.int64))
        return max(1, min(self.batch * times, TOGETHER // max(size, 1)))

    def image_features(
        self, records: Sequence[Record], model: DualEncoder, views: int = 1, degrade: float = 0.0
    ) -> NDArray[np.float32]:
        """(N, f), or (N, v, f) with several views: trunk features.

        View 0 is the image, the others are augmented and lose quality with probability `degrade`.
        """
        inputs, keys = self._inputs(records, model)
        forward = _image_pass(inputs, model, model.image_features)
        several = FrozenPass(model.image_features, forward.device, name=_name(model))

        def compute(at: list[int]) -> NDArray[np.float32]:
            if views == 1:
                return forward(torch.tensor(at)).numpy()
            items = [int(keys[position][:15], 16) for position in at]
            rows = torch.from_numpy(inputs[at])
            copies = [rows, *(model.augmented(rows, ItemRandom(view, items), degrade) for view in range(1, views))]
            return torch.stack([several(copy) for copy in copies], dim=1).numpy()

        augmented = "/by item" + (f"/degrade={degrade:g}" if degrade else "") if views > 1 else ""
        kind = f"image/{preprocessing(model)}/views={views}{augmented}{forward.kind}"
        label = f"features {records[0].modality}" if records else None
        weights, size = self._hash(model.image_trunk), self._together(inputs, forward.times)
        return np.asarray(self.cache.get_or_compute(kind, weights, keys, compute, size, label))

    def image_embeddings(
        self, records: Sequence[Record], model: DualEncoder, views: int = 1, degrade: float = 0.0
    ) -> NDArray[np.float32]:
        """(N, d_m) unit rows, or (N, v, d_m) of the views of `image_features`.

        Without views, they are themselves cached on disk if the trunk's features are too wide (CT-CLIP).
        """
        if views > 1:
            features = self.image_features(records, model, views, degrade)
            rows = _in_chunks(model.project_image, features.reshape(len(records) * views, -1), device_of(model))
            return rows.reshape(len(records), views, -1)
        if getattr(model.image_head, "in_features", 0) <= WIDE:
            return _in_chunks(model.project_image, self.image_features(records, model), device_of(model))
        inputs, keys = self._inputs(records, model)
        forward = _image_pass(inputs, model, model.encode_image)

        def compute(at: list[int]) -> NDArray[np.float32]:
            return forward(torch.tensor(at)).numpy()

        weights = sha256_text(self._hash(model.image_trunk), self._hash(model.image_head))
        kind = f"embedding/{preprocessing(model)}{forward.kind}"
        label = f"embed {records[0].modality}" if records else None
        size = self._together(inputs, forward.times)
        return np.asarray(self.cache.get_or_compute(kind, weights, keys, compute, size, label))

    def text_features(
        self,
        texts: Sequence[str] | TextTable,
        model: DualEncoder | TextEncoder,
        ids: IntArray | None = None,
        label: str = "texts",
    ) -> NDArray[np.float32]:
        """(n, f): text trunk features of texts, or of the given ids of a table, each distinct token sequence once."""
        return self.texts.features(texts, model, self._hash(text_trunk(model)), ids, label)

    def _hash(self, module: nn.Module) -> str:
        """Hash of a module's weights, computed again after an in-place change or after `invalidate_hashes`."""
        state = module.state_dict()
        marks = [(tensor.data_ptr(), tensor._version) for tensor in state.values()]
        known = self._hashes.get(id(module))
        if known is None or known[0] != marks:
            known = marks, hash_state(state)
            self._hashes[id(module)] = known
        return known[1]

    def invalidate_hashes(self) -> None:
        """To be called after training: merging adapters changes weights without changing their versions."""
        self._hashes.clear()

    def pairs(
        self,
        modality: str,
        model: DualEncoder,
        records: Sequence[Record],
        table: TextTable,
        image: Level,
        text: Level,
        views: int = 1,
        degrade: float = 0.0,
    ) -> Pairs:
        """The pairs of one modality, each side computed up to its level."""
        records = Records.of(records)
        label = records.label
        number = {name: i for i, name in enumerate(sorted(filter(None, label.present())))}
        numbers = np.array([number.get(name, -1) for name in label.names], np.int64)
        return Pairs(
            modality,
            model,
            self.image_side(model, records, image, views, degrade),
            self.text_side(model, table, text),
            captions_of(records, table),
            phrases_of(records, table),
            numbers[label.codes],
            records.patient.strings(),
        )

    def image_side(
        self, model: DualEncoder, records: Sequence[Record], level: Level, views: int = 1, degrade: float = 0.0
    ) -> Images:
        """Images at a level; several views, of which some lose quality, not at the level "input"."""
        if level == "input":
            return Images(model, level, lambda: self.inputs(records, model))
        if level == "features":
            return Images(model, level, lambda: self.image_features(records, model, views, degrade), views)
        return Images(model, level, lambda: self.image_embeddings(records, model, views, degrade), views)

    def text_side(self, model: DualEncoder, table: TextTable, level: Level) -> Texts:
        """The texts of `table` at a level."""
        if level == "input":
            return Texts(model, level, table, self.texts.tokens(model, table))

        def compute(ids: IntArray) -> NDArray[np.float32]:
            features = self.text_features(table, model, ids)
            if level == "features":
                return features
            return _in_chunks(model.project_text, features, device_of(model))

        return Texts(model, level, table, compute=compute)


def _image_pass(inputs: Inputs, model: DualEncoder, encode: Callable[[Tensor], Tensor]) -> FrozenPass:
    """From positions in `inputs` to rows of `encode`; what is moved to the device are packed inputs."""

    def load(at: Tensor) -> dict[str, Tensor]:
        return dict(inputs.packed(at.tolist()))

    return FrozenPass(lambda packed: encode(inputs.expand(packed)), device_of(model), load=load, name=_name(model))


def _name(model: DualEncoder) -> str:
    return f"the image tower of {model.registered_name or type(model).__name__}"


@torch.inference_mode()
def _in_chunks(
    project: Callable[[Tensor], Tensor], features: NDArray[np.float32], device: torch.device, size: int = 1024
) -> NDArray[np.float32]:
    """Unit rows of the projection of feature rows, by modules on `device`."""
    parts = []
    for i in range(0, len(features), size):
        rows = project(torch.from_numpy(features[i : i + size]).to(device))
        parts.append(torch.nn.functional.normalize(rows.float(), dim=-1).cpu())
    return torch.cat(parts).numpy() if parts else np.zeros((0, 1), np.float32)


def preprocessing(model: DualEncoder) -> str:
    """Key of a model's input tensor and trunk structure: its class and image settings."""
    text = json.dumps(model.image_settings(), sort_keys=True, default=str)
    return f"{type(model).__module__}.{type(model).__name__}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def levels(config: RunConfig, model: DualEncoder, stage: str) -> tuple[Level, Level]:
    """(image level, text level) from which a stage trains `model`: outputs of frozen parts are computed beforehand."""
    frozen = getattr(model, "frozen", ())
    if stage == "pretrain":
        return ("features" if "image_trunk" in frozen else "input", "features" if "text_trunk" in frozen else "input")
    trained: dict[str, Level] = {"lora": "input", "head": "features"}
    return trained.get(config.align.image, "embedding"), trained.get(config.align.text, "embedding")
