"""One thing has one name: the names and words that were replaced do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [
    path
    for folder in ("src", "docs", "examples", "tools", "benchmarks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".md", ".yaml", ".html", ".js", ".ipynb"} and "__pycache__" not in path.parts
] + [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

NAMES = (
    r"text_paths?\b", r"\balign\.lam\b", r"\bdata\.corpus\b", r"\bcorpus_limit\b", r"--publish\b", r"\bset_note\b",
    r"\bSubjectSource\b", r"\bopen_subject\b", r"\bKept\[", r"\bGone\b", r"\bVerdicts\b",
    r"\bcarry_out\b", r"\bwhy_not\b", r"\bchoose_trained\b", r"\bfreeze_drifting\b", r"\bprivacy\.shown\b",
    r"\bweights_changed\b", r"\b_inert\b", r"\bstage[012]\b", r'stage="bound"', r"\bablate_methods\b",
    r"\bm3bind\.fit\b", r"\bm3bind\.binding\b", r"\bm3bind\.finish\b", r"\bm3bind\.runner\b",
    r"\bFlying\b", r"\bPassing\b", r"\bSpace\.into\b", r"\bTwin\b", r"\bquicker\(", r"\bis_of\(",
    r"\bencode_text\(.*\btext=", r"\bforeign\.py\b", r"\bporch\b",
)  # fmt: skip
DIALECT = (
    "set aside", "by lot", "anew", "nobody", "whom", "none where there is none", "goes on where", "the rest goes on",
    "stranger", "figures",
)  # fmt: skip
PLOTS = re.compile(
    r"\bfigures?\s*=|[{]figures[}]|return figures|figures [+]=|plt\.figure|figures (of PubMed|and captions)", re.I
)


def hits(pattern):
    found = []
    for path in TEXTS:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_replaced_name_is_gone(name):
    assert hits(name) == []


@pytest.mark.parametrize("word", DIALECT)
def test_a_replaced_word_is_gone(word):
    found = hits(rf"(?i)\b{word}\b")
    if word == "figures":  # a figure is a plot
        found = [line for line in found if not PLOTS.search(line)]
    assert found == []
