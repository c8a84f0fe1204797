"""Third-party templates, and texts made to take long."""

import re
import time
from pathlib import Path

import pytest

from m3bind.data import texts
from m3bind.data.manifest import read_manifest
from m3bind.data.template_checks import check_pattern, check_sentences
from m3bind.data.texts import TEMPLATES, clean_text, load_template
from m3bind.errors import ConfigError, ManifestError


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(?:a|a)*b",
        "a?" * 20 + "a" * 20,
        "(?P<x>.*)\\1",
        "(?=.*x).*",
        ".*.*.*.*x",
        "((",
        "(a|b){2}",
        "a{99999999999}",
    ],
)
def test_an_expression_that_may_try_without_end_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="caption_pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "nodule, (?P<size>\\d+ mm), (?P<rest>.*); .*", "[+*?{(]+ a\\+\\(\\)* (?:x|y)"])
def test_a_plain_expression_is_taken(pattern: str) -> None:
    check_pattern(pattern)
    re.compile(pattern)


@pytest.mark.parametrize("text", ["{a:>9}", "{a.b}", "{a[0]}", "{a!r}", "{b}", "{}", "{", "{a:{a}}"])
def test_a_sentence_with_more_than_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="may name"):
        check_sentences(["plain {a} {{}}", text], ["a"])


def test_all_templates_of_the_package_pass_and_a_third_party_one_is_named(tmp_path: Path) -> None:
    for path in sorted(TEMPLATES.glob("*.yaml")):
        if path.stem != "concepts":
            load_template(path)
    (tmp_path / "xray.yaml").write_text('sentences: ["{findings:>1500000000}"]\n')
    with pytest.raises(ConfigError, match=r"xray.yaml: the sentence"):
        load_template(tmp_path / "xray.yaml")


LONG = {
    "letters": "a" * 300_000, "placeholders": "[** " * 50_000, "commas": ",;:" * 100_000 + "x",
    "commas and blanks": ", ; : " * 50_000 + "x", "brackets": "( [ " * 50_000, "digits": "1" * 200_000 + ",1",
}  # fmt: skip


@pytest.mark.parametrize("kind", LONG)
def test_cleaning_takes_time_in_proportion_to_the_text(kind: str) -> None:
    began = time.process_time()
    clean_text(LONG[kind])
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("seen by XXXX. Lungs clear XXXXabc in both fields.", "seen by. Lungs clear in both fields."),
        ("opacity,, , ; left", "opacity, left"),
        ("a,,b", "a,,b"),
        ("a, ,b, , c", "a, ,b, c"),
        ("lung [**2112-3-4**] clear lobes seen", "lung clear lobes seen"),
    ],
)
def test_what_is_cleaned_is_as_before(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_a_text_without_end_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    rows = ["path,modality,caption", "a.png,xray,a clear chest", f"a.png,xray,{'x ' * texts.MAX_TEXT}"]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    found = read_manifest(tmp_path / "m.csv")
    assert len(found.records) == 1 and [bad.row for bad in found.bad] == [3]
    assert "characters" in found.bad[0].reason


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl"])
def test_a_table_without_line_ends_is_refused(tmp_path: Path, name: str) -> None:
    with open(tmp_path / name, "wb") as handle:
        handle.write(b"path,modality,label\na.png,xray,b\n")
        handle.truncate(1 << 40)
    with pytest.raises(ManifestError, match="letters"):
        read_manifest(tmp_path / name)
