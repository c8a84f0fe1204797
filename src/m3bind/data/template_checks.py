"""Validation of template files, which may be third-party.

* `check_pattern`: a regular expression without catastrophic backtracking. `check_sentences`: only known fields.
"""

import re
from collections.abc import Collection, Iterable
from string import Formatter


def check_pattern(pattern: str) -> None:
    """Check that an expression matches any text in bounded time.

    Raises:
        ValueError: not an expression, one with repeated groups, references or lookaround, or with too many repetitions.
    """
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern, flags=re.S)  # escapes and classes as letters
    plain, reference = re.sub(r"\(\?P<\w+>|\(\?:", "(", plain), re.search(r"\\[1-9]", pattern)
    if reference or "(?" in plain or re.search(r"\)[*+?{]", plain) or len(re.findall(r"[*+?{]", plain)) > 3:
        raise ValueError("caption_pattern may repeat single letters and classes, three times in all, and nothing else")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise ValueError("caption_pattern is not a regular expression") from None


def check_sentences(sentences: Iterable[str], known: Collection[str]) -> None:
    """Check that sentences have only `known` fields, with nothing but a name inside the braces.

    Raises:
        ValueError: with the sentence.
    """
    for text in sentences:
        try:
            fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(text) if name is not None]
        except ValueError:  # a single brace
            fields = [("", "", None)]
        if any(name not in known or spec or how for name, spec, how in fields):
            raise ValueError(f"the sentence {text[:60]!r} may name {', '.join(sorted(known))} in braces, no more")
