"""A cohort of virtual patients as DICOM, for tests of readers and pipelines on clinical formats with known content.

* `write_dicom`: every file of a cohort as one DICOM file (CT: one per slice) under the same names, with a manifest.

| modality | class | stored as |
|---|---|---|
| xray | Computed Radiography | 12 bits in 16; MONOCHROME1 (inverted) for patients of odd number |
| ct | CT | signed 16 bits, HU = stored - 1024, one file per slice, oriented as the NIfTI file |
| retina | Ophthalmic Photography 8 Bit | RGB |
| ecg | 12-lead ECG Waveform | signed 16 bits of 2.5 microvolts |
| pathology | VL Microscopic | RGB |
Every file states that it is synthetic, in the patient's name and in comments. UIDs depend on the cohort's settings, so
writing twice gives the same bytes. Layout: patients/p0000/{xray,retina,ecg,pathology}.dcm, patients/p0000/ct/ct000.dcm.
"""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3bind.core.files import atomic_path, write_text
from m3bind.data.phantom.cohort import Progress, load_settings
from m3bind.data.phantom.ecg import LEADS
from m3bind.data.phantom.writing import MARK
from m3bind.data.tables import csv_text
from m3bind.errors import ConfigError

CT_INTERCEPT = -1024
XRAY_TOP = 4095  # 12 bits
MICROVOLTS = 2.5  # per step of the ECG
DAY = "20000101"  # placeholder; some classes require a date
_LEAD_CODES = dict(zip(LEADS, ("2:1", "2:2", "2:61", "2:62", "2:63", "2:64", *(f"2:{k}" for k in range(3, 9)))))
_CLASSES = {
    "xray": ("1.2.840.10008.5.1.4.1.1.1", "CR"),
    "ct": ("1.2.840.10008.5.1.4.1.1.2", "CT"),
    "retina": ("1.2.840.10008.5.1.4.1.1.77.1.5.1", "OP"),
    "ecg": ("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG"),
    "pathology": ("1.2.840.10008.5.1.4.1.1.77.1.2", "GM"),
}


def write_dicom(cohort: Path | str, folder: Path | str, progress: Progress | None = None) -> Path:
    """Write the cohort in folder `cohort` (from `generate`) as DICOM into `folder`; the path of the new manifest.

    The manifest has the rows of the cohort's with other paths; a CT's is the folder of its slices.

    Raises:
        ConfigError: `cohort` is not a finished cohort, or `folder` is the cohort's own.
        DiskError: a file could not be written; incomplete patients are removed.
    """
    cohort, folder = Path(cohort), Path(folder)
    if not (cohort / "manifest.csv").is_file() or not (cohort / "cohort.json").is_file():
        raise ConfigError(f"{cohort}: no finished cohort of virtual patients; write one with m3bind phantom first")
    if folder.resolve() == cohort.resolve():
        raise ConfigError(f"{folder} is the cohort's own folder; choose another one for the DICOM files")
    seed = repr(sorted(asdict(load_settings(cohort)).items()))
    with open(cohort / "manifest.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    patients = list(dict.fromkeys(row["patient"] for row in rows))
    for done, patient in enumerate(patients, 1):
        with atomic_path(folder / "patients" / patient, directory=True) as temporary:
            for row in rows:
                if row["patient"] == patient:
                    row["path"] = f"patients/{patient}/{_write(cohort / row['path'], temporary, row, seed)}"
        if progress:
            progress(done, len(patients))
    write_text(folder / "manifest.csv", csv_text(rows[0], rows))
    return folder / "manifest.csv"


def _write(source: Path, folder: Path, row: dict[str, str], seed: str) -> str:
    """Write one file of a cohort as DICOM into `folder`; returns its name there."""
    modality, patient = row["modality"], row["patient"]
    if modality == "ct":
        (folder / "ct").mkdir()
        for number, dataset in enumerate(_ct(source, patient, seed)):
            dataset.save_as(folder / "ct" / f"ct{number:03d}.dcm", enforce_file_format=True)
        return "ct"
    make = {"xray": _xray, "retina": _retina, "ecg": _ecg, "pathology": _tile}[modality]
    make(source, patient, seed).save_as(folder / f"{modality}.dcm", enforce_file_format=True)
    return f"{modality}.dcm"


# --- common parts of all classes --------------------------------------------------------------------------------------


def _uid(seed: str, *parts: object) -> Any:
    """A UID that is the same for the same cohort and `parts`."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["m3bind virtual patient", seed, *map(str, parts)])


def _item(**entries: object) -> Any:
    """A dataset with these entries."""
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in entries.items():
        setattr(item, keyword, value)
    return item


def _code(value: str, scheme: str, meaning: str) -> Any:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _dataset(modality: str, patient: str, seed: str, instance: int = 1) -> Any:
    """Patient, study, series and equipment of a synthetic file."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    kind, short = _CLASSES[modality]
    dataset = _item(
        SOPClassUID=kind, SOPInstanceUID=_uid(seed, patient, modality, instance), SyntheticData="YES",
        PatientName=f"SYNTHETIC^{patient.upper()}", PatientID=f"SYNTHETIC-{patient}", PatientBirthDate="",
        PatientSex="", PatientComments=MARK, StudyInstanceUID=_uid(seed, patient), StudyDate=DAY, StudyTime="000000",
        ReferringPhysicianName="", StudyID="SYNTHETIC", AccessionNumber="", StudyDescription="SYNTHETIC",
        Modality=short, SeriesInstanceUID=_uid(seed, patient, modality), SeriesDescription="SYNTHETIC",
        SeriesNumber=list(_CLASSES).index(modality) + 1, Manufacturer="m3bind", ManufacturerModelName="virtual patient",
        DeviceSerialNumber="0", SoftwareVersions="1", ContentQualification="RESEARCH", InstanceNumber=instance,
        ContentDate=DAY, ContentTime="000000", AcquisitionDateTime=f"{DAY}000000",
    )  # fmt: skip
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def _put_pixels(dataset: Any, pixels: NDArray[Any], photometric: str, bits: int) -> Any:
    """Add (H, W) or (H, W, 3) stored values of `bits` bits."""
    dataset.ImageComments = MARK
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = photometric
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return dataset


def _pixels(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


# --- the five classes -------------------------------------------------------------------------------------------------


def _xray(source: Path, patient: str, seed: str) -> Any:
    dataset = _dataset("xray", patient, seed)
    stored = np.rint(_pixels(source) * (XRAY_TOP / 255)).astype(np.uint16)
    inverted = int(patient[1:]) % 2 == 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    dataset.PatientOrientation = ["L", "F"]
    dataset.WindowCenter, dataset.WindowWidth = (XRAY_TOP + 1) // 2, XRAY_TOP + 1  # the full range, linear
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    return _put_pixels(dataset, XRAY_TOP - stored if inverted else stored, f"MONOCHROME{1 if inverted else 2}", 12)


def _ct(source: Path, patient: str, seed: str) -> list[Any]:
    """One dataset per slice, in the order of the file's third axis."""
    import nibabel
    from nibabel import affines

    image: Any = nibabel.load(source)
    volume = np.asarray(image.dataobj).astype(np.int32) - CT_INTERCEPT  # (x, y, z)
    sides = affines.voxel_sizes(image.affine)
    axes = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # NIfTI points right and forward, DICOM left and back
    slices = []
    for k in range(volume.shape[2]):
        dataset = _dataset("ct", patient, seed, k + 1)
        corner = axes @ [0, 0, k, 1]
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = _uid(seed, patient, "frame"), ""
        dataset.PatientPosition, dataset.BodyPartExamined = "HFS", "CHEST"
        dataset.KVP, dataset.AcquisitionNumber = None, 1
        dataset.PixelSpacing = [_short(sides[1]), _short(sides[0])]
        dataset.SliceThickness = _short(sides[2])
        dataset.ImageOrientationPatient = [_short(v) for axis in (0, 1) for v in axes[:3, axis] / sides[axis]]
        dataset.ImagePositionPatient = [_short(v) for v in corner[:3]]
        dataset.SliceLocation = _short(corner[2])
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = CT_INTERCEPT, 1, "HU"
        slices.append(_put_pixels(dataset, volume[:, :, k].T.astype(np.int16), "MONOCHROME2", 16))
    return slices


def _short(value: float) -> str:
    """A number as DICOM decimal string (up to 16 characters)."""
    return f"{float(value) + 0.0:.10g}"


def _retina(source: Path, patient: str, seed: str) -> Any:
    dataset = _dataset("retina", patient, seed)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    dataset.ImageLaterality = "R"
    dataset.AnatomicRegionSequence = [_code("5665001", "SCT", "Retina")]
    dataset.AcquisitionDeviceTypeCodeSequence = [_code("409898007", "SCT", "Fundus Camera")]
    for keyword in (
        "IlluminationTypeCodeSequence", "LightPathFilterTypeStackCodeSequence", "ImagePathFilterTypeStackCodeSequence",
        "LensesCodeSequence", "RefractiveStateSequence", "PatientEyeMovementCommandCodeSequence",
    ):  # fmt: skip
        setattr(dataset, keyword, [])
    for keyword in ("HorizontalFieldOfView", "EmmetropicMagnification", "IntraOcularPressure", "PupilDilated"):
        setattr(dataset, keyword, None)
    dataset.PatientEyeMovementCommanded, dataset.DetectorType = "", None
    dataset.NumberOfFrames = 1
    return _put_pixels(dataset, _pixels(source), "RGB", 8)


def _tile(source: Path, patient: str, seed: str) -> Any:
    dataset = _dataset("pathology", patient, seed)
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.AcquisitionContextSequence = []
    dataset.ContainerIdentifier = f"SYNTHETIC-{patient}"
    dataset.IssuerOfTheContainerIdentifierSequence = []
    dataset.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    dataset.SpecimenDescriptionSequence = [
        _item(
            SpecimenIdentifier=f"SYNTHETIC-{patient}", SpecimenUID=_uid(seed, patient, "specimen"),
            IssuerOfTheSpecimenIdentifierSequence=[], SpecimenPreparationSequence=[],
        )
    ]  # fmt: skip
    return _put_pixels(dataset, _pixels(source), "RGB", 8)


def _ecg(source: Path, patient: str, seed: str) -> Any:
    import wfdb

    record = wfdb.rdrecord(str(source))
    names = list(record.sig_name)
    signal = record.p_signal[:, [names.index(lead) for lead in LEADS]] * 1000 / MICROVOLTS  # (T, 12)
    stored = np.clip(np.rint(signal), -32768, 32767).astype("<i2")
    channels = [
        _item(
            ChannelNumber=number,
            ChannelLabel=lead,
            ChannelSourceSequence=[_code(_LEAD_CODES[lead], "MDC", f"Lead {lead}")],
            ChannelSensitivity=MICROVOLTS,
            ChannelSensitivityUnitsSequence=[_code("uV", "UCUM", "microvolt")],
            ChannelSensitivityCorrectionFactor=1,
            ChannelBaseline=0,
            ChannelSampleSkew=0,
            WaveformBitsStored=16,
        )
        for number, lead in enumerate(LEADS, 1)
    ]
    group = _item(
        MultiplexGroupTimeOffset=0,
        WaveformOriginality="ORIGINAL",
        NumberOfWaveformChannels=len(LEADS),
        NumberOfWaveformSamples=len(stored),
        SamplingFrequency=float(record.fs),
        MultiplexGroupLabel="RHYTHM",
        ChannelDefinitionSequence=channels,
        WaveformBitsAllocated=16,
        WaveformSampleInterpretation="SS",
        WaveformData=stored.tobytes(),
    )
    group["WaveformData"].VR = "OW"
    dataset = _dataset("ecg", patient, seed)
    dataset.AcquisitionContextSequence = []
    dataset.WaveformSequence = [group]
    return dataset
