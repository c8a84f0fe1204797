"""De-identification: an object is built from the entries of an allow-list, never copied and then emptied.

* `Deidentifier.clean`: dataset -> `Cleaned`. * `Refused`: why an object is not accepted, without its identifiers.
* `Origin`: the identifiers of an object, for the optional mapping.

After DICOM PS3.15 Annex E, Basic Application Level Confidentiality Profile, and stricter: it removes all entries that
`tags` does not list. Of its options: Retain Longitudinal Temporal Information with Modified Dates (`dates="shift"`) is
met, as are Clean Graphics and Clean Structured Content (overlays, curves, annotations and structured content are
removed). Clean Pixel Data and Clean Recognizable Visual Features are not: text in the pixels and a face in a head CT
remain, so an object that declares burned-in text is refused, as is the label image of a slide; screen captures and
ultrasound, where such text is usual, are not accepted at all. Nothing is retained of: safe private entries, UIDs,
device, institution, patient's characteristics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from m3bind.errors import M3BindError, ReadError, in_words
from m3bind.hospital import tags
from m3bind.hospital.pixels import clean_bulk
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.modalities.formats.dicom_files import BIG_ENDIAN, EXPLICIT, IMPLICIT, open_dicom, quiet

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

METHOD = "m3bind: allow-list after PS3.15 Annex E"
_OPTIONS = {
    "113100": "Basic Application Confidentiality Profile",
    "113103": "Clean Graphics Option",
    "113104": "Clean Structured Content Option",
}
_DATES_OPTION = {"113107": "Retain Longitudinal Temporal Information Modified Dates Option"}
_COMPRESSED = "1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5"  # JPEG family, RLE
Dates = Literal["none", "shift"]
Why = Literal["unreadable", "kind", "policy", "full"]


class Refused(M3BindError):
    """An object that is not accepted. `why` is a word for programs, `reason` a clause without identifiers."""

    def __init__(self, why: Why, reason: str) -> None:
        super().__init__(reason)
        self.why, self.reason = why, reason


@dataclass(frozen=True)
class Origin:
    """The identifiers of an object that a report about it needs."""

    sop_class: str
    sop_instance: str
    series: str
    study: str
    patient_id: str
    patient_name: str
    birth_date: str
    sex: str
    study_date: str
    study_time: str
    study_id: str
    accession: str
    referring: str
    modality: str


@dataclass
class Cleaned:
    """A de-identified object with its keys."""

    dataset: "Dataset"  # ready to be saved
    unit: str  # the item it is part of: its series if that is one item, else the object itself
    instance: str  # key of the object
    series: str  # key of its series
    whole: bool  # it is an item by itself
    modality: str  # that reads it, "" if only its pixels can tell
    origin: Origin


class Deidentifier:
    """De-identification under one salt."""

    def __init__(self, pseudonyms: Pseudonyms, dates: Dates = "none", burned_in: bool = False) -> None:
        """`dates`: left out, or moved back by a number of days per patient. `burned_in`: accept declared text."""
        self.names, self.dates, self.burned_in = pseudonyms, dates, burned_in

    def clean_file(self, path: Path) -> Cleaned:
        """`clean` of a file.

        Raises:
            Refused: not readable as DICOM, and as `clean`.
        """
        try:
            dataset = open_dicom(path)
        except ReadError as error:
            raise Refused("unreadable", error.reason) from None
        return self.clean(dataset)

    def clean(self, dataset: "Dataset") -> Cleaned:
        """The object, built from the allowed entries of `dataset`.

        Raises:
            Refused: an unsupported kind of object or transfer syntax, missing UIDs, burned-in text or a label, or
                content that cannot be parsed.
        """
        with quiet():
            try:
                origin = _origin(dataset)
                self._check(dataset, origin)
                return self._built(dataset, origin)
            except (Refused, MemoryError):
                raise
            except Exception as error:  # pydicom converts values on access, and raises anything
                raise Refused("unreadable", f"its content cannot be read ({in_words(error)})") from None

    def _check(self, dataset: "Dataset", origin: Origin) -> None:
        if origin.sop_class not in tags.STORAGE:
            raise Refused("kind", "an unsupported kind of object")
        if not (origin.sop_instance and origin.series and origin.study):
            raise Refused("unreadable", "without UIDs of its own, of its series and of its study")
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        if syntax == BIG_ENDIAN or (syntax not in (IMPLICIT, EXPLICIT) and not syntax.startswith(_COMPRESSED)):
            raise Refused("kind", "an unsupported transfer syntax")
        if _text(dataset, "BurnedInAnnotation").upper() == "YES" and not self.burned_in:
            raise Refused("policy", "with burned-in text, which may name the patient")
        if origin.sop_class == tags.WHOLE_SLIDE:
            kind = _text(dataset, "ImageType").upper()
            if _text(dataset, "SpecimenLabelInImage").upper() == "YES" or "LABEL" in kind or "OVERVIEW" in kind:
                raise Refused("policy", "the label of a slide, or an image that shows it")

    def _built(self, dataset: "Dataset", origin: Origin) -> Cleaned:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID

        made = self._allowed(dataset, [])
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        clean_bulk(dataset, made, syntax)
        patient = self.names.patient(origin.patient_id, _text(dataset, "IssuerOfPatientID"), origin.study)
        self._describe(made, origin, patient)
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = UID(EXPLICIT if syntax == IMPLICIT else syntax)
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        series = self.names.key("series", origin.series)
        instance = self.names.key("object", origin.sop_instance)
        together = origin.sop_class in tags.SERIES
        unit = series if together else instance
        return Cleaned(made, unit, instance, series, not together, tags.STORAGE[origin.sop_class], origin)

    def _describe(self, made: "Dataset", origin: Origin, patient: str) -> None:
        """Set the patient's pseudonym, required entries without a value, and the method of de-identification."""
        made.SOPClassUID, made.PatientID = origin.sop_class, patient
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyTime", "StudyID", "AccessionNumber",
                        "ReferringPhysicianName", "SeriesNumber", "Manufacturer"):  # fmt: skip
            setattr(made, keyword, "")
        for keyword in tags.EMPTY.get(origin.sop_class, ()):
            if keyword not in made:
                setattr(made, keyword, [] if keyword.endswith("Sequence") else "")
        shifts = self.dates == "shift"
        made.StudyDate = self.names.moved(origin.study_date, patient) if shifts else ""
        if tags.STORAGE[origin.sop_class] == "ecg":
            made.ContentDate, made.ContentTime = made.StudyDate or tags.NO_DAY, "000000"
            made.AcquisitionDateTime = f"{made.ContentDate}000000"
            made.InstanceNumber = made.get("InstanceNumber") or 1
        made.LongitudinalTemporalInformationModified = "MODIFIED" if shifts else "REMOVED"
        made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", METHOD
        options = _OPTIONS | (_DATES_OPTION if shifts else {})
        made.DeidentificationMethodCodeSequence = [_code(code, "DCM", text) for code, text in options.items()]

    def _allowed(self, dataset: "Dataset", above: list["Dataset"]) -> "Dataset":
        """A new dataset of the allowed entries, through all levels; bulk data is left to `clean_bulk` at the top."""
        from pydicom.datadict import keyword_for_tag
        from pydicom.dataset import Dataset

        made, around = Dataset(), [dataset, *above]
        for tag in list(dataset.keys()):
            keyword = keyword_for_tag(tag)
            if keyword in tags.SEQUENCES:
                items = [self._allowed(item, around) for item in _items(dataset, keyword)]
                if items or keyword in dataset:
                    setattr(made, keyword, items)
            elif keyword in tags.CODES:
                codes = [code for item in _items(dataset, keyword) if (code := _known(item, keyword))]
                if codes:
                    setattr(made, keyword, codes)
            elif keyword in tags.MAPPED:
                setattr(made, keyword, self.names.uid(_text(dataset, keyword)))
            elif keyword in tags.NAMED:
                if labels := [self._label(keyword, text) for text in _text(dataset, keyword).split("\\") if text]:
                    setattr(made, keyword, labels if len(labels) > 1 else labels[0])
            elif keyword in tags.TIMES and tags.STORAGE.get(_text(around[-1], "SOPClassUID")) == "ct":
                if moved := self.names.moved_time(_text(dataset, keyword), _text(around[-1], "StudyInstanceUID")):
                    setattr(made, keyword, moved)
            elif keyword in tags.ALLOWED:
                _put(made, keyword, dataset, around)
        if above:
            clean_bulk(dataset, made, "", above)
        return made

    def _label(self, keyword: str, text: str) -> str:
        """A plain label unchanged, else a pseudonym."""
        text = text.strip()
        return text if tags.NAMED[keyword].fullmatch(text) else f"X{self.names.key(keyword, text)[:8].upper()}"


def _put(made: "Dataset", keyword: str, dataset: "Dataset", around: list["Dataset"]) -> None:
    """Copy the values of an allowed entry that its rule accepts.

    An entry without accepted values is removed; a `DECISIVE` one stays, empty: readers then report that it is unusable,
    as they do for the original.

    Raises:
        Refused: a `DECISIVE` entry holds numbers that its rule refuses; without them another image would be read.
    """
    from pydicom.datadict import dictionary_VR

    try:
        values = _values(keyword, dataset, around)
        kept = tags.ALLOWED[keyword](values) if values else None
        if kept:
            kind = str(dictionary_VR(keyword))
            if " or " in kind:
                kind = "SS" if min(kept) < 0 else "US"
            made.add_new(keyword, kind, kept if len(kept) > 1 else kept[0])
            return
    except Exception:  # a value that cannot be converted counts as missing
        values = []
    if keyword not in tags.DECISIVE:
        return
    if any(_usable(value) for value in values):
        raise Refused("policy", f"with a {keyword} that may not be retained but decides what is read")
    made.add_new(keyword, str(dictionary_VR(keyword)).split(" or ")[0], None)


def _values(keyword: str, dataset: "Dataset", around: list["Dataset"]) -> list[Any]:
    """The values of an entry, [] if it is empty."""
    from pydicom.filewriter import correct_ambiguous_vr_element

    element = dataset[keyword]
    if " or " in element.VR:
        element = correct_ambiguous_vr_element(element, around[-1], True, around)
    value = element.value
    if value is None or value == "" or isinstance(value, bytes):
        return []
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def _usable(value: object) -> bool:
    """Whether it is a finite number."""
    try:
        return bool(np.isfinite(float(value)))  # type: ignore[arg-type]  # refused below
    except (TypeError, ValueError, OverflowError):
        return False


def _items(dataset: "Dataset", keyword: str) -> list["Dataset"]:
    """The items of a sequence; empty if it is not one."""
    from pydicom.sequence import Sequence

    value = dataset[keyword].value
    return list(value) if isinstance(value, Sequence) else []


def _known(item: "Dataset", keyword: str) -> "Dataset | None":
    """A known code with its own meaning, None for others; long values and URNs have entries of their own."""
    texts = [_text(item, name) for name in ("CodeValue", "LongCodeValue", "URNCodeValue")]
    value = next((text for text in texts if text), "")
    found = _CLEANERS.get(keyword, tags.known_code)(
        _text(item, "CodingSchemeDesignator"), value, _text(item, "CodeMeaning")
    )
    return None if found is None else _code(*found)


_CLEANERS: dict[str, Callable[[str, str, str], tags.Code | None]] = {
    "ChannelSourceSequence": tags.lead_code,
    "ChannelSensitivityUnitsSequence": tags.unit_code,
}


def _code(value: str, scheme: str, meaning: str) -> "Dataset":
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _text(dataset: "Dataset", keyword: str) -> str:
    """The text of an entry, several values joined by \\; "" if missing."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, bytes):
        return ""
    several = hasattr(value, "__iter__") and not isinstance(value, str) and not hasattr(value, "components")
    return ("\\".join(map(str, value)) if several else str(value)).strip(" \0")


def _origin(dataset: "Dataset") -> Origin:
    """The identifiers of an object."""
    keywords = (
        "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName",
        "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
        "ReferringPhysicianName", "Modality",
    )  # fmt: skip
    return Origin(*(_text(dataset, keyword) for keyword in keywords))
