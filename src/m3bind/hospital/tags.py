"""The header entries that are kept, and what each may hold; everything else of an object goes.

* `ALLOWED`: keyword -> rule. A rule takes the values of an entry and gives those that may stay, or None.
* `DECISIVE`: of these, what an array is computed from: kept as it is, or the object is not taken.
* `MAPPED`: UIDs that are replaced by others. `NAMED`: labels that are, where they are not plain. `TIMES`: of CT slices.
  `SEQUENCES`: entries whose items are cleaned in the same way.
  `CODES`: sequences of codes, of which only known ones stay. `BULK`: bytes, see `pixels`.
* `WRITTEN`: entries that are made anew, `EMPTY` among them.
* `STORAGE`: the kinds of objects that are taken, and the modality that reads each.

Kept is what reading and showing needs: geometry, description of pixels and of waveforms, kind, body part. Nowhere free
text: words come from the lists below, numbers are bounded, and rounded to 9 digits where no array rests on them, so
that a name or a record number that was written into the wrong field does not stay either.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from m3bind.modalities._files import DICOM_KINDS
from m3bind.privacy import technical

Rule = Callable[[Sequence[Any]], "list[Any] | None"]
DIGITS = 9  # of a number that is kept
_ROOT = "1.2.840.10008.5.1.4.1.1."
STORAGE = {  # SOP class -> modality; "" where its pixels must tell
    f"{_ROOT}1": "xray", f"{_ROOT}1.1": "xray", f"{_ROOT}1.1.1": "xray",
    f"{_ROOT}2": "ct", f"{_ROOT}2.1": "ct", f"{_ROOT}2.2": "ct",
    f"{_ROOT}9.1.1": "ecg", f"{_ROOT}9.1.2": "ecg",
    f"{_ROOT}77.1.5.1": "retina", f"{_ROOT}77.1.5.2": "retina",
    f"{_ROOT}77.1.2": "pathology", f"{_ROOT}77.1.3": "pathology", f"{_ROOT}77.1.6": "pathology",
    f"{_ROOT}77.1.4": "",
}  # fmt: skip
WHOLE_SLIDE = f"{_ROOT}77.1.6"
SERIES = {f"{_ROOT}2", f"{_ROOT}2.1", f"{_ROOT}2.2", WHOLE_SLIDE}  # of which several objects make one item


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def whole(most: int = 10**6) -> Rule:
    """Whole numbers below `most`, of either sign."""

    def rule(values: Sequence[Any]) -> list[Any] | None:
        found = [int(value) for value in values]
        return found if found and all(abs(value) < most for value in found) else None

    return rule


def number(most: float = 1e6, rounded: bool = True) -> Rule:
    """Finite numbers below `most`, of either sign, rounded to `DIGITS` digits, or as they are."""

    def rule(values: Sequence[Any]) -> list[Any] | None:
        found = [float(f"{float(value):.{DIGITS}g}") if rounded else float(value) for value in values]
        fits = found and all(math.isfinite(value) and abs(value) < most for value in found)
        return [int(value) if value.is_integer() else value for value in found] if fits else None

    return rule


def words(text: str, other: str | None = None) -> Rule:
    """The words of a list parted by blanks, "~" where a word has one; `other` in place of those that are not listed."""
    known = {word.replace("~", " ") for word in text.split()}

    def rule(values: Sequence[Any]) -> list[Any] | None:
        given = [str(value).strip().upper() for value in values]
        found = [value if value in known else other for value in given]
        return None if not found or None in found else found

    return rule


def _technical(keyword: str) -> Rule:
    """What `m3bind.privacy.technical` lets pass."""

    def rule(values: Sequence[Any]) -> list[Any] | None:
        found = [technical(keyword, value) for value in values]
        return None if len(found) != 1 or found[0] is None else found

    return rule


def _orientation(values: Sequence[Any]) -> list[Any] | None:
    found = [str(value).strip() for value in values]
    return found if found and all(re.fullmatch("[RLAPHF]{1,3}", value) for value in found) else None


def _float_padding(values: Sequence[Any]) -> list[Any] | None:
    """A number below a million, or a limit of what floats can hold, as padding is."""
    value = abs(float(values[0]))
    bound = any(math.isclose(value, float(np.finfo(kind).max), rel_tol=1e-6) for kind in (np.float32, np.float64))
    return [float(values[0])] if bound or value < 1e6 else None


def _pointer(values: Sequence[Any]) -> list[Any] | None:
    """The tag of a known entry."""
    from pydicom.datadict import keyword_for_tag

    return [int(values[0])] if keyword_for_tag(int(values[0])) else None


LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_BY_NAME = {name.upper(): name for name in (*LEADS, "-aVR", "V7", "V8", "V9", "V3R", "V4R", "V5R", "V6R")}


def _lead(values: Sequence[Any]) -> list[Any] | None:
    name = _BY_NAME.get(re.sub(r"^(LEAD|MDC_ECG_LEAD_)\s*", "", str(values[0]).strip().upper())) if values else None
    return [name] if name else None


_SIZES = _names("""Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel PlanarConfiguration
    NumberOfFrames TotalPixelMatrixRows TotalPixelMatrixColumns TotalPixelMatrixFocalPlanes NumberOfOpticalPaths
    PixelPaddingValue PixelPaddingRangeLimit LUTDescriptor RedPaletteColorLookupTableDescriptor
    GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor SmallestImagePixelValue
    LargestImagePixelValue NumberOfWaveformChannels WaveformBitsAllocated WaveformBitsStored ChannelNumber
    DimensionIndexValues ColumnPositionInTotalImagePixelMatrix RowPositionInTotalImagePixelMatrix
    ConcatenationFrameOffsetNumber InConcatenationNumber InConcatenationTotalNumber TemporalPositionIndex
    TemporalPositionIdentifier InStackPositionNumber FrameAcquisitionNumber""")
_EXACT = _names("""RescaleSlope RescaleIntercept WindowCenter WindowWidth PixelSpacing ImagerPixelSpacing
    SpacingBetweenSlices ImageOrientationPatient ImagePositionPatient SliceLocation GantryDetectorTilt
    SamplingFrequency ChannelSensitivity ChannelSensitivityCorrectionFactor ChannelBaseline ChannelSampleSkew
    ChannelTimeSkew MultiplexGroupTimeOffset""")  # arrays, sizes and rates are computed from them
_MEASURES = _names("""SliceThickness KVP ReconstructionDiameter PixelAspectRatio HorizontalFieldOfView
    ImagedVolumeWidth ImagedVolumeHeight ImagedVolumeDepth ImageOrientationSlide
    XOffsetInSlideCoordinateSystem YOffsetInSlideCoordinateSystem
    ZOffsetInSlideCoordinateSystem TriggerTime NominalCardiacTriggerDelayTime NominalPercentageOfCardiacPhase
    NominalPercentageOfRespiratoryPhase FilterLowFrequency
    FilterHighFrequency NotchFilterFrequency LossyImageCompressionRatio""")
_FLOAT_PADDING = _names("""FloatPixelPaddingValue FloatPixelPaddingRangeLimit DoubleFloatPixelPaddingValue
    DoubleFloatPixelPaddingRangeLimit""")
_YES_NO = words("YES NO")
_UNITS = words("HU OD US MGML Z_EFF ED EDW PCT")

_IMAGE_TYPE = words(
    "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER VOLUME NONE RESAMPLED THUMBNAIL LABEL OVERVIEW COLOR"
    " MONOCHROME REFORMATTED MPR HELICAL AVERAGE MIN_IP MAX_IP CT_SOM5 CT_SOM7 SPI SINGLE~PLANE ANGIO CARDIAC"
    " CARDIAC_GATED CARDIAC_CTA DYNAMIC FLUOROSCOPY MULTI_ENERGY PERFUSION SEQ TOPOGRAM SUBTRACTION MAXIMUM MEAN"
    " MINIMUM MEDIAN STDDEV ENERGY_PROP_WT VMI MAT_SPECIFIC VIRTUAL_NON_CONTRAST ELECTRON_DENSITY EFF_ATOMIC_NUM"
    " CSA CSAPARALLEL MIP MINIP CALCIUM LUNG DIXON",
    other="OTHER",
)

ALLOWED: dict[str, Rule] = {
    **{keyword: whole() for keyword in _SIZES},
    **{keyword: number() for keyword in _MEASURES},
    **{keyword: number(rounded=False) for keyword in _EXACT},
    **dict.fromkeys(_FLOAT_PADDING, _float_padding),
    "InstanceNumber": whole(10**5),
    "AcquisitionNumber": whole(10**5),
    "ExposureTime": whole(10**5),
    "XRayTubeCurrent": whole(10**5),
    "NumberOfWaveformSamples": whole(10**8),
    "Modality": words(" ".join(DICOM_KINDS) + " XC"),
    "ImageType": _IMAGE_TYPE,
    "FrameType": _IMAGE_TYPE,
    "DimensionIndexPointer": _pointer,
    "PhotometricInterpretation": words(
        "MONOCHROME1 MONOCHROME2 RGB PALETTE~COLOR YBR_FULL YBR_FULL_422 YBR_PARTIAL_422 YBR_PARTIAL_420 YBR_ICT"
        " YBR_RCT",
        other="OTHER",
    ),
    "LossyImageCompression": words("00 01"),
    "LossyImageCompressionMethod": words("ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_13818_2 ISO_14496_10 ISO_15444_15"),
    "RescaleType": _UNITS,
    "ModalityLUTType": _UNITS,
    "VOILUTFunction": words("LINEAR LINEAR_EXACT SIGMOID", other="OTHER"),
    "PresentationLUTShape": words("IDENTITY INVERSE"),
    "PresentationIntentType": words("FOR~PRESENTATION FOR~PROCESSING"),
    "PatientPosition": words("HFS HFP FFS FFP HFDR HFDL FFDR FFDL SITTING"),
    "PatientOrientation": _orientation,
    "BodyPartExamined": _technical("BodyPartExamined"),
    "ViewPosition": _technical("ViewPosition"),
    "Laterality": _technical("Laterality"),
    "ImageLaterality": _technical("ImageLaterality"),
    "BurnedInAnnotation": _YES_NO,
    "SpecimenLabelInImage": _YES_NO,
    "ExtendedDepthOfField": _YES_NO,
    "SyntheticData": _YES_NO,
    "FocusMethod": words("AUTO MANUAL"),
    "VolumetricProperties": words("VOLUME SAMPLED DISTORTED MIXED"),
    "VolumeBasedCalculationTechnique": words("NONE MAX_IP MIN_IP VOLUME_RENDER SURFACE_RENDER MPR CURVED_MPR"),
    "DimensionOrganizationType": words("3D 3D_TEMPORAL TILED_FULL TILED_SPARSE"),
    "WaveformOriginality": words("ORIGINAL DERIVED"),
    "WaveformSampleInterpretation": words("SB UB MB AB SS US SL UL"),
    "ChannelLabel": _lead,
}

DECISIVE = (
    _EXACT
    | _FLOAT_PADDING
    | _names("""PixelPaddingValue PixelPaddingRangeLimit VOILUTFunction PresentationLUTShape
    PhotometricInterpretation WaveformSampleInterpretation""")
)

MAPPED = frozenset({
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "DimensionOrganizationUID",
    "PyramidUID", "ConcatenationUID", "SOPInstanceUIDOfConcatenationSource",
})  # fmt: skip

SEQUENCES = _names("""ModalityLUTSequence VOILUTSequence SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence PlaneOrientationSequence
    PixelValueTransformationSequence FrameVOILUTSequence FrameContentSequence PlanePositionSlideSequence
    CardiacSynchronizationSequence RespiratorySynchronizationSequence CTImageFrameTypeSequence
    CTReconstructionSequence CTXRayDetailsSequence DimensionIndexSequence
    OpticalPathSequence OpticalPathIdentificationSequence TotalPixelMatrixOriginSequence DimensionOrganizationSequence
    WaveformSequence ChannelDefinitionSequence""")

_KERNEL = r"[BHIJTUDQ][rvfplsn]?\d{2}[fhstm]?|FC\d{2}|\d|STANDARD|STND|SOFT|LUNG|BONE|CHEST|DETAIL|EDGE|ULTRA|[BLC]"
NAMED = {  # words that tell frames and slices apart, replaced by others unless they are of this form
    "ConvolutionKernel": re.compile(_KERNEL),
    "StackID": re.compile(r"\d{1,3}"),
    "OpticalPathIdentifier": re.compile(r"\d{1,3}"),
}
TIMES = frozenset({"AcquisitionTime", "ContentTime", "AcquisitionDateTime", "FrameAcquisitionDateTime"})  # of CT slices

CODES = frozenset({"ChannelSourceSequence", "ChannelSensitivityUnitsSequence", "AnatomicRegionSequence"})

BULK = {  # keyword -> most bytes; None: as many as pixels or samples need
    "PixelData": None, "FloatPixelData": None, "DoubleFloatPixelData": None, "WaveformData": None,
    "LUTData": 1 << 17, "RedPaletteColorLookupTableData": 1 << 17, "GreenPaletteColorLookupTableData": 1 << 17,
    "BluePaletteColorLookupTableData": 1 << 17, "WaveformPaddingValue": 4, "ChannelMinimumValue": 4,
    "ChannelMaximumValue": 4,
}  # fmt: skip

NO_DAY = "19000101"  # where a class demands a day and none is kept
_RADIOGRAPH = ("BodyPartExamined", "ViewPosition", "PatientOrientation", "Laterality")
EMPTY = {  # entries that a class of objects demands, though they may be empty
    **{f"{_ROOT}{n}": _RADIOGRAPH for n in ("1", "1.1", "1.1.1")},
    f"{_ROOT}2": ("PositionReferenceIndicator", "AcquisitionNumber"),
    **{f"{_ROOT}9.1.{n}": ("AcquisitionContextSequence",) for n in (1, 2)},
}

WRITTEN = frozenset({  # entries that de-identification itself fills in
    "SOPClassUID", "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified", "CodeValue",
    "CodingSchemeDesignator", "CodeMeaning", "SeriesNumber", "Manufacturer", "ContentDate", "ContentTime",
    "AcquisitionDateTime", *NAMED, *TIMES, *(keyword for several in EMPTY.values() for keyword in several),
})  # fmt: skip

_LEAD_NUMBERS = {1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6", 61: "III", 62: "aVR",
                 63: "aVL", 64: "aVF", 65: "-aVR"}  # fmt: skip
_KNOWN_CODES = {
    ("UCUM", "uV"): "microvolt", ("UCUM", "mV"): "millivolt", ("UCUM", "V"): "volt", ("UCUM", "nV"): "nanovolt",
    ("SCT", "5665001"): "Retina", ("SCT", "81745001"): "Eye", ("SCT", "51185008"): "Chest", ("SCT", "39607008"): "Lung",
    ("SCT", "80891009"): "Heart", ("SCT", "71854001"): "Colon", ("SCT", "818983003"): "Abdomen",
    ("SCT", "69536005"): "Head", ("SCT", "39937001"): "Skin", ("SRT", "T-AA610"): "Retina", ("SRT", "T-AA000"): "Eye",
    ("SRT", "T-D3000"): "Chest", ("SRT", "T-28000"): "Lung",
}  # fmt: skip


def known_code(scheme: str, value: str, meaning: str) -> tuple[str, str, str] | None:
    """(value, scheme, meaning) of a code that is known, with our own words for it; None for others."""
    if (scheme, value) in _KNOWN_CODES:
        return value, scheme, _KNOWN_CODES[scheme, value]
    lead = re.fullmatch(r"(?:5\.6\.3-9-|2:)(\d{1,3})", value)
    if lead and scheme in ("MDC", "SCPECG"):
        name = _LEAD_NUMBERS.get(int(lead[1])) or next(iter(_lead([meaning]) or []), "other")
        return value, scheme, f"Lead {name}"
    named = _lead([value]) if value.startswith("MDC_ECG_LEAD_") else _lead([meaning])
    number = next((key for key, name in _LEAD_NUMBERS.items() if named and name == named[0]), None)
    return None if number is None or named is None else (f"2:{number}", "MDC", f"Lead {named[0]}")
