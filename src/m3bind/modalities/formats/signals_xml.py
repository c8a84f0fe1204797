"""XML of clinical devices -> its elements; in any encoding, and without entities.

The text is decoded here, not by expat, whose only multi-byte encoding is UTF: devices write GBK, Big5 and Shift_JIS,
and declare UTF-16 for UTF-8 text. Invalid bytes become U+FFFD, which affects names, but not numbers and codes,
which are ASCII.
"""

import codecs
import re
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from m3bind.errors import ReadError
from m3bind.modalities.formats.recording import AGAIN

_EARLY = frozenset(
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS, expat.errors.XML_ERROR_UNCLOSED_TOKEN, expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
)  # fmt: skip
_ALIASES = {"windows-31j": "cp932", "x-sjis": "cp932", "cp936": "gbk", "x-gbk": "gbk", "ms936": "gbk"}
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BARE = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9_.:-]{1,40})["']""")
_READ = "AnnotatedECG"  # the supported root element
_NUMBERED = [*(f"iso8859_{k}" for k in range(1, 17)), *(f"cp125{k}" for k in range(9))]
_KNOWN = f"""
    utf_8 utf_8_sig utf_16 utf_16_le utf_16_be ascii gbk gb2312 gb18030 big5 big5hkscs shift_jis cp932 euc_jp iso2022_jp
    euc_kr cp949 johab koi8_r koi8_u mac_roman cp437 cp850 cp852 cp866 cp874 tis_620 {" ".join(_NUMBERED)}
""".split()  # names of Python's codecs


def read_xml(path: Path) -> ElementTree.Element:
    """The root element, names without namespaces.

    Raises:
        ReadError: a document type declaration, which could define entities; an unknown encoding; not well-formed, or
            ending early.
    """
    text = _utf8(path, path.read_bytes())
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8", "}")

    declared: list[int] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if declared and tag.endswith(_READ):
            refuse()
        builder.start(tag.rpartition("}")[2], {key.rpartition("}")[2]: value for key, value in attributes.items()})

    def refuse(*_: object) -> NoReturn:
        raise ReadError(path, "XML with a document type declaration", "damaged, or malicious")

    def doctype(_name: str, _system: str | None, _public: str | None, inside: int) -> None:
        declared.append(inside)
        if inside:
            refuse()

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition("}")[2])
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = (
        doctype  # GE MUSE names a file only, which is accepted so that its kind is reported
    )
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        what = "it ends early: cut short" if error.code in _EARLY else f"damaged in line {error.lineno:,}"
        raise ReadError(path, f"not a readable HL7 aECG file: {what}", AGAIN) from None
    return builder.close()


def _utf8(path: Path, data: bytes) -> bytes:
    """The document in UTF-8."""
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), _BARE.get(data[:2], ""))
    if not encoding:
        declared = _DECLARED.match(data)
        encoding = declared[1].decode("ascii") if declared else "utf-8"
    try:
        name = codecs.lookup(_ALIASES.get(encoding.lower(), encoding)).name.replace("-", "_")
    except LookupError:
        name = ""
    if (
        name.startswith("utf_16") and data[:1] == b"<" and data[1:2] != b"\0"
    ):  # the declaration is in single-byte letters
        name = "utf_8"
    if name not in _KNOWN:
        raise ReadError(path, f"XML in the encoding {encoding}, which is not supported", "save it as UTF-8")
    return data.decode(name, "replace").removeprefix("\ufeff").encode("utf-8")
