"""Stage 2, SESKD: the aligned text towers are distilled into one shared text encoder (Eq. 7-9).

Teachers are frozen, so they embed every distinct text, and the images, once before training. Phase A minimises Eq. 7
alone, phase B Eq. 9 and the terms of `terms` that the settings give a weight.

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
from m3bind.data.batching import EpochSampler, IntArray, PoolSampler
from m3bind.distill.objective import DistillPairs, kd_loss, seskd_loss
from m3bind.distill.student import StudentTexts
from m3bind.distill.terms import TERMS, distillation_terms
from m3bind.training.loop import ParameterGroup
from m3bind.training.pairs import Pairs


@dataclass
class Teachers:
    """Embeddings of the frozen, aligned towers."""

    texts: dict[str, NDArray[np.float32]]  # modality -> (K, d) unit rows; rows outside the pool are not read
    images: dict[str, NDArray[np.float32]]  # modality -> (N, d) unit rows
    scales: dict[str, float]  # logit scale of each modality

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """(K, d) mean over the teachers, sufficient for Eq. 7 if all of them teach every text."""
        return np.asarray(np.mean(list(self.texts.values()), axis=0), dtype=np.float32)


class DistillStage:
    """One phase of SESKD: "a" is Eq. 7 alone, "b" is Eq. 9."""

    def __init__(
        self,
        phase: str,
        student: StudentTexts,
        teachers: Teachers,
        pairs: Mapping[str, Pairs],
        pool: Mapping[str, IntArray],
        shares: Mapping[str, float],
        settings: DistillConfig,
        seed: int,
    ) -> None:
        """`pairs` gives captions and labels, `pool` the text ids of each modality, `shares` p_m of Eq. 3."""
        self.name = f"distill {phase}"
        self.phase, self.student, self.teachers, self.settings, self.seed = phase, student, teachers, settings, seed
        self.pairs = dict(pairs)
        names = list(self.pairs)
        self.pool = PoolSampler(
            [pool[m] for m in names], [shares[m] for m in names], settings.shared_batch, seed, self.name
        )
        self.samplers = {
            m: EpochSampler(len(p), settings.batches.get(m, settings.batch), seed, f"{self.name} {m}")
            for m, p in self.pairs.items()
        }
        student.prepare(settings.student)

    def groups(self) -> Sequence[ParameterGroup]:
        """The student."""
        return [ParameterGroup("student", [p for p in self.student.encoder.parameters() if p.requires_grad])]

    def modules(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student.encoder}

    def losses(self, step: int) -> dict[str, Tensor]:
        """Eq. 7, and in phase B Eq. 8 of every modality (Eq. 9 is their sum)."""
        shared, source = self.pool.batch(step)
        batches: dict[str, tuple[IntArray, IntArray]] = {}
        if self.phase == "b":
            for m, pairs in self.pairs.items():
                indices = self.samplers[m].batch(step)
                concept = self.settings.contrastive.concept_probability
                batches[m] = (indices, pairs.draw_captions(indices, self.seed, step, concept))
        ids = np.concatenate([shared, *(captions for _, captions in batches.values())])
        embedded = self.student.encode(torch.from_numpy(ids), self.settings.micro_tokens)
        paired: dict[str, DistillPairs] = {}
        start = len(shared)
        for m, (indices, captions) in batches.items():
            text = embedded[start : start + len(captions)]
            start += len(captions)
            positives = self.pairs[m].positives(indices, captions, self.settings.contrastive)
            image = torch.from_numpy(self.teachers.images[m][indices]).to(text.device)
            paired[m] = DistillPairs(image, text, self.teachers.scales[m], positives)
        student = embedded[: len(shared)]
        if self.settings.teachers == "own":
            teachers = [self._texts(rows, shared) for rows in self.teachers.texts.values()]
            kd = kd_loss(student, teachers, "own", torch.from_numpy(source))
        else:
            kd = kd_loss(student, self._texts(self.teachers.mean, shared), count=len(self.teachers.texts))
        form, kd_weight = self.settings.contrastive, self.settings.kd_weight if self.phase == "b" else 1.0
        losses = seskd_loss(kd, paired, form.direction, form.reduction, self.settings.contrastive_weight, kd_weight)
        return self._with_terms(losses, batches, paired)

    def _with_terms(
        self,
        losses: dict[str, Tensor],
        batches: Mapping[str, tuple[IntArray, IntArray]],
        paired: Mapping[str, DistillPairs],
    ) -> dict[str, Tensor]:
        """Add the terms that the settings give a weight, for each modality's batch and its own teacher."""
        weights = {name: getattr(self.settings, name) for name in TERMS}
        for m, (_, captions) in batches.items():
            teacher = self._texts(self.teachers.texts[m], captions)
            batch, ids = paired[m], torch.from_numpy(captions).to(teacher.device)
            terms = distillation_terms(weights, batch.image, batch.text, teacher, ids, batch.scale)
            for name, term in terms.items():
                losses[f"{name}/{m}"] = term
                losses["loss"] = losses["loss"] + weights[name] * term
        return losses

    def _texts(self, rows: NDArray[np.float32], ids: IntArray) -> Tensor:
        """Teacher embeddings of the texts `ids`, on the student's device."""
        return torch.from_numpy(rows[ids]).to(next(self.student.encoder.parameters()).device)
