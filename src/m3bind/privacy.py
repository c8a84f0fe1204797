"""What may leave a reader: only the technical header entries of an allow-list; and masking of names.

* `TECHNICAL_TAGS`: DICOM keywords whose values describe the acquisition, not the patient.
* `technical`: the value of such an entry as a short text, or None if it could be free text.
* `redact_path`: a path as logs, reports and error messages may print it: names that could be a person's are hashed.
* `printable`: a text with unprintable characters escaped. * `is_utf8`: whether tables can hold a path.
* `patient_key`: a salted hash of a patient's identifier.

M3BIND_IDENTIFIERS=show in the environment disables the masking of file names and the hashing of patients: logs and
reports may then name people.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

TECHNICAL_TAGS = (
    "Modality", "SOPClassUID", "TransferSyntaxUID", "PhotometricInterpretation", "SamplesPerPixel", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "ImageOrientationPatient",
    "GantryDetectorTilt", "KVP", "ExposureTime", "XRayTubeCurrent", "ViewPosition", "BodyPartExamined",
    "ImageLaterality", "Laterality", "PresentationIntentType", "SamplingFrequency", "NumberOfWaveformChannels",
    "NumberOfWaveformSamples", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "HorizontalFieldOfView",
)  # fmt: skip


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NOT_UTF8 = "its name is not UTF-8 text, which tables need; rename the file"
_CODED = ("Modality", "PhotometricInterpretation", "RescaleType", "VOILUTFunction")
_BODY_PARTS = _words("""
    CHEST ABDOMEN HEAD NECK PELVIS SPINE THORAX LUNG HEART BREAST EYE RETINA SKULL BRAIN LIVER KIDNEY KNEE HIP HAND
    FOOT SHOULDER ELBOW ANKLE WRIST EXTREMITY WHOLEBODY CSPINE TSPINE LSPINE COLON PROSTATE SKIN
""")  # fmt: skip
_VIEWS = _words("AP PA LL RL LLD RLD LLO RLO LATERAL LAT OBLIQUE MLO CC ML LM")
_GENERIC = _words("""
    img image im slice scan series study file frame tile patch slide volume vol record rec signal lead leads ecg ekg
    xray cxr ct dx cr dr mg mr mri us op fundus retina eye left right od os pathology histology tissue wsi svs nodule
    patient subject sample case train test valid val dicom nifti nii gz dat hea mat edf bdf png jpg jpeg tif tiff dcm
    npy npz csv zip hr lr view front frontal lateral pa ap small large mini synthetic data chest lung colon heart
    normal abnormal id no nr num number version gray grey rgb mono
""")  # fmt: skip
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"\d{6,}")  # a date, a record number, a part of a UID


def technical(keyword: str, value: object) -> str | None:
    """The value of an allowed entry as text; None if it is not allowed, empty, or not of the expected form."""
    if keyword not in TECHNICAL_TAGS or value is None:
        return None
    text = str(value).strip()
    if keyword == "BodyPartExamined":
        return text if text.upper().replace(" ", "") in _BODY_PARTS else None
    if keyword == "ViewPosition":
        return text if text.upper() in _VIEWS else None
    if keyword in ("Laterality", "ImageLaterality"):
        return text if text in ("L", "R", "U", "B") else None
    if keyword in _CODED:
        return text if re.fullmatch(r"[A-Z0-9_ ]{1,24}", text) else None
    if keyword.endswith("UID"):
        return text if re.fullmatch(r"1\.2\.840\.10008\.[0-9.]{1,44}", text) else None
    plain = text.strip("[]()").replace("'", "").replace(", ", "\\")
    if keyword in ("LossyImageCompression", "PresentationIntentType"):
        return plain if plain in ("00", "01", "FOR PRESENTATION", "FOR PROCESSING") else None
    return plain if re.fullmatch(r"[-+0-9.eE\\]{1,120}", plain) else None


def redact_path(path: Path | str) -> str:
    """`path` for users and logs: parts that could be a person's name become "~" and a hash, with their extension.

    Generic words and numbers of fewer than six digits ("img_0001.png", "slice12.dcm") are shown unchanged.
    """
    if os.environ.get("M3BIND_IDENTIFIERS") == "show":
        return printable(str(path))
    path = Path(path)
    parts = path.parts[-2:]
    return "/".join(part if part in ("/", "..", ".") else _masked(part) for part in parts)


def printable(text: str) -> str:
    """`text` with line ends, direction marks and bytes that are not UTF-8 as escapes ("R\\xf6ntgen.png")."""
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def is_utf8(path: Path | str) -> bool:
    """Whether tables can hold a path: JSON, Parquet and databases accept only UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # Python's surrogate for a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def _masked(name: str) -> str:
    stem, dot, ending = name.partition(".")
    if not re.fullmatch(r"[A-Za-z0-9.]{0,8}", ending):
        stem, dot, ending = name, "", ""
    words = [word.lower() for word in _WORD.findall(stem)]
    generic = all(word in _GENERIC or word.removesuffix("s") in _GENERIC for word in words)
    if generic and name.isprintable() and not _NUMBER.search(stem):
        return name
    return "~" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8] + dot + ending


def patient_key(patient: str, salt: str) -> str:
    """16 hexadecimal digits that are equal for the same patient and salt and do not reveal the patient.

    With M3BIND_IDENTIFIERS=show, the patient's own name or number.
    """
    return next(patient_keys([patient], salt))


def patient_keys(patients: Iterable[str], salt: str) -> Iterator[str]:
    """`patient_key` of each; "" of an unknown one."""
    if os.environ.get("M3BIND_IDENTIFIERS") == "show":
        yield from patients
        return
    salted = hmac.new(salt.encode(), digestmod="sha256")
    for patient in patients:
        keyed = salted.copy()
        keyed.update(patient.encode())
        yield keyed.hexdigest()[:16] if patient else ""
