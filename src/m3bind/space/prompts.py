"""Prompt templates of zero-shot classification.

* `fill_template`: a template with its label. * `prompts_of`: all prompts of a label. * `Prompts`: both accepted forms.
* `Labels`: class names, or class names with their prompts.
"""

import re
from collections.abc import Mapping, Sequence

from m3bind.errors import ConfigError

MAX_TEMPLATE = 4096  # characters
Prompts = Sequence[str] | Mapping[str, Sequence[str]]  # templates with {} for the label, or texts per label
Labels = Sequence[str] | Mapping[str, Sequence[str]]  # class names, or texts per class name


def fill_template(template: str, label: str) -> str:
    """A template with the label in place of {}; nothing else of Python's formatting is supported.

    Raises:
        ConfigError: no place for the label, a field other than {}, or the text becomes too long.
    """
    places = 0

    def put(match: re.Match[str]) -> str:
        nonlocal places
        if match[0] in ("{}", "{0}"):
            places += 1
            return label
        if match[0] in ("{{", "}}"):
            return match[0][0]
        raise ConfigError(f"cannot fill a prompt template ({template[:60]!r}); write {{}} where the label goes")

    text = re.sub(r"\{\{|\}\}|\{0?\}|[{}]", put, template)
    if not places or len(text) > 4 * MAX_TEMPLATE:
        raise ConfigError(f"cannot fill a prompt template ({template[:60]!r}); write {{}} once, where the label goes")
    return text


def prompts_of(label: str, prompts: Prompts | None) -> list[str]:
    """The prompts of one label; the label itself without `prompts`.

    Raises:
        ConfigError: no prompts for the label, or a template that cannot be filled.
    """
    if not prompts:
        return [label]
    if isinstance(prompts, Mapping):
        if not prompts.get(label) or isinstance(prompts[label], str):
            raise ConfigError(f"no list of prompts for label {label!r}; there are some for {sorted(prompts)}")
        return list(prompts[label])
    if isinstance(prompts, str):
        raise ConfigError(f"prompts must be a list of templates, not one text; write [{prompts!r}]")
    return [fill_template(template, label) for template in prompts]
