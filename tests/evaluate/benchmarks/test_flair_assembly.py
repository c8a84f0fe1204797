from pathlib import Path

import pytest

from evaluate.benchmarks.prepared import assert_incomplete, kinds, make, prepared
from m3bind.errors import ManifestError
from m3bind.evaluate.benchmarks import get, prepare
from m3bind.evaluate.benchmarks._lists import literal_list
from m3bind.evaluate.benchmarks.flair_assembly import BANNED, SETS


def test_training_sets_with_their_names(tmp_path: Path) -> None:
    make("flair_assembly", tmp_path)
    done, manifest = prepared("flair_assembly", tmp_path)
    assert done.counts["train"] == 36 and {record.split for record in manifest.records} == {"train"}
    assert {record.id.split("/")[0] for record in manifest.records} == {"01_EYEPACS", "03_IDRID", "08_ODIR-5K"}
    assert kinds(done) == {
        "of a set for testing": 1, "of a missing set": len(SETS) - 3, "of a banned category": 1, "with a bad list": 1,
        "without a category": 1,
    }  # fmt: skip
    assert manifest.records[0].patient == manifest.records[1].patient != manifest.records[2].patient  # both eyes
    assert manifest.records[13].labels == ("microaneurysms", "hard exudates")


def test_malicious_cells_stay_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("flair_assembly", tmp_path)
    monkeypatch.chdir(tmp_path)
    done, _ = prepared("flair_assembly", tmp_path)
    fault = next(fault for fault in done.faults if fault.kind == "with a bad list")
    assert fault.row == 15 and "pwned" not in fault.reason and not (tmp_path / "pwned").exists()


def test_literal_lists() -> None:
    assert literal_list("['a', \"b's\"]") == ("a", "b's") and literal_list("[]") == literal_list("") == ()
    assert literal_list("['', ' x ']") == ("x",)
    for text in ("__import__('os')", "[1, 2]", "{'a': 1}", "('a',)", "['a'", "a", "['a'] * 9", "[" * 5000, "-" * 5000):
        assert literal_list(text) is None, text[:20]


def test_banned_words_cover_what_is_tested_on() -> None:
    for name in ("pathologic myopia", "high myopia", "cataract", "macular hole", "retinitis pigmentosa"):
        assert any(word in name for word in BANNED)


def test_absent_and_incomplete(tmp_path: Path) -> None:
    root = make("flair_assembly", tmp_path)
    assert_incomplete("flair_assembly", tmp_path, ["pretraining"])
    (root / "pretraining" / "01_EYEPACS.csv").write_text(",image\n0,a.png\n")
    with pytest.raises(ManifestError, match="no column 'atributes', 'categories'"):
        prepare(get("flair_assembly"), root, tmp_path / "out")
