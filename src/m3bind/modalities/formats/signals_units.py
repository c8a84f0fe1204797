"""Units of voltage and numbers in headers of all formats.

* `to_millivolt`: "uV", "µV", "Microvolts", "10*-6.V", "MDC_DIM_MICRO_VOLT" -> .001; None for other units.
* `unit_of_code`: a coded unit (DICOM) in any scheme, version or spelling.
* `split_unit`: "lead_II_mV", "I (uV)" -> name and unit.
* `number`: a number of a text header, with a decimal comma if that is unambiguous.
* `unit_text`: a unit as messages may quote it.
"""

import math
import re
import unicodedata

SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3,
           "us": 1e-6, "µs": 1e-6, "μs": 1e-6}  # fmt: skip
AMBIGUOUS = ("MV", "Mv")  # megavolt as written, millivolt as meant: a heart cannot produce a megavolt

# The micro sign and the Greek letter, also with their bytes decoded in another encoding.
_MICRO = re.compile("[µμ]|Âµ|Î¼|Â[µμ]|¦Ì|\x83Ê|[ìæ](?=[vV])")
_PREFIXES = {"n": 1e-6, "nano": 1e-6, "u": 1e-3, "mc": 1e-3, "micro": 1e-3, "mikro": 1e-3, "m": 1.0, "milli": 1.0,
             "mili": 1.0, "": 1e3, "k": 1e6, "kilo": 1e6}  # fmt: skip
_PREFIX = "nano|micro|mikro|milli|mili|kilo|mc|n|u|m|k"
_VOLT = re.compile(  # "vol": EDF cuts "microvolt" after 8 letters
    rf"(?:({_PREFIX})[\s_-]?)?(?:v|volt|volts|voltios?|volte|voltti)|({_PREFIX})[\s_-]?vol"
)
_WORDS = {"微伏": 1e-3, "毫伏": 1.0, "伏": 1e3, "伏特": 1e3, "マイクロボルト": 1e-3, "ミリボルト": 1.0, "ボルト": 1e3,
          "мкв": 1e-3, "мв": 1.0, "в": 1e3, "микровольт": 1e-3, "милливольт": 1.0, "вольт": 1e3,
          "mdc_dim_nano_volt": 1e-6, "mdc_dim_micro_volt": 1e-3, "mdc_dim_milli_volt": 1.0, "mdc_dim_volt": 1e3,
          "4276": 1e-6, "266420": 1e-6, "4275": 1e-3, "266419": 1e-3, "4274": 1.0, "266418": 1.0, "4256": 1e3,
          "266400": 1e3}  # fmt: skip
_TIMES = re.compile(  # "10 uV", "x2.5 uV", "10*-6.V"
    r"(?:[x*]\s*)?(10(?:\*\*|[*^])[-+]?[0-9]{1,3}|[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)\s*(?:[x*.]\s*)?(?=\S)"
)
_BRACKETS = re.compile(r"(.*?)\s*[(\[{]\s*([^)\]}]*?)\s*[)\]}]")
_SUFFIX = re.compile(r"(.+?)[\s_,;:/-]+([nuµμ]v|mv|mcv|(?:nano|micro|mikro|milli|mili)?[\s_-]?volts?)", re.IGNORECASE)


def to_millivolt(unit: str) -> float | None:
    """The factor from `unit` to mV; None: not a unit of voltage."""
    plain = _plain(unit)
    if plain in _WORDS:
        return _WORDS[plain]
    times = 1.0
    if (head := _TIMES.match(plain)) and not plain[head.end() :].isdecimal():
        times, plain = _power(head[1]), plain[head.end() :].strip()
    found = _VOLT.fullmatch(plain)
    if found is None:
        return _WORDS[plain] * times if plain in _WORDS and not plain.isdecimal() else None
    factor = times * _PREFIXES[found[1] or found[2] or ""]
    return factor if 0 < factor < math.inf else None


def _plain(unit: str) -> str:
    """`unit` in lower case, with "u" for micro, without brackets, annotations and surrounding blanks."""
    text = unicodedata.normalize("NFKC", _MICRO.sub("u", unit[:64])).replace("μ", "u").strip(" \0\t\r\n\"'")
    text = re.sub(r"\{[^}]*\}", "", text)
    text = re.sub(r"^[(\[]\s*(.*?)\s*[)\]]$", r"\1", text)
    text = re.sub(r"\s*/\s*(?:lsb|bit|adu|count|digit)s?$", "", text, flags=re.IGNORECASE)
    return re.sub(r"^mdc:|^(?:4|mdc):(?=\d)", "", text.strip(" .").lower())


def _power(text: str) -> float:
    power = re.fullmatch(r"10[*^]+([-+]?[0-9]+)", text)
    return 10.0 ** int(power[1]) if power else float(text)


def unit_of_code(value: str, meaning: str) -> tuple[str, str]:
    """(unit, doubt) of a coded unit by its code value, or by its meaning if the value is unknown.

    The scheme is ignored: files state UCUM, a version of it, SCPECG, a vendor's own, or none.
    """
    by_value, by_meaning = to_millivolt(value), to_millivolt(meaning)
    if by_meaning is None:
        return value, ""
    if by_value is None or value.strip() in AMBIGUOUS:
        return meaning, ""
    if by_value != by_meaning:
        return value, f"its unit has the code {unit_text(value)} and the meaning {unit_text(meaning)}; the code counts"
    return value, ""


def split_unit(cell: str) -> tuple[str, str]:
    """Name and unit of a column: "I (uV)", "I [µV]", "lead_II_mV", "V1/mV"; unit "" if it has none."""
    if parts := _BRACKETS.fullmatch(cell):
        return parts[1], parts[2]
    parts = _SUFFIX.fullmatch(cell)
    return (parts[1], parts[2]) if parts and to_millivolt(parts[2]) is not None else (cell, "")


def unit_text(unit: str) -> str:
    """`unit` as a message may quote it: a header field could contain anything, even a name."""
    text = unit.strip(" \0")
    if to_millivolt(text) is not None or re.fullmatch(r"[^\W\d_][^\W\d_/%²^*. ]{0,7}|[-/%²^*.\w]{1,5}", text):
        return f"'{text[:24]}'"
    return f"of {len(text)} letters that is unknown" if text else "''"


def number(text: str) -> float | None:
    """The finite number in a header field; None if it has none.

    A decimal comma is accepted if it cannot separate thousands: "-3276,8" and "0,125", not "1,000".
    """
    plain = text.strip(" \0")
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+(?:[eE][-+]?[0-9]+)?", plain):
        whole, _, rest = plain.lstrip("+-").partition(",")
        if re.fullmatch("[0-9]{3}", rest) and not re.fullmatch("0+", whole):
            return None
        plain = plain.replace(",", ".")
    if not re.fullmatch(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", plain):
        return None
    value = float(plain)
    return value if math.isfinite(value) else None
