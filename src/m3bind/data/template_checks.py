"""What a file of templates may say, since it may be a stranger's.

* `check_pattern`: a regular expression that cannot try without end. * `check_sentences`: patterns with known fields.
"""

import re
from collections.abc import Collection, Iterable
from string import Formatter


def check_pattern(pattern: str) -> None:
    """Refuse an expression that may try without end: comparing must take less than a moment, whatever the text is.

    Raises:
        ValueError: no expression, one that repeats groups, refers to them or looks around, or repeats too much.
    """
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern, flags=re.S)  # escapes and classes as letters
    plain, ahead = re.subn(r"\(\?P<\w+>|\(\?:", "(", plain)[0], re.search(r"\\[1-9]", pattern)
    if ahead or "(?" in plain or re.search(r"\)[*+?{]", plain) or len(re.findall(r"[*+?{]", plain)) > 3:
        raise ValueError("caption_pattern may repeat single letters and classes, three times in all, and nothing else")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise ValueError("caption_pattern is no regular expression") from None


def check_sentences(sentences: Iterable[str], known: Collection[str]) -> None:
    """Refuse sentences that have other fields than those `known`, or anything but a name inside the braces.

    Raises:
        ValueError: names the sentence.
    """
    for text in sentences:
        try:
            fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(text) if name is not None]
        except ValueError:  # a single brace
            fields = [("", "", None)]
        if any(name not in known or spec or how for name, spec, how in fields):
            raise ValueError(f"the sentence {text[:60]!r} may name {', '.join(sorted(known))} in braces, no more")
