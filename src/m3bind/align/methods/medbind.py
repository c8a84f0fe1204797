"""MedBind (Gao et al. 2024, arXiv:2403.12894): one shared text encoder, and images of the same patient aligned.

* `medbind_nm`: TMCL alone. `medbind_bd`: TMCL and EMCL. `medbind_bridges`: both on embeddings of any frozen towers.
* `emcl_loss`: EMCL, as printed.

TMCL is the contrastive loss between a modality and the text, identical texts being each other's positives, summed over
the batch and both directions. EMCL is InfoNCE between two modalities on patients who have both. MedBind published no
code or weights, so these are its losses on the towers of the settings, all of which must use the same text tower (that
of the first modality is shared). tau = 0.07, fixed; all modalities have weight 1.

Shapes: n pairs of a batch, m of them with both modalities, d dimension of the bound space.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from m3bind.align import lora
from m3bind.align.heads import TRAINING, loop_settings
from m3bind.align.methods.base import BindingInputs, BindingMethod
from m3bind.align.methods.procrustes import identity_bridges, procrustes_bridges
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig, ContrastiveConfig
from m3bind.data.batching import EpochSampler, IntArray
from m3bind.errors import ConfigError
from m3bind.models.base import DualEncoder
from m3bind.models.bridges import freeze
from m3bind.training.contrastive import clip_loss
from m3bind.training.loop import ParameterGroup, seed_torch, train
from m3bind.training.pairs import Batch, Pairs

SCALE = 1 / 0.07
_PROBE = ["no acute findings", "Sinus rhythm with a heart rate of 72 and LEFT axis deviation"]


def emcl_loss(a: Tensor, b: Tensor, n: int, scale: float = SCALE) -> Tensor:
    """EMCL: L(a->b) + L(b->a) on m unit rows (m, d) each, sums; the printed factor n / m adds 2 m log(n / m).

    The factor has no gradient.
    """
    m = len(a)
    loss = 2 * clip_loss(a, b, scale, direction="both", reduction="sum")
    return loss + 2 * m * math.log(n / m)


class MedBindStage:
    """The training stage: TMCL of every modality, and EMCL of every two that share patients."""

    def __init__(
        self, inputs: BindingInputs, bridges: Mapping[str, BaseBridge], settings: AlignConfig, edges: bool
    ) -> None:
        """`edges`: with EMCL.

        Raises:
            ConfigError: with EMCL, no two modalities share a training patient.
        """
        self.name = "medbind"
        self.pairs, self.bridges, self.settings, self.seed = inputs.pairs, bridges, settings, inputs.seed
        self.samplers = {m: _sampler(len(p), m, settings, self.seed) for m, p in self.pairs.items()}
        self.edges = {}
        for a, b in combinations(self.pairs, 2) if edges else ():
            if len(both := _same_patient(self.pairs[a], self.pairs[b])) > 1:
                self.edges[a, b] = both, _sampler(len(both), f"{a} {b}", settings, self.seed)
        if edges and not self.edges:
            raise ConfigError(
                "medbind_bd needs patients with two modalities in the train split; there are none, use medbind_nm."
            )
        seed_torch(self.seed, "lora", "medbind")
        _choose_trained([p.model for p in self.pairs.values()], settings)

    def groups(self) -> Sequence[ParameterGroup]:
        """Per modality, the shared text tower with the first."""
        groups: list[ParameterGroup] = []
        seen: set[int] = set()
        for m, pairs in self.pairs.items():
            own = [p for p in pairs.model.parameters() if p.requires_grad and id(p) not in seen]
            seen.update(map(id, own))
            groups.append(ParameterGroup(m, own))
        return groups

    def modules(self) -> Mapping[str, nn.Module]:
        """The dual encoders."""
        return {f"model.{m}": pairs.model for m, pairs in self.pairs.items()}

    @property
    def reads_files(self) -> bool:
        """Whether batches are decoded from files."""
        return any(pairs.images.reads_files for pairs in self.pairs.values())

    def batch(self, step: int) -> Batch:
        """Per modality, pairs whose positives are identical texts; per two modalities, images of shared patients."""
        settings, pairs, edges, items = self.settings, {}, {}, 0
        for m, own in self.pairs.items():
            indices = self.samplers[m].batch(step)
            captions = own.draw_captions(indices, self.seed, step)
            pairs[m] = own.load(indices, captions, settings, ContrastiveConfig(positives="identical"))
            items += len(indices)
        for (a, b), (both, sampler) in self.edges.items():
            rows = both[sampler.batch(step)]
            edges[f"{a}-{b}"] = {m: self.pairs[m].images.load(rows[:, i]) for i, m in enumerate((a, b))}
            items += 2 * len(rows)
        return {"items": items, "pairs": pairs, "edges": edges}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Sum over modalities of TMCL, plus EMCL of every two modalities."""
        terms: dict[str, Tensor] = {}
        for m, pairs in self.pairs.items():
            image, text = pairs.encode(batch["pairs"][m], self.settings)
            image, text = self.bridges[m].image(image), self.bridges[m].text(text)
            positives = batch["pairs"][m]["positives"]
            terms[f"tmcl/{m}"] = 2 * clip_loss(image, text, SCALE, positives=positives, reduction="sum")
        for a, b in self.edges:
            images = tuple(self._images(m, batch["edges"][f"{a}-{b}"][m]) for m in (a, b))
            n = min(self.settings.batch, len(self.pairs[a]), len(self.pairs[b]))
            terms[f"emcl/{a}-{b}"] = emcl_loss(images[0], images[1], max(n, len(images[0])))
        return terms | {"loss": torch.stack(list(terms.values())).sum()}

    def _images(self, m: str, batch: Batch) -> Tensor:
        return self.bridges[m].image(self.pairs[m].images.encode(batch, self.settings.micro(m)))


def _sampler(count: int, name: str, settings: AlignConfig, seed: int) -> EpochSampler:
    return EpochSampler(count, settings.batches.get(name, settings.batch), seed, f"medbind {name}")


def _same_patient(a: Pairs, b: Pairs) -> IntArray:
    """(k, 2) positions in `a` and `b` of the same patient: the first image of each."""
    where = {patient: i for i, patient in reversed(list(enumerate(b.patients))) if patient}
    first = {patient: i for i, patient in reversed(list(enumerate(a.patients))) if patient}
    return np.array([(i, where[p]) for p, i in sorted(first.items()) if p in where], dtype=np.int64).reshape(-1, 2)


def _choose_trained(models: Sequence[DualEncoder], settings: AlignConfig) -> None:
    """As in stage 1 (`align.text`, `align.image`), with one shared text tower."""
    for model in models:
        model.requires_grad_(False)
        model.train()
    if settings.text == "lora":
        lora.inject(models[0], "text", settings.lora)
        for model in models[1:]:
            model.text_trunk = models[0].text_trunk
    if settings.text in ("lora", "head"):
        models[0].text_head.requires_grad_(True)
    for model in models:
        if settings.image == "lora":
            lora.inject(model, "image", settings.lora)
        if settings.image in ("lora", "head"):
            model.image_head.requires_grad_(True)
        lora.freeze_running_stats(model)


def share_text_tower(pairs: Mapping[str, Pairs]) -> None:
    """Give all modalities the text tower of the first.

    Raises:
        ConfigError: their text towers or joint dimensions differ.
    """
    first, *others = pairs.values()
    for other in others:
        if _text_form(first.model) != _text_form(other.model):
            raise ConfigError(
                f"medbind shares one text encoder, but those of {first.modality} and {other.modality} differ; give all "
                "modalities the same text tower, pooling, tokenizer and joint dimension."
            )
        other.model.text_trunk, other.model.text_head = first.model.text_trunk, first.model.text_head
        other.texts = first.texts


def _text_form(model: DualEncoder) -> tuple[object, ...]:
    """The structure of a text tower, equal for towers whose weights can be exchanged."""
    return (
        model.joint_dim,
        type(model.text_trunk),
        getattr(model.text_trunk, "pooling", ""),
        [(k, v.shape) for part in (model.text_trunk, model.text_head) for k, v in part.state_dict().items()],
        model.tokenize(_PROBE)["input_ids"].tolist(),
    )


class MedBindNM(BindingMethod):
    """TMCL alone: bound by the shared text encoder."""

    name = "medbind_nm"
    uses: ClassVar[tuple[str, ...]] = ("image-text pairs",)
    edges: ClassVar[bool] = False

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Share the text tower, train, merge LoRA; bridges only resize the joint dimension to `settings.dim`.

        Raises:
            ConfigError: see `share_text_tower` and `MedBindStage`.
        """
        share_text_tower(inputs.pairs)
        bridges = identity_bridges(inputs, settings)
        for bridge in bridges.values():
            bridge.requires_grad_(False)
        stage = MedBindStage(inputs, bridges, settings, self.edges)
        train(stage, settings, inputs.folder, inputs.seed, inputs.compute)
        for pairs in inputs.pairs.values():
            lora.merge(pairs.model)
            pairs.model.eval()
        shared = next(iter(inputs.pairs.values())).model
        for pairs in inputs.pairs.values():
            pairs.model.text_trunk, pairs.model.text_head = shared.text_trunk, shared.text_head
        return dict(bridges)


class MedBindBD(MedBindNM):
    """TMCL and EMCL: images of the same patient are aligned as well."""

    name = "medbind_bd"
    uses = ("image-text pairs", "pairs of modalities")
    edges = True


class _BridgeStage(MedBindStage):
    """The same losses; only the bridges are trained."""

    def groups(self) -> Sequence[ParameterGroup]:
        """The bridge of each modality."""
        return [ParameterGroup(m, list(bridge.parameters())) for m, bridge in self.bridges.items()]

    def modules(self) -> Mapping[str, nn.Module]:
        """The bridges."""
        return {f"bridge.{m}": bridge for m, bridge in self.bridges.items()}


class MedBindBridges(BindingMethod):
    """TMCL and EMCL on precomputed embeddings of frozen towers, with linear bridges initialised by Procrustes.

    There is no shared text encoder, so this is not MedBind, but its paired supervision of the same frozen towers.
    """

    name = "medbind_bridges"
    towers = False
    uses = ("image-text pairs", "pairs of modalities")
    defaults: ClassVar[Mapping[str, Any]] = {**TRAINING, "batch": 128}

    def bind(self, inputs: BindingInputs, settings: AlignConfig) -> dict[str, BaseBridge]:
        """Trained linear bridges.

        Raises:
            ConfigError: no two modalities share a training patient.
        """
        options = self.options(settings)
        frozen = loop_settings(settings, options).model_copy(update={"text": "frozen", "image": "frozen"})
        bridges = procrustes_bridges(inputs, settings)
        stage = _BridgeStage(inputs, bridges, frozen, edges=True)
        train(stage, frozen, inputs.folder, inputs.seed, inputs.compute)
        for pairs in inputs.pairs.values():
            pairs.model.eval()
        return {m: freeze(bridge) for m, bridge in bridges.items()}
