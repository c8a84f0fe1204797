"""Texts: cleaning of reports, captions and shared concepts from labels, lengths, the text corpus.

* `clean_text`, `is_informative`, `unique_texts`: preprocessing of every text.
* `describe`: captions and concepts of one manifest row, by templates stored as data in `templates/*.yaml`; `described`,
  `label_texts`, `informative_text` are its parts (`descriptions.py` describes many rows).
* `concept_phrases`: synonyms of a shared concept.
* `length_report`: word counts and their percentiles.
* `load_extra_texts`: texts without images (`text/corpus.csv.gz`).

A template file is named after a data set, or after a modality for sets without one; `generic.yaml` applies to the rest:
    texts_from:     columns whose values become sentences: label, labels
    concepts_from:  columns whose values give concepts: label, labels
    canonical:      "caption" or "labels": the first text, which is used in evaluation;
                    "caption_only": labels become sentences only if the caption is missing
    ignore:         patterns of values that are not findings ("texture:*")
    labels:         value -> {phrases: [...], concepts: [...], alone: [whole sentences if it is the only finding]};
                    sentences list findings in the order of this table
    sentences:      patterns with {findings}, {Findings} (capitalised), {title} (of the modality)
    label_sentence: an additional pattern, filled from `label` only, if sentences use `labels`
    same_as:        use the template of that name instead
    caption_pattern, caption_sentences:  a regular expression on the caption (at most 500 characters); its groups (and
                    {caption}) fill sentences; see `template_checks` for its limits
    caption_concepts:  part of the caption -> concepts
"""

import fnmatch
import functools
import html
import operator
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from m3bind.core.stored import StoredFileError, checked, read_yaml
from m3bind.data.tables import read_rows
from m3bind.data.template_checks import check_pattern, check_sentences
from m3bind.errors import ConfigError
from m3bind.modalities.base import get, names

TEMPLATES = Path(__file__).with_name("templates")
MAX_CAPTIONS = 8
MAX_TEXT = 1 << 20  # characters of a caption or report
_MATCHED = 500  # maximum length of a caption that is compared with a template's pattern
ALIASES = {"cxr": "xray", "histo": "pathology", "histology": "pathology", "fundus": "retina", "ekg": "ecg"}

_PLACEHOLDER = re.compile(
    r"\b\w*X{4,}\w*|\bX{3}\b|\[\*\*.{0,300}?\*\*\]|_{3,}|<unk>|\[(?:name|date|time|hospital|doctor|redacted)\]", re.I
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PTB_SUFFIX = re.compile(
    r"(?:\b\d+[.,]\d+\s+)?\bunbest.tigt(?:er bericht\b|e?r?(?: b\w*)?$)|\b\d+[.,]\d+\s+unbest\w*$", re.I
)
_EDITOR = re.compile(r"\bEdit:.*$", re.S)
# What the rules of `_clean_once` look for in texts without control characters, but for repeated words (RE2)
_TOUCHED = (
    r"[\x00-\x1f\x7f&#\[<\\ÄÖÜÅÉ\x{017f}]|(?i:xxx|unbe|edit:)|___|\( ?\)|\. ?\.| [ ,.;:!?)]|[,;:][,;:.]|^[ ,;:]|[ ,;:]$"
)
_REPEATED = re.compile(r"(?<!\w)(\w{4,}) \1\b")
_APART = {code: " " for code in range(128) if not re.match(r"\w", chr(code))}
_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP = frozenset(("and", "the", "for", "with", "are", "was", "old", "year", "right", "left", "eye", "male", "female"))
_EMPTY = frozenset(
    ("trace only requested", "none", "nan", "n/a", "unknown", "not available", "no report", "see report")
)


# --- cleaning ---------------------------------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """A report or caption as plain text on one line; idempotent.

    Removes control characters, HTML entities, placeholders of de-identification (XXXX, [** **], ___; also sentences of
    mostly placeholders), "4.46 unbestaetigter bericht" and editors' notes of PTB-XL, repeated words and repeated
    phrases; repairs capital umlauts inside lower-case words and "#" written for "ü".
    """
    for _ in range(8):
        cleaned = _clean_once(text)
        if cleaned == text:
            break
        text = cleaned
    return text


def clean_texts(texts: Sequence[str]) -> list[str]:
    """`clean_text` of each; quick tests recognise most of those that it leaves alone."""
    touched = pc.match_substring_regex(pa.array(texts, pa.large_string()), _TOUCHED).to_pylist()
    return [text if not hit and _plain(text) else clean_text(text) for text, hit in zip(texts, touched, strict=True)]


def _plain(text: str) -> bool:
    """Whether `clean_text` leaves a text alone in which no `_TOUCHED` was found."""
    if text.isascii():
        words = text.translate(_APART).split()
        repeated = any(map(operator.eq, words, words[1:]))
    else:
        printable = text.isprintable() and unicodedata.is_normalized("NFC", text)
        repeated = not printable or _REPEATED.search(text) is not None
    return not repeated and _without_repeats(text) == text


def _clean_once(text: str) -> str:
    text = unicodedata.normalize("NFC", html.unescape(text)).replace('\\"', '"')
    if text.isascii():
        text = _CONTROL.sub(" ", text)
    else:
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Co", "Cs", "Zl", "Zp") else c for c in text)
    text = re.sub("[\u200b-\u200f\u2060\ufeff\u00ad]", "", text)
    text = _EDITOR.sub("", _PTB_SUFFIX.sub(" ", text))
    text = re.sub(r"\bx-XXXX\b", "x-ray", text, flags=re.I)
    if _PLACEHOLDER.search(text):
        text = " ".join(_without_placeholders(sentence) for sentence in re.split(r"(?<=[.!?])\s+", text))
    text = _umlauts(text)
    text = re.sub(r"\b([^\W\d_]{4,})(?: \1\b)+", r"\1", text)
    text = re.sub(r"\(\s*\)|\[\s*\]", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" (?=[,.;:!?)](?:\s|$))", "", text)
    text = re.sub(r"(?<![,;:])(?<![,;:] )([,;:])(?: ?[,;:])+(?= |$)", r"\1", text)
    text = re.sub(r"[,;:]\s*(?=\.(?:\s|$))", "", text)
    text = re.sub(r"(?<=[\w)])\.\s?\.(?=\s|$)", ".", text)
    return _without_repeats(text.strip(" ,;:"))


def _without_placeholders(sentence: str) -> str:
    """The sentence without its placeholders; empty if they were half of its words or more."""
    rest, count = _PLACEHOLDER.subn(" ", sentence)
    return "" if 2 * count >= len(sentence.split()) else rest


def _umlauts(text: str) -> str:
    """Lower capital umlauts next to lower-case letters; "#" before a letter becomes "ü"."""
    if re.search("[a-z]", text) and not re.search("[A-Z]", text):
        text = re.sub("[ÄÖÜÅÉ]", lambda hit: hit.group().lower(), text)
    else:
        text = re.sub("(?<=[a-zäöüå])[ÄÖÜÅÉ]", lambda hit: hit.group().lower(), text)
    return re.sub(r"(?<=[a-zäöü])#(?=[a-zäöü])|(?<=\s)#(?=bergang)", "ü", text)


def _without_repeats(text: str) -> str:
    """A short list of phrases ("drusen, drusen") without its repeated items."""
    if text.count(",") == 0 or len(text) > 200 or re.search(r"[.!?]\s", text):
        return text
    items = [item.strip() for item in text.split(",")]
    distinct = list(dict.fromkeys(items))
    return ", ".join(distinct) if len(distinct) < len(items) else text


def is_informative(text: str) -> bool:
    """Whether a cleaned text has content: a word of three letters that is no stop word, and no empty phrase."""
    plain = text.casefold().strip(" .")
    return plain not in _EMPTY and any(word[0] not in _STOP for word in _WORD.finditer(plain))


def text_key(text: str) -> str:
    """Equal for two texts that differ only in case and white space."""
    return " ".join(text.casefold().split())


def unique_texts(texts: Iterable[str]) -> list[str]:
    """The first of equal texts (by `text_key`), in order; empty ones are dropped."""
    first: dict[str, str] = {}
    for text in texts:
        if text.strip():
            first.setdefault(text_key(text), text)
    return list(first.values())


# --- templates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """One template file; see the module's docstring for the meaning of the fields."""

    texts_from: tuple[str, ...] = ("labels", "label")
    concepts_from: tuple[str, ...] = ("label", "labels")
    canonical: str = "caption"
    ignore: tuple[str, ...] = ()
    labels: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    label_sentence: str = ""
    same_as: str = ""
    caption_pattern: str = ""
    caption_sentences: tuple[str, ...] = ()
    caption_concepts: dict[str, list[str]] = field(default_factory=dict)


def _label_key(value: str) -> str:
    return text_key(value.replace("_", " "))


@functools.lru_cache(maxsize=64)
def load_template(file: Path) -> Template:
    """Read and check one template file; label names are matched without case and underscores.

    Raises:
        ConfigError: not a YAML mapping, or an unknown field.
    """
    try:
        content: Any = read_yaml(file)
        known = set(Template.__dataclass_fields__)
        if not isinstance(content, dict) or not set(content) <= known:
            extra = sorted(map(str, set(content) - known)) if isinstance(content, dict) else "not a mapping"
            raise ConfigError(f"{file}: not a template ({extra}); fields are {', '.join(sorted(known))}")
        if "same_as" in content:
            return _same_as(file, str(content["same_as"]))
        labels = checked(dict[Any, dict[str, list[str]] | None], content.get("labels") or {}, file)
        content["labels"] = {_label_key(str(key)): texts or {} for key, texts in labels.items()}
        template = checked(Template, content, file)
        check_pattern(template.caption_pattern)
        named = re.findall(r"\(\?P<(\w+)>", template.caption_pattern)
        for entry in template.labels.values():
            check_sentences(entry.get("alone", ()), ["title"])
        check_sentences([*template.sentences, template.label_sentence], ["findings", "Findings", "title"])
        check_sentences(template.caption_sentences, ["caption", "Caption", "label", "Label", "title", *named])
        return template
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the template ({error.strerror})") from error
    except StoredFileError as error:
        raise ConfigError(f"{error}; see data/templates/ for the format") from None
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; see data/templates/ for the format") from None


def _same_as(file: Path, name: str) -> Template:
    """The template beside `file` that its `same_as` names.

    Raises:
        ConfigError: it names itself, or another template with `same_as`.
    """
    other = file.with_name(f"{name}.yaml") if re.fullmatch(r"[\w-]+", name) else file
    if other == file or "same_as" in (read_yaml(other) or {}):
        raise ConfigError(f"{file}: same_as takes the name of a template beside it that is not the same as another")
    return load_template(other)


def find_template(set_name: str, modality: str, folder: Path | None = None) -> Template:
    """The template of a data set, of its modality, or the generic one; `folder` is searched first."""
    for name, place in product((set_name, modality, "generic"), (folder, TEMPLATES)):
        if place and re.fullmatch(r"[\w-]+", name) and (place / f"{name}.yaml").is_file():
            return load_template(place / f"{name}.yaml")
    raise ConfigError(f"no template in {TEMPLATES}; reinstall m3bind")


@functools.lru_cache(maxsize=65536)
def describe(
    set_name: str, modality: str, label: str, labels: tuple[str, ...], caption: str, folder: Path | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions (the canonical one first, at most 8) and concepts of one row; both may be empty.

    `label` may contain several values separated by "|". The result depends only on the arguments, so equal labels give
    equal texts.
    """
    return described(find_template(set_name, modality, folder), modality, label, labels, informative_text(caption))


def informative_text(text: str) -> str:
    """A cleaned text; "" if it has no content."""
    text = clean_text(text)
    return text if is_informative(text) else ""


def informative_texts(texts: Sequence[str]) -> list[str]:
    """`informative_text` of each."""
    return [text if is_informative(text) else "" for text in clean_texts(texts)]


def described(
    template: Template, modality: str, label: str, labels: tuple[str, ...], caption: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`describe` with a given template, of a caption that `informative_text` returned."""
    columns = {"label": tuple(label.split("|")), "labels": labels}
    concepts = _concepts(template, columns, caption)
    if template.canonical == "caption_only" and caption:
        return (caption,), concepts
    texts = label_texts(template, modality, label, labels)
    from_caption = [caption, *_caption_sentences(template, caption, label, modality)]
    ordered = [*texts, *from_caption] if template.canonical == "labels" else [*from_caption, *texts]
    return tuple(unique_texts(ordered)[:MAX_CAPTIONS]), concepts


def label_texts(template: Template, modality: str, label: str, labels: tuple[str, ...]) -> list[str]:
    """The sentences about the labels of a row."""
    columns = {"label": tuple(label.split("|")), "labels": labels}
    texts = _label_sentences(template, template.sentences, modality, _findings(template, columns, template.texts_from))
    if template.label_sentence:
        findings = _findings(template, columns, ["label"])
        texts += _label_sentences(template, (template.label_sentence,), modality, findings)[:1]
    return texts


def _findings(template: Template, columns: dict[str, tuple[str, ...]], use: Sequence[str]) -> list[str]:
    """Values of the first non-empty column in `use`, in the order of the template's table."""
    order = {key: place for place, key in enumerate(template.labels)}
    for column in use:
        values = [value.strip() for value in columns[column] if value.strip()]
        values = [v for v in values if not any(fnmatch.fnmatchcase(v, pattern) for pattern in template.ignore)]
        if values:
            return sorted(dict.fromkeys(values), key=lambda value: order.get(_label_key(value), len(order)))
    return []


def _label_sentences(template: Template, patterns: Sequence[str], modality: str, findings: list[str]) -> list[str]:
    """Sentences that state the findings: variant k uses the k-th pattern and the k-th phrase of each finding."""
    if not findings:
        return []
    entries = [template.labels.get(_label_key(value), {}) for value in findings]
    title = _title(modality)
    if len(findings) == 1 and entries[0].get("alone"):
        return [sentence.format(title=title) for sentence in entries[0]["alone"]]
    phrases = [entry.get("phrases") or [value.replace("_", " ")] for entry, value in zip(entries, findings)]
    count = max(len(patterns), *map(len, phrases)) if patterns else 0
    sentences = []
    for k in range(count):
        listed = join_phrases([options[k % len(options)] for options in phrases])
        pattern = patterns[k % len(patterns)]
        sentences.append(pattern.format(findings=listed, Findings=_capitalised(listed), title=title))
    return sentences


def _caption_sentences(template: Template, caption: str, label: str, modality: str) -> list[str]:
    """Sentences from a caption that matches the template's pattern."""
    pattern = template.caption_pattern
    fits = caption and (not pattern or len(caption) <= _MATCHED)
    match = re.fullmatch(pattern or ".*", caption, re.S) if fits else None
    if not match:
        return []
    plain = caption.rstrip(".")
    fields = {"caption": plain, "Caption": _capitalised(plain), "label": label, "Label": _capitalised(label)}
    fields |= {"title": _title(modality), **match.groupdict("")}
    return [sentence.format(**fields) for sentence in template.caption_sentences]


def _concepts(template: Template, columns: dict[str, tuple[str, ...]], caption: str) -> tuple[str, ...]:
    """Concepts of all values and of the caption; "abnormal" replaces "normal"."""
    concepts: dict[str, None] = {}
    for column in template.concepts_from:
        for value in columns[column]:
            concepts |= dict.fromkeys(template.labels.get(_label_key(value), {}).get("concepts", []))
    for part, names_of_part in template.caption_concepts.items():
        if part in caption.casefold():
            concepts |= dict.fromkeys(names_of_part)
    if "abnormal" in concepts:
        concepts.pop("normal", None)
    return tuple(concepts)


def join_phrases(phrases: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(modality: str) -> str:
    return get(modality).title if modality in names() else modality


@functools.lru_cache(maxsize=1)
def concept_table() -> dict[str, tuple[str, ...]]:
    """Every shared concept with its synonyms, the name itself first (`templates/concepts.yaml`)."""
    content = yaml.safe_load((TEMPLATES / "concepts.yaml").read_text(encoding="utf-8"))
    return {name: (name, *filter(name.__ne__, phrases)) for name, phrases in content.items()}


def concept_phrases(concept: str) -> tuple[str, ...]:
    """Synonyms of a concept, its name first; a concept outside the table has only its name."""
    return concept_table().get(concept, (concept,))


# --- lengths and corpus -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LengthReport:
    """Word counts of a list of texts. `percentiles` maps 10, 50, 90, 99 to words."""

    texts: int
    distinct: int
    mean: float
    longest: int
    percentiles: dict[int, int]

    def __str__(self) -> str:
        """One line of text."""
        points = ", ".join(f"p{p} {words}" for p, words in self.percentiles.items())
        words = f"words: mean {self.mean:.1f}, {points}, max {self.longest}"
        return f"{self.texts} texts ({self.distinct} distinct), {words}"


def length_report(texts: Sequence[str]) -> LengthReport:
    """Lengths of texts in words separated by white space (word pieces are about 1.3 to 2 times as many)."""
    words = np.array([len(text.split()) for text in texts] or [0])
    percentiles = {p: int(np.percentile(words, p, method="inverted_cdf")) for p in (10, 50, 90, 99)}
    distinct = len({text_key(text) for text in texts})
    return LengthReport(len(texts), distinct, float(words.mean()), int(words.max()), percentiles)


@dataclass(frozen=True)
class CorpusText:
    """A text without an image."""

    modality: str
    source: str
    licence: str
    text: str


def load_extra_texts(path: Path | str) -> list[CorpusText]:
    """Clean, informative, distinct texts of a CSV with the columns modality, source, licence, text (may be .gz).

    Modality names cxr and histo become xray and pathology. A text that occurs in two modalities is in both.

    Raises:
        ManifestError: the file is missing, unreadable, or has no column modality or text.
    """
    texts: dict[tuple[str, str], CorpusText] = {}
    for _, row in read_rows(Path(path), ("modality", "text")):
        text, modality = clean_text(row["text"][:MAX_TEXT]), row["modality"].casefold()
        modality = ALIASES.get(modality, modality)
        if is_informative(text):
            entry = CorpusText(modality, row.get("source", ""), row.get("licence", ""), text)
            texts.setdefault((modality, text_key(text)), entry)
    return list(texts.values())
