"""Stage 2, SESKD: the aligned text towers are distilled into one shared text encoder (Eq. 7-9).

Teachers are frozen, so they embed the images, and every text that is drawn, once before training. Phase A minimises
Eq. 7 alone, phase B Eq. 9 and the terms of `terms` that the settings give a weight.

Shapes: K distinct texts, N images of a modality, n pairs of a batch, s shared texts, d dimension of the bound space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.config import DistillConfig
from m3bind.data.batching import EpochSampler, IntArray, PoolSampler, distinct_ids
from m3bind.distill.objective import DistillPairs, kd_loss, seskd_loss
from m3bind.distill.student import StudentTexts
from m3bind.distill.terms import TERMS, distillation_terms
from m3bind.training.loop import ParameterGroup
from m3bind.training.pairs import Batch, Pairs


@dataclass
class Teachers:
    """Embeddings of the frozen, aligned towers."""

    texts: dict[str, NDArray[np.float32]]  # modality -> (K, d) unit rows of the texts `ids`
    images: dict[str, NDArray[np.float32]]  # modality -> (N, d) unit rows
    scales: dict[str, float]  # logit scale of each modality
    ids: IntArray | None = None  # (K,) ascending; None: all texts

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """(K, d) mean over the teachers, sufficient for Eq. 7 if all of them teach every text."""
        return np.asarray(np.mean(list(self.texts.values()), axis=0), dtype=np.float32)

    def of(self, rows: NDArray[np.float32], ids: IntArray) -> Tensor:
        """The rows of the texts `ids`, on the host."""
        return torch.from_numpy(rows[ids if self.ids is None else np.searchsorted(self.ids, ids)])


class DistillSampler:
    """The batches of one phase: shared texts, and in phase B image-text pairs of every modality."""

    def __init__(
        self,
        phase: str,
        pairs: Mapping[str, Pairs],
        pool: Mapping[str, IntArray],
        shares: Mapping[str, float],
        settings: DistillConfig,
        seed: int,
    ) -> None:
        """`pairs` gives the captions, `pool` the text ids of each modality, `shares` p_m of Eq. 3."""
        self.name, self.seed = f"distill {phase}", seed
        self.pairs = dict(pairs) if phase == "b" else {}
        self.concepts = settings.contrastive.concept_probability
        size = settings.shared_batch
        self.pool = PoolSampler([pool[m] for m in pairs], [shares[m] for m in pairs], size, seed, self.name)
        self.samplers = {
            m: EpochSampler(len(p), settings.batches.get(m, settings.batch), seed, f"{self.name} {m}")
            for m, p in self.pairs.items()
        }

    def batch(self, step: int) -> tuple[IntArray, IntArray, dict[str, tuple[IntArray, IntArray]]]:
        """Shared texts (s,), the index of each one's modality, and images and captions, (n,) each, by modality."""
        shared, source = self.pool.batch(step)
        batches: dict[str, tuple[IntArray, IntArray]] = {}
        for m, pairs in self.pairs.items():
            indices = self.samplers[m].batch(step)
            batches[m] = indices, pairs.draw_captions(indices, self.seed, step, self.concepts)
        return shared, source, batches

    def shared_texts(self, steps: int) -> IntArray:
        """Ids of the shared texts of the first `steps` batches, ascending."""
        return distinct_ids(*(self.pool.batch(step)[0] for step in range(steps)))


class DistillStage:
    """One phase of SESKD: "a" is Eq. 7 alone, "b" is Eq. 9."""

    def __init__(
        self, sampler: DistillSampler, student: StudentTexts, teachers: Teachers, settings: DistillConfig
    ) -> None:
        """`sampler` of the phase, with the same settings."""
        self.name, self.sampler, self.pairs = sampler.name, sampler, sampler.pairs
        self.student, self.teachers, self.settings = student, teachers, settings
        self.kd_weight = settings.kd_weight if self.pairs else 1.0
        self.terms = {name: getattr(settings, name) for name in TERMS}
        student.prepare(settings.student)

    def groups(self) -> Sequence[ParameterGroup]:
        """The student."""
        return [ParameterGroup("student", [p for p in self.student.encoder.parameters() if p.requires_grad])]

    def modules(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student.encoder}

    def batch(self, step: int) -> Batch:
        """The student's input for all texts of the step, and the teachers' rows."""
        teachers = self.teachers
        shared, source, batches = self.sampler.batch(step)
        ids = np.concatenate([shared, *(captions for _, captions in batches.values())])
        own = self.settings.teachers == "own"
        rows = list(teachers.texts.values()) if own else [teachers.mean]
        return {
            "items": len(ids) + sum(len(indices) for indices, _ in batches.values()),
            "texts": self.student.load(ids, self.settings.micro_tokens),
            "teachers": [teachers.of(each, shared) for each in rows],
            "source": torch.from_numpy(source) if own else None,
            "pairs": {m: self._pairs(m, *of_pairs) for m, of_pairs in batches.items()},
        }

    def _pairs(self, m: str, indices: IntArray, captions: IntArray) -> Batch:
        further = any(self.terms.values())
        return {
            "images": torch.from_numpy(self.teachers.images[m][indices]),
            "positives": self.pairs[m].positives(indices, captions, self.settings.contrastive),
            "captions": torch.from_numpy(captions),
            "teacher": self.teachers.of(self.teachers.texts[m], captions) if further else None,
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 7, and in phase B Eq. 8 of every modality (Eq. 9 is their sum) and the terms that have a weight."""
        embedded = self.student.encode(batch["texts"])
        teachers, form = batch["teachers"], self.settings.contrastive
        student, start = embedded[: len(teachers[0])], len(teachers[0])
        paired: dict[str, DistillPairs] = {}
        for m, own in batch["pairs"].items():
            text = embedded[start : start + len(own["captions"])]
            start += len(text)
            paired[m] = DistillPairs(own["images"], text, self.teachers.scales[m], own["positives"])
        if batch["source"] is not None:
            kd = kd_loss(student, teachers, "own", batch["source"])
        else:
            kd = kd_loss(student, teachers[0], count=len(self.teachers.texts))
        losses = seskd_loss(
            kd, paired, form.direction, form.reduction, self.settings.contrastive_weight, self.kd_weight
        )
        for m, own in batch["pairs"].items() if any(self.terms.values()) else ():
            pair = paired[m]
            terms = distillation_terms(self.terms, pair.image, pair.text, own["teacher"], own["captions"], pair.scale)
            for name, term in terms.items():
                losses[f"{name}/{m}"] = term
                losses["loss"] = losses["loss"] + self.terms[name] * term
        return losses
