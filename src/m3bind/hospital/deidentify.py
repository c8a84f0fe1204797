"""A DICOM object without anybody's name: built anew from the entries of an allow-list, never copied and then emptied.

* `Deidentifier.clean`: dataset -> `Cleaned`. * `Refused`: why an object cannot be taken, without its identifiers.
* `Origin`: what an object was, for the mapping that is kept only where asked for.

After DICOM PS3.15 Annex E, Basic Application Level Confidentiality Profile, and stricter: it removes all that `tags`
does not list. Of its options: Retain Longitudinal Temporal Information with Modified Dates (`dates="shift"`) is met, as
are Clean Graphics (overlays, curves, annotations go) and Clean Structured Content (it goes). Clean Pixel Data and Clean
Recognizable Visual Features are not: text in the pixels and a face in a head CT stay where they are, so an object
that says it has burned-in text is refused, as is the label picture of a slide; screen captures and ultrasound, where
such text is usual, are not taken at all. Nothing is retained of: safe private entries, UIDs, device, institution,
patient's characteristics.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from m3bind.errors import M3BindError, ReadError, in_words
from m3bind.hospital.pixels import clean_bulk
from m3bind.hospital.pseudonyms import Pseudonyms
from m3bind.hospital.tags import (
    ALLOWED,
    CODES,
    DECISIVE,
    EMPTY,
    MAPPED,
    NAMED,
    NO_DAY,
    SEQUENCES,
    SERIES,
    STORAGE,
    TIMES,
    WHOLE_SLIDE,
    Code,
    known_code,
    lead_code,
    unit_code,
)
from m3bind.modalities.formats.dicom_files import BIG_ENDIAN, EXPLICIT, IMPLICIT, open_dicom, quiet

METHOD = "m3bind: allow-list after PS3.15 Annex E"
_OPTIONS = {
    "113100": "Basic Application Confidentiality Profile",
    "113103": "Clean Graphics Option",
    "113104": "Clean Structured Content Option",
}
_DATES_OPTION = {"113107": "Retain Longitudinal Temporal Information Modified Dates Option"}
_COMPRESSED = "1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5"  # JPEG and its kin, RLE
Dates = Literal["none", "shift"]
Why = Literal["unreadable", "kind", "policy", "full"]


class Refused(M3BindError):
    """An object that is not taken. `why` is a word for programs, `reason` a clause without identifiers."""

    def __init__(self, why: Why, reason: str) -> None:
        super().__init__(reason)
        self.why, self.reason = why, reason


@dataclass(frozen=True)
class Origin:
    """The identifiers of an object, as a report about it needs them."""

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

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


@dataclass
class Cleaned:
    """A de-identified object and where it belongs."""

    dataset: Any  # pydicom, ready to be saved
    unit: str  # the item it is part of: its series where that is one item, else the object itself
    instance: str  # key of the object
    series: str  # key of its series
    whole: bool  # it is an item by itself
    modality: str  # that reads it, "" where its pixels must tell
    origin: Origin


class Deidentifier:
    """De-identification under one salt."""

    def __init__(self, pseudonyms: Pseudonyms, dates: Dates = "none", burned_in: bool = False) -> None:
        """`dates`: left out, or moved back by a number of days of each patient. `burned_in`: take what says YES."""
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

    def clean(self, dataset: Any) -> Cleaned:
        """The object anew, from the allowed entries of `dataset`.

        Raises:
            Refused: a kind of object or transfer syntax that is not taken, UIDs that are missing, burned-in text or a
                label, or content that cannot be understood.
        """
        with quiet():
            try:
                origin = _origin(dataset)
                self._judge(dataset, origin)
                return self._built(dataset, origin)
            except (Refused, MemoryError):
                raise
            except Exception as error:  # pydicom converts values when they are asked for, and raises anything
                raise Refused("unreadable", f"its content cannot be read ({in_words(error)})") from None

    def _judge(self, dataset: Any, origin: Origin) -> None:
        if origin.sop_class not in STORAGE:
            raise Refused("kind", "a kind of object that is not taken")
        if not (origin.sop_instance and origin.series and origin.study):
            raise Refused("unreadable", "without UIDs of its own, of its series and of its study")
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        if syntax == BIG_ENDIAN or (syntax not in (IMPLICIT, EXPLICIT) and not syntax.startswith(_COMPRESSED)):
            raise Refused("kind", "a transfer syntax that is not taken")
        if _text(dataset, "BurnedInAnnotation").upper() == "YES" and not self.burned_in:
            raise Refused("policy", "with burned-in text, which may name the patient")
        if origin.sop_class == WHOLE_SLIDE:
            kind = _text(dataset, "ImageType").upper()
            if _text(dataset, "SpecimenLabelInImage").upper() == "YES" or "LABEL" in kind or "OVERVIEW" in kind:
                raise Refused("policy", "the label of a slide, or a picture that shows it")

    def _built(self, dataset: Any, origin: Origin) -> Cleaned:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import UID

        made = self._kept(dataset, [])
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        clean_bulk(dataset, made, syntax)
        issuer = _text(dataset, "IssuerOfPatientID")
        patient = self.names.patient(origin.patient_id, issuer, origin.study)
        self._describe(made, origin, patient)
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = UID(EXPLICIT if syntax == IMPLICIT else syntax)
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        series = self.names.key("series", origin.series)
        instance = self.names.key("object", origin.sop_instance)
        together = origin.sop_class in SERIES
        return Cleaned(
            made, series if together else instance, instance, series, not together, STORAGE[origin.sop_class], origin
        )

    def _describe(self, made: Any, origin: Origin, patient: str) -> None:
        """Whose it is, by pseudonym; empty where the standard asks for an entry; what was done."""
        made.SOPClassUID, made.PatientID = origin.sop_class, patient
        for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyTime", "StudyID", "AccessionNumber",
                        "ReferringPhysicianName", "SeriesNumber", "Manufacturer"):  # fmt: skip
            setattr(made, keyword, "")
        for keyword in EMPTY.get(origin.sop_class, ()):
            if keyword not in made:
                setattr(made, keyword, [] if keyword.endswith("Sequence") else "")
        shifts = self.dates == "shift"
        made.StudyDate = self.names.moved(origin.study_date, patient) if shifts else ""
        if STORAGE[origin.sop_class] == "ecg":
            made.ContentDate, made.ContentTime = made.StudyDate or NO_DAY, "000000"
            made.AcquisitionDateTime = f"{made.ContentDate}000000"
            made.InstanceNumber = made.get("InstanceNumber") or 1
        made.LongitudinalTemporalInformationModified = "MODIFIED" if shifts else "REMOVED"
        made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", METHOD
        options = _OPTIONS | (_DATES_OPTION if shifts else {})
        made.DeidentificationMethodCodeSequence = [_code(code, "DCM", text) for code, text in options.items()]

    def _kept(self, dataset: Any, above: list[Any]) -> Any:
        """A new dataset of the allowed entries, through all levels; bulk data is left to `clean_bulk` at the top."""
        from pydicom.datadict import keyword_for_tag
        from pydicom.dataset import Dataset

        made, around = Dataset(), [dataset, *above]
        for tag in list(dataset.keys()):
            keyword = keyword_for_tag(tag)
            if keyword in SEQUENCES:
                items = [self._kept(item, around) for item in _items(dataset, keyword)]
                if items or keyword in dataset:
                    setattr(made, keyword, items)
            elif keyword in CODES:
                codes = [code for item in _items(dataset, keyword) if (code := _known(item, keyword))]
                if codes:
                    setattr(made, keyword, codes)
            elif keyword in MAPPED:
                setattr(made, keyword, self.names.uid(_text(dataset, keyword)))
            elif keyword in NAMED:
                if labels := [self._label(keyword, text) for text in _text(dataset, keyword).split("\\") if text]:
                    setattr(made, keyword, labels if len(labels) > 1 else labels[0])
            elif keyword in TIMES and STORAGE.get(_text(around[-1], "SOPClassUID")) == "ct":
                if moved := self.names.moved_time(_text(dataset, keyword), _text(around[-1], "StudyInstanceUID")):
                    setattr(made, keyword, moved)
            elif keyword in ALLOWED:
                _put(made, keyword, dataset, around)
        if above:
            clean_bulk(dataset, made, "", above)
        return made

    def _label(self, keyword: str, text: str) -> str:
        """A label as it is where it is plain, else a word that stands for it."""
        text = text.strip()
        return text if NAMED[keyword].fullmatch(text) else f"X{self.names.key(keyword, text)[:8].upper()}"


def _put(made: Any, keyword: str, dataset: Any, around: list[Any]) -> None:
    """Copy the values of an allowed entry that its rule lets pass.

    Of one that it does not, or that holds no values, nothing stays, but that a `DECISIVE` entry stays, empty: readers
    say that it holds nothing they can use, as they do of what was there.

    Raises:
        Refused: a `DECISIVE` entry holds numbers that may not stay; without them another picture would be read.
    """
    try:
        values, kind = _values(keyword, dataset, around)
        kept = ALLOWED[keyword](values) if values else None
        if kept:
            if " or " in kind:
                kind = "SS" if min(kept) < 0 else "US"
            made.add_new(keyword, kind, kept if len(kept) > 1 else kept[0])
            return
    except Exception:  # a value that cannot be converted says nothing
        kept, values = None, []
    if keyword not in DECISIVE:
        return
    if any(_usable(value) for value in values):
        raise Refused("policy", f"with a {keyword} that may not be kept, and decides what is read")
    made.add_new(keyword, _vr(keyword), None)


def _values(keyword: str, dataset: Any, around: list[Any]) -> tuple[list[Any], str]:
    """The values of an entry, [] where it has none, and its VR."""
    from pydicom.filewriter import correct_ambiguous_vr_element

    element = dataset[keyword]
    if " or " in element.VR:
        element = correct_ambiguous_vr_element(element, around[-1], True, around)
    value = element.value
    if value is None or value == "" or isinstance(value, bytes):
        return [], ""
    several = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return list(several), _vr(keyword, exact=False)


def _vr(keyword: str, exact: bool = True) -> str:
    """The VR of an entry; `exact`: one where the standard leaves two."""
    from pydicom.datadict import dictionary_VR

    found = str(dictionary_VR(keyword))
    return found.split(" or ")[0] if exact else found


def _usable(value: Any) -> bool:
    """Whether it is a finite number."""
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError, OverflowError):
        return False


def _items(dataset: Any, keyword: str) -> list[Any]:
    """The items of a sequence; none where it is something else."""
    from pydicom.sequence import Sequence

    value = dataset[keyword].value
    return list(value) if isinstance(value, Sequence) else []


def _known(item: Any, keyword: str) -> Any:
    """A code in our own words, where it is known; long values and URNs have entries of their own."""
    texts = [_text(item, name) for name in ("CodeValue", "LongCodeValue", "URNCodeValue")]
    value = next((text for text in texts if text), "")
    found = _CLEANERS.get(keyword, known_code)(_text(item, "CodingSchemeDesignator"), value, _text(item, "CodeMeaning"))
    return None if found is None else _code(*found)


_CLEANERS: dict[str, Callable[[str, str, str], Code | None]] = {
    "ChannelSourceSequence": lead_code,
    "ChannelSensitivityUnitsSequence": unit_code,
}


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _text(dataset: Any, keyword: str) -> str:
    """The text of an entry, of several values with \\ between them; "" without one."""
    value = dataset.get(keyword)
    if value is None or isinstance(value, bytes):
        return ""
    several = hasattr(value, "__iter__") and not isinstance(value, str) and not hasattr(value, "components")
    return ("\\".join(map(str, value)) if several else str(value)).strip(" \0")


def _origin(dataset: Any) -> Origin:
    """The identifiers of an object."""
    keywords = (
        "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName",
        "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
        "ReferringPhysicianName", "Modality",
    )  # fmt: skip
    return Origin(*(_text(dataset, keyword) for keyword in keywords))
