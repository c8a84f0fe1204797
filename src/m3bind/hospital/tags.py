"""The header entries that are retained, and their allowed values; everything else of an object is removed.

* `ALLOWED`: keyword -> rule. A rule maps the values of an entry to those that are retained, or None.
  `whole`, `number`, `words`: rules.
* `DECISIVE`: of these, entries that arrays are computed from: left unchanged, or the object is refused.
* `MAPPED`: UIDs that are replaced. `NAMED`: labels that are replaced unless they are plain. `TIMES`: of CT slices.
  `SEQUENCES`: entries whose items are cleaned in the same way. `BULK`: bytes, see `pixels`.
  `CODES`: sequences of codes, of which only known ones are retained (`known_code`, `unit_code`, `lead_code`).
* `WRITTEN`: entries that de-identification fills in, `EMPTY` among them.
* `STORAGE`: the accepted kinds of objects, and the modality that reads each.

Retained is what reading and display need: geometry, description of pixels and waveforms, kind, body part. No free
text: words come from the lists below, and numbers are bounded, and rounded to 9 digits unless arrays are computed from
them, so that a name or a record number in the wrong field is removed as well.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from m3bind.modalities.formats.dicom_values import unit_of
from m3bind.modalities.formats.files import DICOM_KINDS
from m3bind.modalities.formats.signals_leads import NUMBERS, name_of_code, parse_lead
from m3bind.modalities.formats.signals_units import AMBIGUOUS, to_millivolt, unit_of_code
from m3bind.privacy import technical

Rule = Callable[[Sequence[Any]], "list[Any] | None"]
DIGITS = 9  # of a retained number
_ROOT = "1.2.840.10008.5.1.4.1.1."
STORAGE = {  # SOP class -> modality; "" if only its pixels can tell
    f"{_ROOT}1": "xray", f"{_ROOT}1.1": "xray", f"{_ROOT}1.1.1": "xray",
    f"{_ROOT}2": "ct", f"{_ROOT}2.1": "ct", f"{_ROOT}2.2": "ct",
    f"{_ROOT}9.1.1": "ecg", f"{_ROOT}9.1.2": "ecg",
    f"{_ROOT}77.1.5.1": "retina", f"{_ROOT}77.1.5.2": "retina",
    f"{_ROOT}77.1.2": "pathology", f"{_ROOT}77.1.3": "pathology", f"{_ROOT}77.1.6": "pathology",
    f"{_ROOT}77.1.4": "",
}  # fmt: skip
WHOLE_SLIDE = f"{_ROOT}77.1.6"
SERIES = {f"{_ROOT}2", f"{_ROOT}2.1", f"{_ROOT}2.2", WHOLE_SLIDE}  # several objects form one item


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def whole(bound: int = 10**6) -> Rule:
    """Whole numbers below `bound` in absolute value."""

    def rule(values: Sequence[Any]) -> list[Any] | None:
        found = [int(value) for value in values]
        return found if found and all(abs(value) < bound for value in found) else None

    return rule


def number(rounded: bool = True) -> Rule:
    """Finite numbers below a million in absolute value, rounded to `DIGITS` digits, or unchanged."""

    def rule(values: Sequence[Any]) -> list[Any] | None:
        found = [float(f"{float(value):.{DIGITS}g}") if rounded else float(value) for value in values]
        fits = found and all(math.isfinite(value) and abs(value) < 1e6 for value in found)
        return [int(value) if value.is_integer() else value for value in found] if fits else None

    return rule


def words(text: str, other: str | None = None) -> Rule:
    """The words of a list separated by blanks ("~": a blank in a word); `other` in place of unlisted ones."""
    known = {word.replace("~", " ") for word in text.split()}

    def rule(values: Sequence[Any]) -> list[Any] | None:
        given = [str(value).strip().upper() for value in values]
        found = [value if value in known else other for value in given]
        return None if not found or None in found else found

    return rule


def _technical(keyword: str) -> Rule:
    """Values that `m3bind.privacy.technical` allows."""

    def rule(values: Sequence[Any]) -> list[Any] | None:
        found = [technical(keyword, value) for value in values]
        return None if len(found) != 1 or found[0] is None else found

    return rule


def _orientation(values: Sequence[Any]) -> list[Any] | None:
    found = [str(value).strip() for value in values]
    return found if found and all(re.fullmatch("[RLAPHF]{1,3}", value) for value in found) else None


def _float_padding(values: Sequence[Any]) -> list[Any] | None:
    """A number below a million, or the largest float, which is usual as padding."""
    value = abs(float(values[0]))
    bound = any(math.isclose(value, float(np.finfo(kind).max), rel_tol=1e-6) for kind in (np.float32, np.float64))
    return [float(values[0])] if bound or value < 1e6 else None


def _pointer(values: Sequence[Any]) -> list[Any] | None:
    """The tag of a known entry."""
    from pydicom.datadict import keyword_for_tag

    return [int(values[0])] if keyword_for_tag(int(values[0])) else None


def _unit(values: Sequence[Any]) -> list[Any] | None:
    """The unit of rescaled values; "OTHER" in place of an unknown one."""
    unit = unit_of(values[0]) if values else ""
    return [unit if unit in _UNITS.split() else "OTHER"] if unit else None


_OTHER_LEADS = frozenset({"V7", "V8", "V9", "V3R", "V4R", "V5R", "V6R"})


def _lead(values: Sequence[Any]) -> list[Any] | None:
    """The lead that the reader of ECGs finds in a label, in our own spelling."""
    lead, sign = parse_lead(str(values[0])) if values else ("", 1)
    if lead:
        return [lead if sign > 0 else f"-{lead}"]
    other = re.sub(r"^LEAD\s*", "", str(values[0]).strip().upper()) if values else ""
    return [other] if other in _OTHER_LEADS else None


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
_UNITS = "HU HU_MOD OD US MGML Z_EFF ED EDW PCT"

_IMAGE_TYPE = words(
    "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER VOLUME NONE RESAMPLED THUMBNAIL LABEL OVERVIEW COLOR"
    " MONOCHROME REFORMATTED MPR HELICAL AVERAGE MIN_IP MAX_IP CT_SOM5 CT_SOM7 SPI SINGLE~PLANE ANGIO CARDIAC"
    " CARDIAC_GATED CARDIAC_CTA DYNAMIC FLUOROSCOPY MULTI_ENERGY PERFUSION SEQ TOPOGRAM SUBTRACTION MAXIMUM MEAN"
    " MINIMUM MEDIAN STDDEV ENERGY_PROP_WT VMI MAT_SPECIFIC VIRTUAL_NON_CONTRAST ELECTRON_DENSITY EFF_ATOMIC_NUM"
    " CSA CSAPARALLEL MIP MINIP CALCIUM LUNG DIXON",
    other="OTHER",
)

ALLOWED: dict[str, Rule] = {
    **dict.fromkeys(_SIZES, whole()),
    **dict.fromkeys(_MEASURES, number()),
    **dict.fromkeys(_EXACT, number(rounded=False)),
    **dict.fromkeys(_FLOAT_PADDING, _float_padding),
    **dict.fromkeys(("InstanceNumber", "AcquisitionNumber", "ExposureTime", "XRayTubeCurrent"), whole(10**5)),
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
    "RescaleType": _unit,
    "ModalityLUTType": words(_UNITS),
    "VOILUTFunction": words("LINEAR LINEAR_EXACT SIGMOID", other="OTHER"),
    "PresentationLUTShape": words("IDENTITY INVERSE"),
    "PresentationIntentType": words("FOR~PRESENTATION FOR~PROCESSING"),
    "PatientPosition": words("HFS HFP FFS FFP HFDR HFDL FFDR FFDL SITTING"),
    "PatientOrientation": _orientation,
    **{name: _technical(name) for name in ("BodyPartExamined", "ViewPosition", "Laterality", "ImageLaterality")},
    **dict.fromkeys(
        ("BurnedInAnnotation", "SpecimenLabelInImage", "ExtendedDepthOfField", "SyntheticData"), words("YES NO")
    ),
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
NAMED = {  # words that distinguish frames and slices, replaced unless they have this form
    "ConvolutionKernel": re.compile(_KERNEL),
    "StackID": re.compile(r"\d{1,3}"),
    "OpticalPathIdentifier": re.compile(r"\d{1,3}"),
}
TIMES = frozenset({"AcquisitionTime", "ContentTime", "AcquisitionDateTime", "FrameAcquisitionDateTime"})  # of CT slices

CODES = frozenset({"ChannelSourceSequence", "ChannelSensitivityUnitsSequence", "AnatomicRegionSequence"})

BULK = {  # keyword -> maximum of bytes; None: as many as pixels or samples need
    "PixelData": None, "FloatPixelData": None, "DoubleFloatPixelData": None, "WaveformData": None,
    "LUTData": 1 << 17, "RedPaletteColorLookupTableData": 1 << 17, "GreenPaletteColorLookupTableData": 1 << 17,
    "BluePaletteColorLookupTableData": 1 << 17, "WaveformPaddingValue": 4, "ChannelMinimumValue": 4,
    "ChannelMaximumValue": 4, "ICCProfile": 4 << 20,
}  # fmt: skip

NO_DAY = "19000101"  # if a class requires a day and dates are left out
_RADIOGRAPH = ("BodyPartExamined", "ViewPosition", "PatientOrientation", "Laterality")
EMPTY = {  # entries that a class of objects requires, though they may be empty
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

_KNOWN_CODES = {
    ("SCT", "5665001"): "Retina", ("SCT", "81745001"): "Eye", ("SCT", "51185008"): "Chest", ("SCT", "39607008"): "Lung",
    ("SCT", "80891009"): "Heart", ("SCT", "71854001"): "Colon", ("SCT", "818983003"): "Abdomen",
    ("SCT", "69536005"): "Head", ("SCT", "39937001"): "Skin", ("SRT", "T-AA610"): "Retina", ("SRT", "T-AA000"): "Eye",
    ("SRT", "T-D3000"): "Chest", ("SRT", "T-28000"): "Lung",
}  # fmt: skip


_UNIT_WORDS = {1e-6: ("nV", "nanovolt"), 1e-3: ("uV", "microvolt"), 1.0: ("mV", "millivolt"), 1e3: ("V", "volt")}
Code = tuple[str, str, str]  # value, scheme, meaning


def known_code(scheme: str, value: str, meaning: str) -> Code | None:
    """A known code with its own meaning; None for others."""
    return (value, scheme, _KNOWN_CODES[scheme, value]) if (scheme, value) in _KNOWN_CODES else None


def unit_code(scheme: str, value: str, meaning: str) -> Code | None:
    """A coded unit as the reader of ECGs parses it: of voltage, or one that it refuses; None if missing.

    If value and meaning contradict each other, the result does so as well.
    """
    unit, doubt = unit_of_code(value, meaning)
    if not unit.strip():
        return None
    factor = to_millivolt(unit)
    if factor is None:
        return "other", "99M3BIND", "other"
    if unit.strip() in AMBIGUOUS:  # readers warn of it
        return unit.strip(), "99M3BIND", unit.strip()
    code, word = _UNIT_WORDS.get(factor, (f"{factor:.9g} mV", ""))
    if doubt:
        word = _UNIT_WORDS.get(to_millivolt(meaning) or 0.0, ("", word))[1]
    return code, "UCUM", word or code


def lead_code(scheme: str, value: str, meaning: str) -> Code:
    """The source of a channel as the reader of ECGs names it; a source that is not a lead gets the code "other"."""
    name = name_of_code(value, scheme, meaning)
    number = next((key for key, lead in NUMBERS.items() if lead == name), None)
    if number is None and (known := re.fullmatch(r"lead number (\d{1,3})", name)):
        return f"2:{known[1]}", "MDC", "Lead other"
    words = next(iter(_lead([name]) or []), "other")
    return ("other", "99M3BIND", f"Lead {words}") if number is None else (f"2:{number}", "MDC", f"Lead {words}")
