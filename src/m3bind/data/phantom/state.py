"""The clinical state of a virtual patient: one syndrome, one severity, and unrelated incidental findings.

* `syndromes()`: names of the syndromes; `table()`: their findings in each modality (data: `reports.yaml`).
* `PatientState`, `sample_state`: the state of one patient; every modality is rendered from it.
* `visible`: the findings that a modality shows for a state.
All content is synthetic: no real person is described.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from m3bind.errors import UnknownNameError

MODALITIES = ("xray", "ct", "retina", "ecg", "pathology")
SEVERITIES = ("none", "mild", "moderate", "severe")
INCIDENTAL_RATE = 0.15
TABLE = Path(__file__).with_name("reports.yaml")


@dataclass(frozen=True)
class PatientState:
    """One patient. `severity` indexes SEVERITIES; `grade` is the severity on 0..1 with random spread.

    `side` ("left" or "right"): of one-sided chest lesions and of the eye; `anatomy` seeds the body that CT and X-ray
    share; `incidentals` are (modality, finding) pairs unrelated to the syndrome.
    """

    syndrome: str
    severity: int
    grade: float
    side: str
    anatomy: int
    incidentals: tuple[tuple[str, str], ...] = ()

    @property
    def severity_name(self) -> str:
        """The severity as text: none, mild, moderate or severe."""
        return SEVERITIES[self.severity]

    def has(self, modality: str, finding: str) -> bool:
        """Whether `modality` shows `finding` in this patient."""
        return finding in visible(self, modality)


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The content of `reports.yaml`: syndromes, findings, phrases."""
    content: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return content


def syndromes() -> tuple[str, ...]:
    """Names of all syndromes, "healthy" first."""
    return tuple(table()["syndromes"])


def visible(state: PatientState, modality: str) -> tuple[str, ...]:
    """The findings of `modality`: those of the syndrome from their minimum severity on, then the incidental ones.

    Raises:
        UnknownNameError: no such syndrome or modality.
    """
    if state.syndrome not in table()["syndromes"]:
        raise UnknownNameError("syndrome", state.syndrome, syndromes())
    if modality not in MODALITIES:
        raise UnknownNameError("modality", modality, MODALITIES)
    shown = table()["syndromes"][state.syndrome][modality]
    own = tuple(finding for finding, minimum in shown.items() if state.severity >= minimum)
    return own + tuple(finding for where, finding in state.incidentals if where == modality)


def sample_state(rng: np.random.Generator, syndrome: str | None = None, severity: int | None = None) -> PatientState:
    """A random patient; `syndrome` and `severity` (1..3) may be given.

    The grade is the middle of the severity's third of 0..1, plus or minus up to .1; healthy patients have 0.

    Raises:
        UnknownNameError: no such syndrome.
    """
    names = syndromes()
    drawn, level = names[int(rng.integers(len(names)))], int(rng.integers(1, 4))
    spread, side = float(rng.uniform(-0.1, 0.1)), ("left", "right")[int(rng.integers(2))]
    anatomy = int(rng.integers(2**31))
    incidentals = []
    for modality in MODALITIES:
        for finding in table()["incidentals"][modality]:
            if rng.random() < INCIDENTAL_RATE:
                incidentals.append((modality, finding))
    # CT and X-ray show the same body: an incidental chest finding is in both.
    chest = {finding for modality, finding in incidentals if modality in ("xray", "ct")}
    incidentals = [pair for pair in incidentals if pair[0] not in ("xray", "ct")]
    incidentals += [(modality, finding) for modality in ("xray", "ct") for finding in sorted(chest)]
    name = syndrome or drawn
    if name not in names:
        raise UnknownNameError("syndrome", name, names)
    level = 0 if name == "healthy" else (severity or level)
    grade = 0.0 if level == 0 else (level - 0.5) / 3 + spread
    return PatientState(name, level, grade, side, anatomy, tuple(incidentals))
