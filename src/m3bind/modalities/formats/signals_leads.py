"""Names and codes of ECG leads in all formats, mapped to standard leads.

* `parse_lead`: a signal's name -> standard lead and its sign. * `name_of_code`: the name of a coded channel (DICOM).
* `differing`: channels whose code and texts mean different leads.
"""

import re
import unicodedata
from collections.abc import Iterable

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# Numbers of SCP-ECG (5.6.3-9-n) and of ISO/IEEE 11073 (2:n, 131072 + n); "-aVR" is 65.
NUMBERS = {1: "I", 2: "II", 3: "V1", 4: "V2", 5: "V3", 6: "V4", 7: "V5", 8: "V6",
           61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 65: "-aVR"}  # fmt: skip
_PARTITION = 131072  # of ISO/IEEE 11073: 2 << 16
_POTENTIAL = 256  # from MDC_ECG_LEAD_I to MDC_ECG_ELEC_POTL_I
_NAMES = {lead.lower(): lead for lead in LEADS} | {"di": "I", "dii": "II", "diii": "III", "d1": "I", "d2": "II",
                                                   "d3": "III"}  # fmt: skip
_WORDS = (r"mdc_ecg_lead|mdc_ecg_elec_potl|ecg|ekg|lead|ableitung|d[eé]rivation|derivaci[oó]n|deriva[cç][aã]o|"
          r"derivazione|odprowadzenie|отведение|导联|導聯|誘導|第")  # fmt: skip
_PREFIX = re.compile(rf"(?:{_WORDS})(?:\s+-\s+|[\s_:.]+|-)?")


def parse_lead(name: str) -> tuple[str, int]:
    """The standard lead of a signal's name, and -1 for an inverted lead, else 1; ("", 1) for other names.

    "AVR", "lead avr", "ECG aVR-ref", "MDC_ECG_LEAD_AVR", "Lead aVR (Goldberger)", "Ableitung aVR" -> aVR;
    "-aVR", "aVRneg" -> inverted; "DI", "D1" -> I; numbers of ISO/IEEE 11073 ("2:1", "131073") -> I. "V", "MLII",
    "V3R" and "C3" (also an EEG electrode) are not standard leads.
    """
    plain = unicodedata.normalize("NFKC", name[:80]).strip(" \0\t\r\n\"'").lower()
    if plain.startswith(("2:", "5.6.3-9-", "131")) and (number := _number(plain)) is not None:
        plain = NUMBERS.get(number, "").lower()
    plain = re.sub(r"\s*\(.*\)\s*$", "", plain)
    for _ in range(3):  # "ECG Lead I"
        plain = _PREFIX.sub("", plain, count=1) if _PREFIX.match(plain) else plain
    plain = re.sub(r"[\s_-]+ref$|\s*(?:导联|導聯|誘導)$", "", plain)
    positive = re.sub(r"^(?:[-\u2212\u2013]|minus\s|inverted\s)\s*|neg$|\s*inverted$", "", plain)
    lead = _NAMES.get(positive.strip(" _-.:"), "")
    return lead, -1 if lead and positive != plain else 1


def _number(code: str) -> int | None:
    """The number of a lead from its code, 0 (not specified) included; None for codes of another form."""
    match = re.fullmatch(r"(?:5\.6\.3-9-|2:)(\d{1,3})", code)
    if match:
        number = int(match[1])
    elif re.fullmatch(r"131\d{3}", code):
        number = int(code) - _PARTITION
    else:
        return None
    if number < 0:
        return None
    return number - _POTENTIAL if _POTENTIAL < number <= _POTENTIAL + max(NUMBERS) else number


def _number_of_code(value: str, scheme: str) -> int:
    """The lead number of a code; 0 for codes of another form, and for unspecified leads."""
    code = value.strip().lower()
    number = _number(code)
    if number is None and re.fullmatch("[0-9]{1,3}", code) and scheme.strip().upper() in ("MDC", "SCPECG"):
        number = int(code)
    return number if number is not None and number < 200 else 0


def name_of_code(value: str, scheme: str, meaning: str, label: str = "") -> str:
    """The name of a coded channel: a standard lead ("V1", "-aVR") if code, meaning or label state one.

    The code counts in any scheme; if it is unknown or unspecified, its meaning, then the channel's label. The code of
    another lead (V7, V3R) takes precedence over any label.
    """
    if number := _number_of_code(value, scheme):
        return NUMBERS.get(number, f"lead number {number}")
    for name in (value, meaning, label):
        lead, sign = parse_lead(name)
        if lead:
            return lead if sign > 0 else f"-{lead}"
    return next((name.strip() for name in (meaning, label, value) if name.strip()), "")


def differing(channels: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """A warning if code, meaning and label of channels (value, scheme, meaning, label) name different leads."""
    pairs = []
    for value, scheme, meaning, label in channels:
        texts = (name_of_code(value, scheme, ""), meaning, label)
        leads = [f"-{lead}" if sign < 0 else lead for lead, sign in map(parse_lead, texts) if lead]
        if len(set(leads)) > 1:
            pairs.append(" or ".join(dict.fromkeys(leads)))
    return [f"leads whose code and name differ: {', '.join(pairs[:12])}; the first of each is taken"] if pairs else []
