"""Files of the spool, checked before they are used; and whether the files of a series are complete.

* `inspect`: file -> `ObjectFacts`; `SpoolFileError` if it is damaged, external or not a regular file.
* `doubts`: why an item of some objects may be incomplete; empty if nothing is missing. `counted`: "2 objects".
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m3bind.core.files import sha256_file
from m3bind.errors import M3BindError
from m3bind.hospital.deidentify import METHOD
from m3bind.hospital.tags import STORAGE, WHOLE_SLIDE
from m3bind.modalities.formats.dicom_files import PIXELS, UNKNOWN_LENGTH, quiet

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

WIDE = 1.5  # times the usual distance of slices: a gap
_KEYWORDS = ("SOPClassUID", "PatientID", "StudyDate", "InstanceNumber", "ImagePositionPatient",
             "ImageOrientationPatient", "DeidentificationMethod", "PatientIdentityRemoved", *PIXELS)  # fmt: skip
_LAZY = 1024  # bytes of a value that is not read


class SpoolFileError(M3BindError):
    """A file of the spool that cannot be used; `reason` is without its name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ObjectFacts:
    """The header of an object in the spool."""

    path: Path
    digest: str  # SHA-256 of the file
    sop_class: str
    patient: str  # pseudonym
    day: str  # YYYYMMDD, "" if dates are left out
    number: int | None  # InstanceNumber
    position: tuple[float, ...]  # ImagePositionPatient, mm; () if missing
    orientation: tuple[float, ...]

    @property
    def modality(self) -> str:
        """That reads it, "" if only its pixels can tell."""
        return STORAGE[self.sop_class]


def inspect(path: Path) -> ObjectFacts:
    """Read the header of a file of the spool, and check that the file is complete.

    Raises:
        SpoolFileError: it cannot be opened or read, is cut short, or was not de-identified here.
    """
    if path.is_symlink() or not path.is_file():
        raise SpoolFileError("not a regular file")
    try:
        if not path.stat().st_size:
            raise SpoolFileError("an empty file")
        digest = sha256_file(path)
    except OSError as error:
        raise SpoolFileError(f"cannot be opened ({error.strerror})") from None
    try:
        with quiet():
            return _facts(path, digest)
    except (SpoolFileError, MemoryError):
        raise
    except Exception:  # pydicom raises anything for damaged files
        raise SpoolFileError("not a readable DICOM file: damaged, or of another format") from None


def _facts(path: Path, digest: str) -> ObjectFacts:
    import pydicom

    dataset = pydicom.dcmread(path, defer_size=_LAZY, specific_tags=list(_KEYWORDS))
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class not in STORAGE or str(dataset.get("DeidentificationMethod", "")) != METHOD:
        raise SpoolFileError("not a file that was de-identified here")
    for keyword in PIXELS:
        element = dataset.get_item(keyword, keep_deferred=True) if keyword in dataset else None
        length, start = getattr(element, "length", 0), getattr(element, "value_tell", 0)
        if element is not None and length != UNKNOWN_LENGTH and start + length > path.stat().st_size:
            raise SpoolFileError("cut short")
    number = dataset.get("InstanceNumber")
    return ObjectFacts(
        path,
        digest,
        sop_class,
        str(dataset.get("PatientID") or ""),
        str(dataset.get("StudyDate") or ""),
        None if number is None or number == "" else int(number),
        _floats(dataset, "ImagePositionPatient", 3),
        _floats(dataset, "ImageOrientationPatient", 6),
    )


def _floats(dataset: "Dataset", keyword: str, count: int) -> tuple[float, ...]:
    value = dataset.get(keyword)
    values = tuple(map(float, value)) if value is not None and not isinstance(value, str) else ()
    return values if len(values) == count else ()


def doubts(objects: Sequence[ObjectFacts], expected: int = 0) -> list[str]:
    """Why a series of these objects may be incomplete. `expected`: the archive's count, 0: unknown."""
    found = []
    if expected > len(objects):
        found.append(f"{counted(len(objects), 'object')} of {expected} that the archive counts")
    if len(objects) > 1 and objects[0].sop_class != WHOLE_SLIDE:  # whose label and overview are not accepted
        found += filter(None, (_numbers(objects), _positions(objects)))
    return found


def _numbers(objects: Sequence[ObjectFacts]) -> str:
    """Missing instance numbers; a numbering with a constant step has no gaps."""
    numbers = sorted({facts.number for facts in objects if facts.number is not None})
    if len(numbers) < 2:
        return ""
    steps = np.diff(numbers)
    usual = int(Counter(steps.tolist()).most_common(1)[0][0])
    missing = int(sum(step // usual - 1 for step in steps if step > usual))
    if missing:
        return f"{counted(missing, 'number')} missing between {numbers[0]} and {numbers[-1]}"
    return f"its numbers begin at {numbers[0]}" if numbers[0] > max(usual, 1) else ""


def _positions(objects: Sequence[ObjectFacts]) -> str:
    """Gaps between the slices of the largest stack."""
    stacks: dict[tuple[float, ...], list[tuple[float, ...]]] = defaultdict(list)
    for facts in objects:
        if facts.position and facts.orientation:
            stacks[tuple(round(value, 3) for value in facts.orientation)].append(facts.position)
    if not stacks:
        return ""
    orientation, positions = max(stacks.items(), key=lambda stack: len(stack[1]))
    normal = np.cross(orientation[:3], orientation[3:])
    places = np.unique(np.round(np.array(positions) @ normal, 2))
    steps = np.diff(places)
    if len(steps) < 2:
        return ""
    usual = float(np.median(steps))
    wide = steps[steps > WIDE * usual]
    if not len(wide):
        return ""
    size = f"{wide.min():g}" if np.ptp(wide) < 0.01 else f"{wide.min():g} to {wide.max():g}"
    return f"{counted(len(wide), 'gap')} of {size} mm between slices that are {usual:g} mm apart"


def counted(count: int, noun: str) -> str:
    """ "1 object", "2 objects"."""
    return f"{count} {noun}{'s' * (count != 1)}"
