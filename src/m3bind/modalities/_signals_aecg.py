"""HL7 annotated ECG (XML); a document type, and with it every entity, is refused."""

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from m3bind.errors import ReadError
from m3bind.modalities._recording import AGAIN, SECONDS, Recording, Signal, check_size, decoding

_VENDOR_XML = {"restingecgdata": "Philips XML", "RestingECG": "GE MUSE XML", "CardiologyXML": "GE CardioSoft XML"}


def read_aecg(path: Path) -> Recording:
    """The sequence set with the most leads of an HL7 aECG file: value = origin + digit x scale.

    Raises:
        ReadError: XML of another kind, with a document type declaration (it could define entities), or damaged.
    """
    check_size(path, 2)
    with decoding(path, "HL7 aECG file"):
        root = _parse_xml(path)
        if root.tag != "AnnotatedECG":
            kind = _VENDOR_XML.get(root.tag, "XML of another kind")
            raise ReadError(path, f"{kind}, not HL7 aECG", "export it as HL7 aECG or DICOM")
        sets = [
            signals
            for each in root.findall("component/series/component/sequenceSet")
            if (signals := _aecg_signals(path, each))
        ]
        if not sets:
            raise ReadError(path, "an HL7 aECG file without signals", AGAIN)
        best = max(range(len(sets)), key=lambda k: (len(sets[k]), sum(signal.values.size for signal in sets[k])))
    found = Recording(sets[best])
    if len(sets) > 1:
        found.steps.append(f"sequence set {best + 1} of {len(sets)} taken: {len(sets[best])} signals")
    return found


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root element, names without namespaces; a document type declaration is refused before any entity exists."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag.rpartition("}")[2], {key.rpartition("}")[2]: value for key, value in attributes.items()})

    def refuse(*_: object) -> NoReturn:
        raise ReadError(path, "XML with a document type declaration", "damaged, or made to harm")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition("}")[2])
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.buffer_text = True
    with open(path, "rb") as handle:
        parser.ParseFile(handle)
    return builder.close()


def _aecg_signals(path: Path, each: ElementTree.Element) -> list[Signal]:
    """The signals of one sequence set."""
    rate, found = 0.0, []
    for sequence in each.findall("component/sequence"):
        code, value = sequence.find("code"), sequence.find("value")
        name = "" if code is None else code.get("code", "")
        if value is None:
            continue
        if name.startswith("TIME_"):
            step = value.find("increment")
            if step is not None:
                rate = 1 / (float(step.get("value", "nan")) * SECONDS[step.get("unit", "")])
        elif (digits := value.find("digits")) is not None:
            scale, unit = _quantity(value.find("scale"))
            origin, origin_unit = _quantity(value.find("origin"))
            if origin and origin_unit != unit:
                raise ReadError(path, "a signal whose origin and scale are in different units", AGAIN)
            found.append(
                Signal(name, origin + scale * np.array((digits.text or "").split(), dtype=np.float64), unit, 0)
            )
    for signal in found:
        signal.rate = rate
    return found


def _quantity(element: ElementTree.Element | None) -> tuple[float, str]:
    return (0.0, "") if element is None else (float(element.get("value", "nan")), element.get("unit", ""))
