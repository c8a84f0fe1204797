"""Virtual patients: a synthetic cohort whose five modalities are rendered from one clinical state per patient.

No public data set has X-ray, CT, fundus, ECG and histology of the same person; this one gives cross-modal ground truth.
Modalities of a patient are linked only by visible findings and by the text of the reports.
* `generate`: write a cohort (PNG, NIfTI, WFDB, manifest.csv). `cohort_hash`: its name. `contact_sheet`: an overview.
* `sample_state`, `render`, `report`: one patient, one rendering, one text.
* `chest`, `visible`, `syndromes`, `PatientState`, `MODALITIES`, `SEVERITIES`: the parts.
All content is synthetic and labelled as such.
"""

from m3bind.data.phantom.cohort import cohort_hash, generate
from m3bind.data.phantom.reports import report
from m3bind.data.phantom.sheet import contact_sheet
from m3bind.data.phantom.state import MODALITIES, SEVERITIES, PatientState, sample_state, syndromes, visible
from m3bind.data.phantom.thorax import chest
from m3bind.data.phantom.writing import render

__all__ = [
    "MODALITIES",
    "SEVERITIES",
    "PatientState",
    "chest",
    "cohort_hash",
    "contact_sheet",
    "generate",
    "render",
    "report",
    "sample_state",
    "syndromes",
    "visible",
]
