"""Opening DICOM files within limits; import these functions from `dicom`.

* `is_dicom`, `open_dicom`: recognise and parse a file, rejecting deep nesting and endless compressed data.
* `kind_of`, `named`: the content of a file ("CT slice", "radiograph"), from its SOP class.
* `technical_tags`: the allow-list of `m3bind.privacy` as texts. * `quiet`, `silence`: without pydicom's messages.
"""

import io
import logging
import struct
import warnings as python_warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from m3bind.errors import ReadError, in_words
from m3bind.modalities.formats import limits
from m3bind.privacy import TECHNICAL_TAGS, technical

SUFFIXES = (".dcm", ".dicom", ".dic")
DAMAGED = "export it again"
HARM = "damaged, or malicious"
EXPLICIT = "1.2.840.10008.1.2.1"
_DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNCOMPRESSED = (IMPLICIT, EXPLICIT, BIG_ENDIAN)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
UNKNOWN_LENGTH = 0xFFFFFFFF  # ends at a delimiter
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # 4-byte lengths
_SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
          b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}  # fmt: skip
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_KINDS = {  # content of files by SOP class, without the common prefix; the longest match counts
    "1": "radiograph", "12.1": "radiograph", "12.2": "radiograph", "13.1": "radiograph",
    "2": "CT slice", "4": "MR slice", "128": "PET slice", "130": "PET slice", "20": "nuclear medicine image",
    "3.1": "ultrasound image", "6.1": "ultrasound image", "6.2": "ultrasound image",
    "77.1": "visible-light image", "77.1.5": "fundus photograph",
    "77.1.5.4": "OCT image", "77.1.5.7": "OCT image", "77.1.5.8": "OCT image",
    "77.1.2": "microscope image", "77.1.3": "microscope image",
    "77.1.6": "whole slide", "481": "radiotherapy object", "66": "segmentation or registration", "88": "report",
    "9": "waveform", "104": "encapsulated document", "11": "presentation state",
}  # fmt: skip
_MODALITIES = {  # for secondary captures, which state only their modality
    "CR": "radiograph", "DX": "radiograph", "MG": "radiograph", "RF": "radiograph", "XA": "radiograph",
    "IO": "radiograph", "PX": "radiograph", "CT": "CT slice", "MR": "MR slice", "PT": "PET slice",
    "NM": "nuclear medicine image", "US": "ultrasound image", "OP": "fundus photograph",
    "OPT": "OCT image", "SM": "whole slide", "ECG": "waveform",
}  # fmt: skip


def is_dicom(path: Path) -> bool:
    """Whether a file has a DICOM preamble or, without one, begins like a data set. Never blocks on a pipe."""
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        head = handle.read(132)
    return head[128:] == b"DICM" or _begins_like_a_data_set(head)


def _begins_like_a_data_set(head: bytes) -> bool:
    """Whether the first element is of group 2 or 8, in either byte order, with a known VR or a short length."""
    if len(head) < 16:
        return False
    little = head[0] in (2, 8) and head[1] == head[3] == 0
    big = head[1] in (2, 8) and head[0] == head[2] == 0
    if head[4:6] in _LONG | _SHORT:
        return little or big
    return little and struct.unpack("<I", head[4:8])[0] <= 64


def open_dicom(path: Path, stop_before_pixels: bool = False) -> Any:
    """The pydicom dataset of a file, with its transfer syntax in `file_meta` even if the file has none.

    Files without a preamble are accepted if they have a SOP class or pixels. A deflated data set is inflated within
    limits, and its `file_meta` then states the result: explicit VR, little endian.

    Raises:
        ReadError: not DICOM, damaged, nested deeper than `LIMITS.depth`, too large, or inflating endlessly.
    """
    import pydicom

    if not path.is_file():
        raise ReadError(path, "not a regular file", "name a file")
    limits.check_bytes(path)
    try:
        with quiet(), open(path, "rb") as handle:
            head = handle.read(132)
            if head[128:] != b"DICM" and not _begins_like_a_data_set(head):
                raise ReadError(path, "not a DICOM file", "check what it is")
            meta = pydicom.filereader.read_file_meta_info(path) if head[128:] == b"DICM" else None
            source: BinaryIO = handle
            syntax = "" if meta is None else str(meta.get("TransferSyntaxUID", ""))
            if meta is not None and syntax == _DEFLATED:
                source, syntax = _inflated(path, handle, 144 + int(meta.FileMetaInformationGroupLength)), EXPLICIT
            _check_depth(path, source, syntax)
            source.seek(0)
            dataset = pydicom.dcmread(source, stop_before_pixels=stop_before_pixels, force=True)
        if meta is not None and source is not handle:
            dataset.file_meta = meta
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(EXPLICIT)
        _complete_meta(dataset)
        _known_representations(dataset)
        if "SOPClassUID" not in dataset and not any(name in dataset for name in PIXELS) and meta is None:
            raise ReadError(path, "no DICOM preamble, SOP class or pixels", "check what it is")
        return dataset
    except (MemoryError, ReadError):
        raise
    except RecursionError:
        raise ReadError(path, "its sequences are nested too deeply", HARM) from None
    except Exception as error:  # pydicom raises many types for damaged files
        raise ReadError(path, f"not a readable DICOM file ({in_words(error)})", DAMAGED) from error


_silent = False


def silence() -> None:
    """Silence pydicom for the rest of this process, which only reads; `quiet` then does nothing."""
    global _silent
    _silent = True
    logging.getLogger("pydicom").disabled = True  # importing pydicom resets its level
    python_warnings.simplefilter("ignore")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress pydicom's warnings, which quote values of the header."""
    if _silent:
        yield
        return
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _complete_meta(dataset: Any) -> None:
    """Record the byte order detected by pydicom as the transfer syntax if the file states none."""
    import pydicom

    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        uid = IMPLICIT if implicit else EXPLICIT if little else BIG_ENDIAN
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(uid)


def _known_representations(dataset: Any) -> None:
    """Replace invalid value representations ("QQ"), for which pydicom raises, by the standard's, or bytes."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR
    from pydicom.dataelem import RawDataElement
    from pydicom.valuerep import VR

    known = set(map(str, VR))
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.VR is not None and raw.VR not in known:
            dataset[tag] = raw._replace(VR=dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")


def _inflated(path: Path, handle: BinaryIO, start: int) -> BinaryIO:
    """The deflated data set that begins at byte `start`, inflated incrementally.

    Raises:
        ReadError: beyond 16 MB, more than 200 bytes per stored byte (images reach 20, zeros 1,000), or more than a
            quarter of `LIMITS.memory` in all.
    """
    handle.seek(start)
    engine, used, out = zlib.decompressobj(-zlib.MAX_WBITS), 0, io.BytesIO()
    while not engine.eof:
        chunk = engine.unconsumed_tail or handle.read(1 << 16)
        piece = engine.decompress(chunk, 1 << 22)
        if not chunk and not piece and not engine.eof:
            raise ReadError(path, "its deflated content is cut short", "fetch or export it again")
        out.write(piece)
        used += len(chunk) - len(engine.unconsumed_tail)
        size = out.tell()
        if size > limits.SMALL and size > 200 * used:
            raise ReadError(path, f"inflates to more than {size:,} bytes from {used:,}", HARM)
        if size > (maximum := limits.LIMITS.memory // 4):
            raise ReadError(path, f"inflates to more than {maximum:,} bytes", "save it without deflation")
    return out


@dataclass
class _Open:
    """An enclosing data set, sequence or item during a walk over element headers."""

    end: int | None  # None: at its delimiter
    explicit: bool | None  # whether VRs are stored; None: not yet known
    sequence: bool = False


def _check_depth(path: Path, source: BinaryIO, syntax: str) -> None:
    """Raise ReadError if sequences are nested deeper than `LIMITS.depth`, without parsing any value.

    A walk over the element headers; it ends at an invalid one, which pydicom then reports.
    """
    source.seek(0)
    position = 132 if source.read(132)[128:] == b"DICM" else 0
    source.seek(0, 2)
    size = source.tell()
    order = ">" if syntax == BIG_ENDIAN else "<"
    inside = [_Open(size, syntax != IMPLICIT if syntax else None)]
    window, begin = b"", 0  # a part of the file, and its offset

    def peek(place: int, count: int) -> bytes:
        nonlocal window, begin
        if not begin <= place <= begin + len(window) - count:
            source.seek(place)
            window, begin = source.read(1 << 14), place
        return window[place - begin : place - begin + count]

    while position + 8 <= size:
        while inside and inside[-1].end is not None and position >= inside[-1].end:
            inside.pop()
        if not inside:
            return
        here = inside[-1]
        header = peek(position, 16)
        meta = header[:2] == b"\x02\0" and len(inside) == 1
        group, element, length = struct.unpack(("<" if meta else order) + "HHI", header[:8])
        if group == 0xFFFE:
            position += 8
            if element == 0xE000:
                inside.append(_Open(None if length == UNKNOWN_LENGTH else position + length, here.explicit))
            elif element in (0xE00D, 0xE0DD) and len(inside) > 1:
                inside.pop()
            continue
        code = header[4:6]
        explicit = code in _LONG | _SHORT if meta or here.explicit is None else here.explicit
        if here.explicit is None and not meta:
            here.explicit = explicit
            order = ">" if explicit and group >= 0x0400 and header[0] == 0 else order
        start, length = _value(header, length, explicit, "<" if meta else order, position)
        if start == 0 or (group == 0x7FE0 and element == 0x0010 and len(inside) == 1):
            return
        unbounded = length == UNKNOWN_LENGTH
        item = struct.pack(order + "HH", 0xFFFE, 0xE000)
        if code == b"SQ" if explicit and code != b"UN" else unbounded or peek(start, 4) == item:
            end = None if unbounded else start + length
            inside.append(_Open(end, explicit and code != b"UN", sequence=True))
            if sum(level.sequence for level in inside) > limits.LIMITS.depth:
                raise ReadError(path, f"its sequences are nested more than {limits.LIMITS.depth} deep", HARM)
            position = start
        elif unbounded:
            return
        else:
            position = start + length


def _value(header: bytes, length: int, explicit: bool, order: str, position: int) -> tuple[int, int]:
    """Start and length of the value of the element at `position`; (0, 0) if its VR is invalid."""
    if not explicit:
        return position + 8, length
    code = header[4:6]
    if code in _LONG and len(header) >= 12:
        return position + 12, struct.unpack(order + "I", header[8:12])[0]
    if code in _SHORT:
        return position + 8, struct.unpack(order + "H", header[6:8])[0]
    return 0, 0


def kind_of(dataset: Any) -> str:
    """The content of a file by its SOP class ("radiograph", "CT slice", "fundus photograph", "report"), "" if unknown.

    Secondary captures are classified by their modality code.
    """
    uid = str(dataset.get("SOPClassUID", ""))
    if not uid.startswith(_STORAGE) or uid.removeprefix(_STORAGE).split(".")[0] == "7":
        return _MODALITIES.get(str(dataset.get("Modality", "")), "")
    parts = uid.removeprefix(_STORAGE).split(".")
    return next((k for n in range(len(parts), 0, -1) if (k := _KINDS.get(".".join(parts[:n])))), "")


def named(kind: str) -> str:
    """`kind` with its article."""
    return f"{'an' if kind[:1] in 'aeiouMO' else 'a'} {kind}"


def technical_tags(dataset: Any) -> dict[str, str]:
    """The allowed entries of a header, as texts."""
    found: dict[str, str | None] = {}
    meta = getattr(dataset, "file_meta", None) or {}
    with quiet():
        for keyword in TECHNICAL_TAGS:
            try:
                value = dataset.get(keyword)
                found[keyword] = technical(keyword, meta.get(keyword) if value is None else value)
            except Exception:  # an entry that cannot be converted
                continue
    return {keyword: value for keyword, value in found.items() if value is not None}
