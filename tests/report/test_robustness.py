"""The section of shifted files: a table of every task and shift, and a plot that names silent losses."""

from dataclasses import replace

from m3bind.evaluate.results import Row
from m3bind.report.robustness import robustness_section

BASE = Row("robustness", "s", "xray", "test", "student", "auc", 0.9, 0.85, 0.95, 80, 0.5, task="size <b>")


def test_a_section_with_every_shift():
    rows = []
    for shift, value, flagged in (("as shipped", 0.9, 0.01), ("blur 2 px", 0.6, 0.2), ("grey noise", 0.5, 1.0)):
        rows += [replace(BASE, variant=shift, value=value)]
        rows += [replace(BASE, variant=shift, metric="flagged", task="", value=flagged)]
        rows += [replace(BASE, variant=shift, metric="ece", value=0.25)]
        answered = float("nan") if flagged == 1 else 0.125
        rows += [replace(BASE, variant=f"{shift}, answered", metric="ece", value=answered)]
    section = robustness_section(rows)
    assert "size &lt;b&gt;" in section and "<b>" not in section
    assert section.count("<tr>") == 4 and section.count("0.250") == 3 and section.count("0.125") == 2
    assert "falls by more than 0.05 in 2, of which fewer than half of the files are flagged in 1" in section
    assert robustness_section([]) == ""
