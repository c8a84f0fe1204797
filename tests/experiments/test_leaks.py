"""m3bind leaks: files read once, pairs as text, JSON and a page, exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from experiments.test_suite import run
from m3bind.core.device import Compute
from m3bind.experiments import leaks
from m3bind.experiments.leaks import LeakOptions, leak_report


@pytest.fixture
def manifest(tmp_path: Path, make_picture: Callable[..., Path]) -> Path:
    """Ten X-rays, of which 4 to 6 are in test; row i + 2 is file i."""
    for number in range(10):
        make_picture(tmp_path / f"{number}.png", "xray", seed=number)
    splits = {4: "test", 5: "test", 6: "test", 7: "valid"}
    rows = [f"xray,{i}.png,normal,patient_{i}_meier,{splits.get(i, 'train')}" for i in range(10)]
    path = tmp_path / "m.csv"
    path.write_text("\n".join(["modality,path,label,patient,split", *rows]) + "\n")
    return path


def replace(manifest: Path, number: int, source: int, change: Callable[[Image.Image], Image.Image]) -> None:
    """File `number` becomes a changed copy of another."""
    with Image.open(manifest.parent / f"{source}.png") as image:
        change(image.copy()).save(manifest.parent / f"{number}.png")


def test_pairs_between_splits_are_leaks_and_within_train_are_not(manifest: Path, monkeypatch, capsys) -> None:
    replace(manifest, 9, 0, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert run("leaks", str(manifest), monkeypatch=monkeypatch) == 0
    assert "(correlation >= 0.9): within train: 1" in capsys.readouterr().out
    replace(manifest, 4, 1, lambda image: image.point(lambda level: 0.8 * level))
    (manifest.parent / "8.png").write_bytes((manifest.parent / "5.png").read_bytes())
    found = manifest.parent / "leaks.json"
    assert run("leaks", str(manifest), "--json", str(found), monkeypatch=monkeypatch) == 1
    assert "content of a training file: 1" in capsys.readouterr().out
    report = json.loads(found.read_text())["xray"]
    pairs = {tuple(copy["rows"]): (copy["splits"], copy["same_bytes"], copy["flip"]) for copy in report["copies"]}
    assert pairs == {
        (3, 6): (["train", "test"], False, ""),
        (10, 7): (["train", "test"], True, ""),
        (2, 11): (["train", "train"], False, "left-right"),
    }
    assert report["leaked"] and (report["compared"], report["skipped"]) == (10, 0)
    assert run("leaks", str(manifest), "--threshold", "1", "--json", str(found), monkeypatch=monkeypatch) == 1
    assert [copy["same_bytes"] for copy in json.loads(found.read_text())["xray"]["copies"]].count(True) == 1


def test_rows_that_cannot_be_compared_are_named_and_change_the_exit_code(manifest: Path, monkeypatch, capsys) -> None:
    with manifest.open("a") as rows:
        rows.write("xray,../elsewhere.png,normal,p,test\n")
    assert run("leaks", str(manifest), monkeypatch=monkeypatch) == 1
    printed = capsys.readouterr().out
    assert "not compared: 1 rows quarantined" in printed and "row 12: the path leads out of the data folder" in printed


def test_the_page_shows_the_pairs_without_names(manifest: Path) -> None:
    replace(manifest, 4, 1, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    page = manifest.parent / "page.html"
    text, found = leak_report(manifest, LeakOptions(page=page), Compute(workers=1))
    assert found
    shown = page.read_text()
    assert shown.count("data:image/jpeg") == 2 and "row 3" in shown and "row 6" in shown
    assert "flipped left-right" in shown and "train and test: 1" in shown
    for secret in ("meier", str(manifest.parent), "4.png"):
        assert secret not in shown and secret not in text


def test_unreadable_files_are_counted_and_constant_ones_are_no_pairs(manifest: Path) -> None:
    (manifest.parent / "3.png").write_bytes(b"broken")
    (manifest.parent / "2.png").unlink()
    for number in (6, 8):
        Image.new("L", (64, 64), 90 + number).save(manifest.parent / f"{number}.png")
    replace(manifest, 5, 1, lambda image: image)
    text, found = leak_report(manifest, LeakOptions(), Compute(workers=2))
    assert found and "8 files of all splits compared by content, 1 unreadable" in text
    assert "train and test: 1" in text


def test_a_cache_saves_reading(manifest: Path, monkeypatch) -> None:
    options = LeakOptions(cache=manifest.parent / "cache")
    first = leak_report(manifest, options, Compute(workers=1))
    monkeypatch.setattr(leaks, "thumbprint", lambda sample: pytest.fail("read again"))
    assert leak_report(manifest, options, Compute(workers=1)) == first


def test_every_content_key_is_found_again(manifest: Path, monkeypatch) -> None:
    """Keys are bytes, some of which end with zeros."""
    numbers = iter(range(1, 99))
    monkeypatch.setattr(leaks, "_content", lambda record, cache: (next(numbers) << 240).to_bytes(32, "big").hex())
    text, found = leak_report(manifest, LeakOptions(), Compute(workers=1))
    assert not found and "10 files of all splits compared by content, 0 unreadable" in text
