"""Labels with probabilities of an item, as a DICOM structured report or as JSON, marked as for research only.

* `findings`: zero-shot probabilities of items of an index -> `Finding`.
* `as_report`: DICOM Comprehensive SR after TID 1500, which refers to the original objects by their own UIDs, so it
  needs the mapping. * `as_json`: the same as plain values; original UIDs only with a mapping.
"""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from m3bind.core.version import __version__
from m3bind.errors import ConfigError
from m3bind.hospital.deidentify import Origin
from m3bind.index.base import INCOMPLETE, Index
from m3bind.search.zero_shot_classifier import ZeroShotClassifier, labels_of, unlike_items
from m3bind.space.bundle import Space
from m3bind.space.prompts import Labels

if TYPE_CHECKING:
    from highdicom.sr import ComprehensiveSR
    from pydicom.dataset import Dataset

NOTICE = "RESEARCH USE ONLY. Made by an algorithm, not reviewed by a physician; not for diagnosis or treatment."
SCHEME = "99M3BIND"
SERIES_NUMBER = 9900
_MEANING = 64  # characters of a coded meaning
_WAVEFORMS = "1.2.840.10008.5.1.4.1.1.9."  # evidence, but not images a measurement could refer to


@dataclass(frozen=True)
class Finding:
    """Probabilities of labels for one item; they sum to 1."""

    item: str
    modality: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    calibrated: bool  # divided by a fitted temperature; otherwise the model's own
    unlike: str  # why the item is unlike the training data, so that the labels mean nothing; "" if it is not
    abstained: bool  # no labels are returned because of that
    space: str  # fingerprint
    synthetic: bool
    incomplete: str = ""  # why the item may lack a part

    @property
    def best(self) -> int:
        """Position of the likeliest label."""
        return int(np.argmax(self.probabilities))


def findings(
    space: Space,
    index: Index,
    items: Sequence[str],
    labels: Sequence[str] | Callable[[str], Labels],
    abstain: bool = True,
) -> list[Finding]:
    """Zero-shot probabilities of items, in their order: see `search.zero_shot_classifier`.

    `labels`: those of all items, or a function from an item's modality to its labels. `abstain`: return no labels of
    an item that is unlike the training data.

    Raises:
        ConfigError: fewer than two labels, one twice, or an index whose embeddings are gap-corrected.
        UnknownNameError: an id that is not in the index.
    """
    if not callable(labels) and (len(labels) < 2 or len(set(labels)) < len(labels)):
        raise ConfigError("results need two or more different labels, separated by commas: --labels normal,pneumonia")
    if index.gap_corrected:
        raise ConfigError(f"{index.uri} is gap-corrected, for image search only; results need an index without")
    table, rows = index.items(items), index.vectors(items)
    incomplete = dict(zip(items, table[INCOMPLETE] if INCOMPLETE in table else [""] * len(items)))
    unlike = dict(zip(items, unlike_items(table)))
    classifier = ZeroShotClassifier(space, index, labels_of(index))
    found: dict[str, Finding] = {}
    for modality in dict.fromkeys(table["modality"]):
        own = (table["modality"] == modality).to_numpy()
        classes = labels(modality) if callable(labels) else labels
        predictions = classifier.classify(rows[own], modality, classes)
        names = [item for item, fits in zip(items, own) if fits]
        for item, shares in zip(names, predictions.probabilities.tolist()):
            found[item] = Finding(
                item,
                modality,
                tuple(classes),
                tuple(shares),
                predictions.calibrated,
                unlike[item],
                abstain and bool(unlike[item]),
                space.fingerprint,
                space.synthetic,
                incomplete[item],
            )
    return [found[item] for item in items]


def as_json(finding: Finding, origins: Sequence[Origin] = ()) -> dict[str, Any]:
    """A finding as JSON values; with `origins`, the UIDs of study and objects."""
    values: dict[str, Any] = {
        "notice": NOTICE,
        "item": finding.item,
        "modality": finding.modality,
        "labels": list(finding.labels),
        "probabilities": None if finding.abstained else [round(value, 6) for value in finding.probabilities],
        "calibrated": finding.calibrated,
        "abstained": finding.abstained,
        "unlike": finding.unlike,
        "may_be_incomplete": finding.incomplete,
        "algorithm": {"name": "m3bind zero-shot", "version": __version__, "space": finding.space},
        "synthetic_space": finding.synthetic,
    }
    if origins:
        values["study"], values["series"] = origins[0].study, origins[0].series
        values["objects"] = [origin.sop_instance for origin in origins]
    return values


def as_report(finding: Finding, origins: Sequence[Origin]) -> "ComprehensiveSR":
    """A finding as Comprehensive SR in the study of the original objects, preliminary and unverified.

    The same result gives the same UIDs.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    device = _uid("device", finding.space)
    conclusion = _conclusion(finding)
    as_values = finding.item, finding.space, *finding.labels, *(f"{p:.6f}" for p in finding.probabilities), conclusion
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=device, name="m3bind", manufacturer_name="m3bind", model_name="zero-shot"
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=sr.CodedConcept("ZEROSHOT", SCHEME, "Zero-shot classification, research use only"),
        imaging_measurements=[_group(finding, number, origins) for number in _answered(finding)] or None,
    )
    for text in (NOTICE, conclusion):
        content[0].ContentSequence.append(
            sr.TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        )
    return sr.ComprehensiveSR(
        evidence=[_evidence(origin) for origin in origins],
        content=content[0],
        series_instance_uid=_uid("series", origins[0].study, finding.space),
        series_number=SERIES_NUMBER,
        sop_instance_uid=_uid("report", origins[0].series, *as_values),
        instance_number=1,
        manufacturer="m3bind",
        manufacturer_model_name="zero-shot",
        software_versions=__version__,
        device_serial_number=finding.space[:16],
        series_description="m3bind: RESEARCH USE ONLY",
        is_complete=True,
        is_final=False,
        is_verified=False,
        specific_character_set="ISO_IR 192",
    )


def _conclusion(finding: Finding) -> str:
    """The result as sentences."""
    best = f"{finding.labels[finding.best]}, probability {finding.probabilities[finding.best]:.3f}"
    fitted = "calibrated" if finding.calibrated else "not calibrated"
    sentences = [
        "No label is returned."
        if finding.abstained
        else f"Likeliest of {len(finding.labels)} labels: {best} ({fitted}).",
        f"The object is unlike the data that the space was trained on: {finding.unlike}." if finding.unlike else "",
        f"The series may be incomplete: {finding.incomplete}." if finding.incomplete else "",
        "The space was trained on SYNTHETIC patients." if finding.synthetic else "",
    ]
    return " ".join(filter(None, sentences))


def _answered(finding: Finding) -> range:
    """The positions of the labels that are returned."""
    return range(0 if finding.abstained else len(finding.labels))


def _group(finding: Finding, number: int, origins: Sequence[Origin]) -> Any:
    """One label with its probability (TID 1501)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    label = finding.labels[number]
    value = hashlib.sha256(label.encode()).hexdigest()[:14].upper()
    images = [
        sr.SourceImageForMeasurementGroup(origin.sop_class, origin.sop_instance)
        for origin in origins
        if not origin.sop_class.startswith(_WAVEFORMS)
    ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid("tracking", finding.item, label), identifier=f"label {number + 1}"
        ),
        finding_type=sr.CodedConcept(f"L{value}", SCHEME, label[:_MEANING]),
        algorithm_id=sr.AlgorithmIdentification(
            name="m3bind zero-shot", version=__version__, parameters=[f"space {finding.space[:16]}"]
        ),
        measurements=[
            sr.Measurement(
                name=sr.CodedConcept("PROBABILITY", SCHEME, "Zero-shot probability"),
                value=round(finding.probabilities[number], 6),
                unit=codes.UCUM.NoUnits,
            )
        ],
        source_images=images or None,
    )


def _evidence(origin: Origin) -> "Dataset":
    """The entries of an original object that a report refers to."""
    from pydicom.dataset import Dataset

    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = origin.sop_class, origin.sop_instance
    made.SeriesInstanceUID, made.StudyInstanceUID = origin.series, origin.study
    made.PatientID, made.PatientName = origin.patient_id, origin.patient_name
    made.PatientBirthDate, made.PatientSex = origin.birth_date, origin.sex
    made.StudyDate, made.StudyTime, made.StudyID = origin.study_date, origin.study_time, origin.study_id
    made.AccessionNumber, made.ReferringPhysicianName = origin.accession, origin.referring
    made.Modality = origin.modality
    return made


def _uid(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(("m3bind", *parts)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=4).int}"
