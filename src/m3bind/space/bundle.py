"""A bound space: encodes texts and files of any modality as comparable unit vectors.

* `load`: open a saved space (a folder, or the id of a repository on the hub). `save_space`: write one.
* `Space`: encode texts and images, classify, compare.

    image of modality m  ->  B_m.image(f_m(image))            text, encoder="m"        ->  B_m.text(g_m(text))
                                                               text, encoder="student"  ->  S(text)

Shapes: n items, d dimension of the space, d_m joint dimension of modality m's model, c classes.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind import modalities
from m3bind.core.children import usable_cores
from m3bind.core.device import compute_dtype, device_of, pick, to_device
from m3bind.errors import ConfigError, NotFiniteError, SpaceError, UnknownNameError
from m3bind.modalities.formats.isolation import allow
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.bridges import BaseBridge, Bridge
from m3bind.models.embedding import Array, encode_distinct, evaluating, similarity, softmax, text_dtype
from m3bind.models.frozen import FrozenPass
from m3bind.models.layers.text_encoder import TextEncoder
from m3bind.space.exported_folders import refuse_foreign
from m3bind.space.folder import MANIFEST, Contents, SpaceInfo, card_of, write_folder
from m3bind.space.image_side import DISTANCES, after_trunk, image_side
from m3bind.space.input_statistics import input_statistics
from m3bind.space.prompts import Labels, Prompts, prompts_of
from m3bind.space.reader import read_folder
from m3bind.space.unlike import UnlikeMeasure

log = logging.getLogger(__name__)

STUDENT = "student"


class Space:
    """Several modalities and a text encoder in one space of unit vectors. Created by `load` or from parts in memory."""

    def __init__(
        self,
        models: Mapping[str, DualEncoder],
        bridges: Mapping[str, BaseBridge | Tensor | NDArray[Any]],
        means: Mapping[str, Tensor | NDArray[Any]] | None = None,
        student: TextEncoder | None = None,
        info: SpaceInfo | None = None,
        unlike: Mapping[str, UnlikeMeasure] | None = None,
        texts: Mapping[str, tuple[Tensor | NDArray[Any], Tensor | NDArray[Any]]] | None = None,
    ) -> None:
        """Combine parts; models are not copied, and modules' training modes are left unchanged.

        Args:
            models: the dual encoder of each modality, adapters merged.
            bridges: one per modality; a matrix (d_m, d) is a linear one.
            means: (d,) training mean of unit image embeddings per modality, for gap correction.
            student: the shared text encoder, if distilled.
            info: config, prompts, counts of records, temperatures, whether the data were synthetic.
            unlike: how unlike its training data an input is, per modality.
            texts: reference texts of each modality, see `reference_texts`.

        Raises:
            SpaceError: a bridge is missing, not finite, or its shape does not fit.
        """
        modules = {name: _as_bridge(name, bridge) for name, bridge in bridges.items()}
        tensors = {name: _matrix(mean) for name, mean in (means or {}).items()}
        references = {name: (_matrix(rows), _matrix(weights)) for name, (rows, weights) in (texts or {}).items()}
        parts = dict(models), modules, tensors, student, info or SpaceInfo()
        self._contents = Contents(*parts, dict(unlike or {}), references)
        self._precisions: dict[tuple[str, torch.device], torch.dtype] = {}  # of text towers
        self._passes: dict[tuple[str, torch.device, torch.dtype | None], FrozenPass] = {}  # of image towers
        self._check()

    def _check(self) -> None:
        """Raise unless all parts fit each other."""
        models, bridges = self._contents.models, self._contents.bridges
        named = {*self._contents.means, *self._contents.unlike, *self.info.temperatures}
        if not models or set(models) != set(bridges) or not named <= set(models):
            raise SpaceError(
                f"a space needs one bridge per modality; models {sorted(models)}, bridges {sorted(bridges)}"
            )
        if STUDENT in models:
            raise SpaceError(f"a modality cannot be called {STUDENT!r}, that is the shared text encoder")
        for name, bridge in bridges.items():
            if (bridge.source, bridge.dim) != (models[name].joint_dim, self.dim):
                raise SpaceError(
                    f"bridge of {name} has shape {(bridge.source, bridge.dim)}; "
                    f"needed: {(models[name].joint_dim, self.dim)}"
                )
            if not all(torch.isfinite(value).all() for value in bridge.state_dict().values()):
                raise SpaceError(f"bridge of {name} is not finite; train again")
        for name, mean in self._contents.means.items():
            if not torch.isfinite(mean).all() or mean.shape[-1] != self.dim:
                raise SpaceError(f"mean of {name} is not finite or not of dimension {self.dim}; train again")
        for name, (rows, weights) in self._contents.texts.items():
            fitting = rows.ndim == 2 and rows.shape == (len(weights), self.dim) and len(rows) and name in models
            if not fitting or not torch.isfinite(rows).all() or not (weights > 0).all():
                raise SpaceError(f"reference texts of {name} do not fit the space; train again")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self._contents.models)

    @property
    def dim(self) -> int:
        """Dimension d of the space."""
        return next(iter(self._contents.bridges.values())).dim

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Values that `encoder=` takes: each modality's own text tower, and "student" if the space was distilled."""
        return (*self.modalities, *([STUDENT] if self._contents.student is not None else []))

    @property
    def info(self) -> SpaceInfo:
        """Config, prompts, counts of training records, versions."""
        return self._contents.info

    @property
    def synthetic(self) -> bool:
        """Whether the space was trained on virtual patients."""
        return self.info.synthetic

    @property
    def cards(self) -> dict[str, dict[str, Any]]:
        """The model card of each modality: source, licences, training data."""
        return {name: self.info.cards.get(name) or card_of(model) for name, model in self._contents.models.items()}

    @property
    def licences(self) -> dict[str, str]:
        """The licence of each modality's weights."""
        return {name: card.get("licence_weights", "unknown") for name, card in self.cards.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that embeddings depend on.

        Raises:
            SpaceError: the space was assembled in memory and never saved.
        """
        if not self._contents.fingerprint:
            raise SpaceError("this space exists in memory only; save it with save_space first")
        return self._contents.fingerprint

    def model(self, modality: str) -> DualEncoder:
        """The dual encoder of a modality.

        Raises:
            UnknownNameError: the space does not hold that modality.
        """
        try:
            return self._contents.models[modality]
        except KeyError:
            raise UnknownNameError("modality of this space", modality, self.modalities) from None

    def bridge(self, modality: str) -> Array:
        """The map of a modality into the space, (d_m, d) float32.

        Raises:
            SpaceError: the modality was not bound by one linear map.
        """
        self.model(modality)
        bridge = self._contents.bridges[modality]
        if not isinstance(bridge, Bridge):
            raise SpaceError(
                f"{modality} is bound by a {bridge.kind} bridge, which is not a matrix; encode with the space"
            )
        values: Array = bridge.weight.detach().cpu().numpy().copy()
        return values

    def bridge_module(self, modality: str) -> BaseBridge:
        """The bridge of a modality, of any kind.

        Raises:
            UnknownNameError: the space does not hold that modality.
        """
        self.model(modality)
        return self._contents.bridges[modality]

    @property
    def student(self) -> TextEncoder | None:
        """The shared text encoder, if the space was distilled."""
        return self._contents.student

    def logit_scale(self, modality: str) -> float:
        """Factor on cosines before a softmax, as trained."""
        return float(self.model(modality).logit_scale.detach())

    @property
    def measures(self) -> Mapping[str, UnlikeMeasure]:
        """How unlike its training data an input is; a modality may have none."""
        return self._contents.unlike

    def temperature(self, modality: str) -> float | None:
        """Divides zero-shot logits, fitted on the valid split; None if the space was saved without."""
        self.model(modality)
        return self.info.temperatures.get(modality)

    def image_mean(self, modality: str) -> Array:
        """Mean of the unit image embeddings of the training data, (d,) float32, for gap correction.

        Raises:
            SpaceError: it was not stored.
        """
        self.model(modality)
        if modality not in self._contents.means:
            raise SpaceError(f"no image mean of {modality} in this space; gap correction needs one, so switch it off")
        values: Array = self._contents.means[modality].cpu().numpy().copy()
        return values

    def reference_texts(self, modality: str) -> tuple[Array, Array] | None:
        """What the training texts of a modality speak of; search ranks modalities by it (search/ranking.py).

        Unit rows (t, d) float32, of texts and of means of several, and how many texts each stands for (t,); None if
        the space stores none.
        """
        self.model(modality)
        stored = self._contents.texts.get(modality)
        return None if stored is None else (stored[0].cpu().numpy(), stored[1].cpu().numpy())

    @property
    def device(self) -> torch.device:
        """Where the space computes."""
        return device_of(next(iter(self._contents.models.values())))

    def to(self, device: str | torch.device) -> "Space":
        """Move everything to a device; returns the space itself."""
        contents = self._contents
        for module in (
            *contents.models.values(),
            *contents.bridges.values(),
            *contents.unlike.values(),
            *([contents.student] if contents.student is not None else []),
        ):
            module.to(device)
        return self

    def encode_text(self, texts: Sequence[str] | str, encoder: str | None = None) -> Array:
        """Texts -> (n, d) float32 unit rows. Each distinct text is encoded once, in batches of similar length.

        In bfloat16 if the device is faster in it and the tower's vectors stay within cosine 0.9999 of float32.

        Args:
            texts: any number of texts.
            encoder: which text encoder: "student" (the default if the space has one) or a modality, for its own.

        Raises:
            SpaceError: no student in this space and `encoder` not given.
            UnknownNameError: no such text encoder.
            ConfigError: a text is empty.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for number, value in enumerate(texts):
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(f"text {number} is empty or not a text ({value!r:.40}); leave it out")
        path = self._text_encoder(encoder)
        tokenize, encode, modules = self._text_tower(path)
        with evaluating(*modules):
            dtype = self._text_precision(path, tokenize, encode)
            return encode_distinct(texts, tokenize, encode, self.dim, self.device, dtype)

    def _text_tower(
        self, path: str
    ) -> tuple[Callable[[Sequence[str]], Tokens], Callable[[Tokens], Tensor], tuple[nn.Module, ...]]:
        """Tokenizer, tokens -> (n, d) unit rows, and the modules that compute them."""
        student = self._contents.student
        if path == STUDENT and student is not None:
            return student.tokenize, student.encode, (student,)
        model, bridge = self.model(path), self._contents.bridges[path]
        return model.tokenize, lambda tokens: bridge.text(model.encode_text(tokens).float()), (model, bridge)

    def _text_precision(
        self, path: str, tokenize: Callable[[Sequence[str]], Tokens], encode: Callable[[Tokens], Tensor]
    ) -> torch.dtype:
        """The device's half precision if the tower tolerates it, else float32; measured once per tower and device."""
        device = self.device
        key = path, device
        if key not in self._precisions:
            fast = compute_dtype(device)
            chosen, mean, smallest = text_dtype(tokenize, encode, device, fast)
            if chosen != fast:
                log.warning(
                    "texts of %s are encoded in float32: in %s their cosine to it is %.6f (smallest %.6f)",
                    path, fast, mean, smallest,
                )  # fmt: skip
            self._precisions[key] = chosen
        return self._precisions[key]

    def _text_encoder(self, encoder: str | None) -> str:
        if encoder is None:
            if self._contents.student is None:
                raise SpaceError(f"this space has no student; choose with encoder=, one of {self.text_encoders}")
            return STUDENT
        if encoder not in self.text_encoders:
            raise UnknownNameError("text encoder", encoder, self.text_encoders)
        return encoder

    def read(self, path: Path | str, modality: str) -> Tensor:
        """Decode and prepare one file: the float32 input of the modality's model, without the batch axis.

        Raises:
            ReadError: the file is missing, damaged, or of another kind.
        """
        return self.model(modality).preprocess(modalities.decode(modality, path))

    def encode_inputs(self, inputs: Sequence[Tensor], modality: str, dtype: torch.dtype | None = None) -> Array:
        """Outputs of `read` -> (n, d) float32 unit rows; arguments and errors as `examine_inputs`."""
        return np.ascontiguousarray(self._encode(inputs, modality, dtype)[:, : self.dim])

    def examine_inputs(
        self, inputs: Sequence[Tensor], modality: str, dtype: torch.dtype | None = None
    ) -> tuple[Array, list[str]]:
        """Outputs of `read` -> (n, d) float32 unit rows, and why each is unlike the training data ("": it is not).

        In one batch per shape, or in parts that fit the memory. `dtype` is that of matrix products. None: float32 on a
        CPU; elsewhere the device's half precision, if it stays within cosine 0.999 of float32.

        Raises:
            NotFiniteError: an embedding is NaN or infinite.
        """
        rows, measure = self._encode(inputs, modality, dtype), self.measures.get(modality)
        if measure is None or not len(inputs):
            return rows, [""] * len(inputs)
        statistics = np.concatenate([input_statistics(value[None]) for value in inputs])
        return np.ascontiguousarray(rows[:, : self.dim]), measure.reasons(rows[:, self.dim :], statistics)

    def examine_features(self, features: Tensor, statistics: Array, modality: str) -> tuple[Array, list[str]]:
        """As `examine_inputs`, from features (n, f) of the trunk and the `input_statistics` (n, S) of the inputs."""
        model, bridge, measure = self.model(modality), self._contents.bridges[modality], self.measures.get(modality)
        with evaluating(model, bridge), torch.inference_mode():
            rows = after_trunk(model, bridge, measure)(features.to(self.device)).cpu().numpy()
        reasons = [""] * len(rows) if measure is None else measure.reasons(rows[:, self.dim :], statistics)
        return np.ascontiguousarray(rows[:, : self.dim]), reasons

    def _encode(self, inputs: Sequence[Tensor], modality: str, dtype: torch.dtype | None) -> Array:
        """(n, d) unit rows, or (n, d + 2) with the distances of `image_side`."""
        model, bridge, measure = self.model(modality), self._contents.bridges[modality], self.measures.get(modality)
        key = modality, self.device, dtype
        if key not in self._passes:
            name = f"the image tower of {modality}"
            self._passes[key] = FrozenPass(image_side(model, bridge, measure), *key[1:], name=name, compared=self.dim)
        out = np.empty((len(inputs), self.dim + DISTANCES * (measure is not None)), np.float32)
        shapes: dict[tuple[int, ...], list[int]] = {}
        for position, value in enumerate(inputs):
            shapes.setdefault(tuple(value.shape), []).append(position)
        with evaluating(model, bridge):
            for positions in shapes.values():
                out[positions] = self._passes[key](torch.stack([inputs[position] for position in positions])).numpy()
        if not np.isfinite(out).all():
            raise NotFiniteError(f"an embedding of {modality} is not finite; check the file and the weights")
        return out

    def examine(
        self, paths: Sequence[Path | str] | Path | str, modality: str, batch: int = 32, workers: int | None = None
    ) -> tuple[Array, list[str]]:
        """As `encode_image`, and why each file is unlike the training data ("": it is not, or nothing is measured)."""
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        self.model(modality)
        rows, reasons = [np.empty((0, self.dim), np.float32)], []
        workers = workers or usable_cores()
        allow(workers)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(files), batch):
                inputs = list(pool.map(partial(self.read, modality=modality), files[start : start + batch]))
                encoded, unlike = self.examine_inputs(inputs, modality)
                rows.append(encoded)
                reasons += unlike
        return np.concatenate(rows), reasons

    def encode_image(
        self, paths: Sequence[Path | str] | Path | str, modality: str, batch: int = 32, workers: int | None = None
    ) -> Array:
        """Files of one modality -> (n, d) float32 unit rows. To quarantine unreadable files: `encode_files`.

        Args:
            paths: any number of files.
            modality: of all of them.
            batch: files that are read and encoded together.
            workers: processes that read files; one per usable core by default.

        Raises:
            ReadError: a file is missing, damaged, or of another kind.
            UnknownNameError: the space does not hold that modality.
        """
        rows, reasons = self.examine(paths, modality, batch, workers)
        if unlike := list(filter(None, reasons)):
            log.warning(
                "%d of %d files of %s are unlike the training data (%s)", len(unlike), len(rows), modality, unlike[0]
            )
        return rows

    def project(self, rows: NDArray[Any], modality: str, side: Literal["image", "text"] = "image") -> Array:
        """Embeddings of the modality's own model, (n, d_m) unit rows, in this space: (n, d) float32 unit rows."""
        self.model(modality)
        bridge = self._contents.bridges[modality]
        with evaluating(bridge):
            own = to_device(torch.as_tensor(rows, dtype=torch.float32), self.device)
            out: Array = (bridge.image(own) if side == "image" else bridge.text(own)).float().cpu().numpy()
        return out

    def class_embeddings(
        self, labels: Labels, modality: str, prompts: Prompts | None = None, encoder: str | None = None
    ) -> Array:
        """(c, d) unit rows: per label the mean of its prompts' embeddings, normalised.

        Args:
            labels: class names, or a mapping from class name to prompts (`m3bind.class_prompts` reads one from a file).
            modality: whose stored templates are used if `prompts` is None (without any, the label itself).
            prompts: templates with {} for the label, or a mapping from label to texts.
            encoder: text encoder; default the student, or the modality's own without a student.

        Raises:
            ConfigError: no labels, a label without prompts, or a template that cannot be filled.
        """
        self.model(modality)
        if not labels or isinstance(labels, str):
            raise ConfigError("classification needs a list of labels, e.g. labels=['normal', 'pneumonia']")
        if isinstance(labels, Mapping):
            prompts = labels
        prompts = self.info.prompts.get(modality) if prompts is None else prompts
        groups = [prompts_of(label, prompts) for label in labels]
        default = modality if self.student is None else STUDENT
        rows = self.encode_text([prompt for group in groups for prompt in group], encoder or default)
        ends = np.cumsum([len(group) for group in groups])[:-1]
        means = np.stack([group.mean(axis=0, dtype=np.float64) for group in np.split(rows, ends)])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)

    def classify(
        self,
        paths: Sequence[Path | str] | Path | str,
        modality: str,
        labels: Labels,
        prompts: Prompts | None = None,
        encoder: str | None = None,
        abstain: bool = True,
    ) -> Array:
        """Zero-shot probabilities (n, c) float32: softmax of logit scale x cosine / temperature.

        A file that is unlike the training data gets NaN, with its reason in the log, unless `abstain` is False;
        `examine` returns the reasons. Other arguments as `class_embeddings`.
        """
        classes = self.class_embeddings(labels, modality, prompts, encoder)
        rows, reasons = self.examine(paths, modality)
        scale = self.logit_scale(modality) / (self.temperature(modality) or 1.0)
        chances = softmax(scale * similarity(rows, classes).astype(np.float64)).astype(np.float32)
        for number, reason in enumerate(reasons):
            if reason and abstain:
                log.warning("file %d of %d is not classified: %s", number + 1, len(reasons), reason)
                chances[number] = np.nan
        return chances

    @staticmethod
    def similarity(a: Array, b: Array) -> Array:
        """Cosines (n, m) of unit rows (n, d) and (m, d)."""
        return similarity(a, b)

    def __repr__(self) -> str:
        lines = [f"Space of {self.dim} dimensions" + (", trained on SYNTHETIC data" if self.synthetic else "")]
        for name, model in self._contents.models.items():
            kind = model.registered_name or type(model).name
            counts = ", ".join(f"{split} {n}" for split, n in self.info.records.get(name, {}).items())
            facts = [f"{kind} ({model.joint_dim} -> {self.dim})", counts, f"weights: {self.licences[name]}"]
            lines.append(f"  {name}: " + "; ".join(fact for fact in facts if fact))
        lines.append(f"  text: {', '.join(self.text_encoders)}")
        return "\n".join(lines)


def _as_bridge(name: str, value: BaseBridge | Tensor | NDArray[Any]) -> BaseBridge:
    """A matrix becomes a linear bridge; a bridge is returned unchanged."""
    if isinstance(value, BaseBridge):
        return value
    matrix = _matrix(value)
    if matrix.ndim != 2:
        raise SpaceError(f"bridge of {name} has shape {tuple(matrix.shape)}; needed: (d_m, d)")
    return Bridge(matrix)


def _matrix(value: Tensor | NDArray[Any]) -> Tensor:
    return torch.as_tensor(value).detach().float().contiguous()


def save_space(space: Space, folder: Path | str) -> Path:
    """Write a space to a folder, replacing an older one as a whole; returns the folder.

    Raises:
        ConfigError: the folder is not a space, or a model still has adapters.
        DiskError: the file system refused; an older space there is left unchanged.
    """
    folder = Path(os.path.abspath(folder))
    space._contents.fingerprint = write_folder(space._contents, folder)
    return folder


def load(path: Path | str, device: str | torch.device = "auto") -> Space:
    """Open a space. Needs no training code, and no network for folders.

    Args:
        path: a folder written by `save_space`, or the id "owner/name" of such a repository on the Hugging Face hub.
        device: "auto" (a CUDA or ROCm GPU if available, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ConfigError: no such device on this machine.
        SpaceError: no such space, or it is damaged, incomplete or newer than this version; names the file.
    """
    place = pick(str(device), warn=isinstance(device, str)).device  # a torch.device was chosen before
    text = str(path)
    is_id = isinstance(path, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text)
    if not Path(path).exists() and is_id and not Path(path).parent.exists():
        path = _download(text)
    if not (Path(path) / MANIFEST).exists():
        refuse_foreign(path)
    contents = read_folder(path)
    parts = contents.models, contents.bridges, contents.means, contents.student, contents.info
    space = Space(*parts, contents.unlike, contents.texts)
    space._contents.fingerprint = contents.fingerprint
    return space.to(place)


def _download(name: str) -> Path:
    """Download a hub repository; returns the local copy."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[MANIFEST, "weights/*", "assets/**"]))
    except Exception as error:  # offline, not found, gated, HTTP: the hub client raises many kinds
        raise SpaceError(
            f"{name}: no such folder, and it cannot be fetched from the Hugging Face hub; "
            "check the name and the connection, or give the path of a folder"
        ) from error
