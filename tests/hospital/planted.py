"""DICOM objects with made-up identifiers in every kind of entry that may hold text, and around the pixels."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

LETTERS = "bcdfghjklmnprstvwz"
TEXT = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
_NAME = re.compile(rb"qzx[a-z]{3}v")
NEEDED = {"Modality", "PhotometricInterpretation", "SpecificCharacterSet", "ImageType", "PatientOrientation",
          "BurnedInAnnotation", "PresentationLUTShape", "PresentationIntentType", "RescaleType"}  # fmt: skip
GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040, 0x0054, 0x0088)
CODE = {"CodeValue", "CodeMeaning", "CodingSchemeDesignator", "LongCodeValue", "URNCodeValue"}
LEADS = {"I": "2:1", "II": "2:2", "III": "2:61", "aVR": "2:62", "aVL": "2:63", "aVF": "2:64",
         **{f"V{k}": f"2:{k + 2}" for k in range(1, 7)}}  # fmt: skip


class Names:
    """Names like "QZBCDV", and other texts, generated one by one and recorded."""

    def __init__(self) -> None:
        self.used: list[str] = []

    def __call__(self) -> str:
        number, letters = len(self.used), ""
        for _ in range(3):
            number, rest = divmod(number, len(LETTERS))
            letters += LETTERS[rest]
        self.used.append(f"QZX{letters}V".upper())
        return self.used[-1]

    def note(self, text: str) -> str:
        """Something else that identifies: a UID, a day."""
        self.used.append(text)
        return text

    def found_in(self, data: bytes | str) -> list[str]:
        """Those that stand in `data`, in any case, as bytes or as UTF-16."""
        low = (data.encode() if isinstance(data, str) else data).lower()
        known, found = {name.lower(): name for name in self.used}, []
        for text in (low, low.replace(b"\0", b"")):
            found += [known[name] for match in _NAME.findall(text) if (name := match.decode()) in known]
            found += [name for name in self.used if name[0].isdigit() and name.encode() in text]
        return sorted(set(found))


def text_keywords() -> list[str]:
    """Keywords of entries that may hold text, of the usual groups, without those that reading an image needs."""
    return [
        entry[4]
        for tag, entry in sorted(DicomDictionary.items())
        if tag >> 16 in GROUPS and entry[0] in TEXT and not entry[3] and entry[4] not in NEEDED | CODE and entry[4]
    ]


def plant(dataset: Any, names: Names, everywhere: bool = True) -> Any:
    """Fill a dataset with identifiers: text entries, days, UIDs, sequences, private entries, overlays, curves."""
    for keyword in text_keywords() if everywhere else ("PatientName", "PatientID", "StudyDescription"):
        setattr(dataset, keyword, names())
    for keyword, day in (("PatientBirthDate", "19370412"), ("StudyDate", "20190723"), ("ContentDate", "20190724")):
        setattr(dataset, keyword, names.note(day) if day not in names.used else day)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        if keyword in dataset or keyword != "FrameOfReferenceUID":
            setattr(dataset, keyword, names.note(str(generate_uid())))
    dataset.PatientAge = "082Y"
    other, request, reference, code = Dataset(), Dataset(), Dataset(), Dataset()
    other.PatientID, other.IssuerOfPatientID = names(), names()
    request.RequestedProcedureDescription, request.ScheduledProcedureStepID = names(), names()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    names.note(str(reference.ReferencedSOPInstanceUID))
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = names(), names(), names()
    inner = Dataset()
    inner.ContentCreatorName, inner.ConceptNameCodeSequence = names(), [code]
    request.RequestedProcedureCodeSequence = [inner]
    dataset.OtherPatientIDsSequence, dataset.RequestAttributesSequence = [other], [request]
    dataset.ReferencedImageSequence, dataset.AnatomicRegionSequence = [reference], [code]
    block = dataset.private_block(0x0099, names(), create=True)
    block.add_new(1, "LO", names())
    block.add_new(2, "UN", names().encode() + b" ")
    block.add_new(3, "OB", names().encode() + b" ")
    nested = Dataset()
    nested.PatientName = names()
    block.add_new(4, "SQ", [nested])
    dataset.add_new(0x60000010, "US", 4)
    dataset.add_new(0x60000011, "US", 4)
    dataset.add_new(0x60000022, "LO", names())
    dataset.add_new(0x60003000, "OB", names().encode() + b" ")
    dataset.add_new(0x50003000, "OB", names().encode() + b" ")
    dataset.add_new(0x00204000, "LT", names())
    dataset.add_new(0xFFFCFFFC, "OB", names().encode() + b" ")
    meta = dataset.file_meta
    meta.SourceApplicationEntityTitle = names()
    meta.PrivateInformationCreatorUID = names.note(str(generate_uid()))
    meta.PrivateInformation = names().encode() + b" "
    dataset.preamble = names().encode().ljust(128, b"\0")
    return dataset


def bare(kind: str, modality: str, syntax: Any = ExplicitVRLittleEndian) -> Any:
    """An object without pixels or samples."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.Modality = kind, modality
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = (generate_uid() for _ in range(3))
    dataset.PatientID, dataset.PatientName, dataset.StudyDate = "4711", "Doe^Jane", "20200101"
    return dataset


def put_pixels(dataset: Any, pixels: Any, photometric: str, stored: int) -> Any:
    """(H, W) or (H, W, 3) values."""
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored = 8 * pixels.dtype.itemsize, stored
    dataset.HighBit, dataset.PixelRepresentation = stored - 1, int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    return dataset


def chest(seed: int = 0, size: int = 128) -> Any:
    """A smooth grey image of 12 bits."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 6)
    return np.rint((noise - noise.min()) / np.ptp(noise) * 4095).astype(np.uint16)


def radiograph(seed: int = 0, size: int = 128) -> Any:
    """A CR of 12 bits, MONOCHROME2."""
    dataset = put_pixels(bare("1.2.840.10008.5.1.4.1.1.1", "CR"), chest(seed, size), "MONOCHROME2", 12)
    dataset.ImageType, dataset.WindowCenter, dataset.WindowWidth = ["ORIGINAL", "PRIMARY"], 2048, 4096
    dataset.InstanceNumber, dataset.BurnedInAnnotation = 1, "NO"
    return dataset


def hidden(dataset: Any, names: Names) -> Any:
    """Text behind the pixels, and in the bits above the stored ones."""
    values = np.frombuffer(dataset.PixelData, "<u2").copy()
    bits = np.unpackbits(np.frombuffer(names().encode(), np.uint8)).astype(np.uint16)
    values[: len(bits)] |= bits << 15
    dataset.PixelData = values.tobytes() + names().encode() + b" "
    return dataset


def photograph(names: Names) -> Any:
    """A fundus photograph in JPEG with a comment and EXIF, and bytes behind its end."""
    from PIL import Image
    from pydicom.encaps import encapsulate

    y, x = np.mgrid[:96, :96] / 96 - 0.5
    rng = np.random.default_rng(3)
    disc = (np.hypot(x, y) < 0.48)[..., None] * (np.array([190, 90, 40]) * (0.7 + 0.3 * rng.random((96, 96, 1))))
    dataset = put_pixels(bare("1.2.840.10008.5.1.4.1.1.77.1.5.1", "OP"), disc.astype(np.uint8), "YBR_FULL_422", 8)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    exif = Image.Exif()
    exif[0x013B] = names()
    out = io.BytesIO()
    Image.fromarray(disc.astype(np.uint8)).save(out, "jpeg", exif=exif, comment=names().encode())
    data = out.getvalue() + names().encode()
    dataset.PixelData = encapsulate([data + b"\0" * (len(data) % 2)])
    dataset["PixelData"].is_undefined_length = True
    dataset.ImageLaterality, dataset.NumberOfFrames = "R", 1
    return dataset


def electrocardiogram(names: Names | None = None, rate: int = 500, seconds: int = 10) -> Any:
    """A 12-lead ECG waveform object; with `names`, its free texts contain some."""
    name = names or (lambda: "")
    t = np.arange(rate * seconds) / rate
    beat = np.exp(-(((t % 0.8) - 0.3) ** 2) / 3e-4) + 0.2 * np.exp(-(((t % 0.8) - 0.55) ** 2) / 3e-3)
    i, ii = 0.6 * beat, beat
    leads = [i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2, *(beat * (k + 1) / 4 for k in range(6))]
    stored = np.rint(np.stack(leads, 1) * 1000 / 2.5).astype("<i2")
    dataset = bare("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG")
    group, channels = Dataset(), []
    for number, (lead, code) in enumerate(LEADS.items(), 1):
        channel, source, unit = Dataset(), Dataset(), Dataset()
        source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = code, "MDC", name() or f"Lead {lead}"
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "uV", "UCUM", name() or "microvolt"
        channel.ChannelNumber, channel.ChannelLabel = number, name() or lead
        channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = [source], [unit]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor = 2.5, 1
        channel.ChannelBaseline, channel.ChannelSampleSkew, channel.WaveformBitsStored = 0, 0, 16
        channels.append(channel)
    group.WaveformOriginality, group.NumberOfWaveformChannels = "ORIGINAL", 12
    group.NumberOfWaveformSamples, group.SamplingFrequency = len(stored), rate
    group.MultiplexGroupLabel = name() or "RHYTHM"
    group.ChannelDefinitionSequence = channels
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.add_new("WaveformData", "OW", stored.tobytes())
    dataset.WaveformSequence = [group]
    if names is not None:
        note = Dataset()
        note.UnformattedTextValue = names()
        dataset.WaveformAnnotationSequence = [note]
    return dataset


def series(folder: Path, names: Names | None, slices: int = 6) -> list[Any]:
    """The real CT series in `folder`, or else a small synthetic one; with `names`, full of them."""
    files = sorted(folder.glob("*.dcm")) if folder.is_dir() else []
    if files:
        found = [pydicom.dcmread(file) for file in files]
    else:
        found = []
        study, one = generate_uid(), generate_uid()
        for number in range(slices):
            values = np.full((32, 32), 24, np.int16)
            values[6:26, 6:26] = 1060
            values[12:18, 12:18] = 1700 + number
            dataset = put_pixels(bare("1.2.840.10008.5.1.4.1.1.2", "CT"), values, "MONOCHROME2", 16)
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.InstanceNumber = study, one, number + 1
            dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
            dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 2.0
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            found.append(dataset)
    if names is not None:
        study, one, frame = (names.note(str(generate_uid())) for _ in range(3))
        patient = names()
        for number, dataset in enumerate(found):
            plant(dataset, names, everywhere=number == 0)
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, one, frame
            dataset.PatientID = patient
    return found


def save(dataset: Any, path: Path) -> Path:
    """As a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
