"""The commands about models, in this process."""

import json
import sys
from pathlib import Path

import pytest
import torch

from m3bind import cli, models
from m3bind.models import registry
from m3bind.models.weights import check, reference
from m3bind.models.weights.weight_files import read_state
from models.tiny_published import tiny  # noqa: F401


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Exit code and everything printed."""
    monkeypatch.setattr(sys, "argv", ["m3bind", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out + shown.err


class Callback:
    """A class only the test knows."""


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    torch.save({"state_dict": {"a": torch.arange(3)}, "callbacks": Callback()}, path)
    code, shown = run(capsys, monkeypatch, "convert", path, out)
    assert code == 2 and "--i-trust-this-file" in shown and not out.exists()
    code, shown = run(capsys, monkeypatch, "convert", path, out, "--i-trust-this-file")
    assert code == 0 and "converted 1 tensors" in shown and "dropped callbacks" in shown
    assert torch.equal(read_state(out)["a"], torch.arange(3))
    path.write_bytes(path.read_bytes()[:-100])
    code, shown = run(capsys, monkeypatch, "convert", path, out, "--i-trust-this-file")
    assert code == 1 and "damaged" in shown


def test_models_shows_every_model_and_its_licences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "models.json"
    code, shown = run(capsys, monkeypatch, "models", "--json", path)
    rows = {row["name"]: row for row in json.loads(path.read_text())["models"]}
    assert code == 0 and set(rows) == set(models.names()) and all(name in shown for name in rows)
    assert rows["flair"]["use"] == "retina" and rows["flair"]["joint_dim"] == 512 and rows["flair"]["published"]
    assert (
        rows["ct_clip"]["licence_weights"].startswith("CC BY-NC-SA 4.0")
        and "CT-CLIP_v2.pt" in rows["ct_clip"]["weights"]
    )
    assert rows["compact_2d"]["verified"] == "own tests" and not rows["compact_2d"]["published"]
    for row in rows.values():
        assert row["use"] and row["input"] and row["licence_code"] and row["licence_weights"] and row["verified"]


def test_docs_and_cards_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make docs` after a card has changed or a model was added."""
    document, copy = Path(__file__).parents[2] / "docs" / "models.md", tmp_path / "models.md"
    copy.write_text(document.read_text())
    assert run(capsys, monkeypatch, "models", "--markdown", copy)[0] == 0
    assert copy.read_text() == document.read_text()
    copy.write_text("no marks")
    code, shown = run(capsys, monkeypatch, "models", "--markdown", copy)
    assert code == 2 and "needs the two lines" in shown and copy.read_text() == "no marks"


def test_what_a_card_states_about_verification_has_a_test() -> None:
    """A published model either has a test against its authors' outputs, or its card says what it was compared with."""
    for name in check.published():
        module = registry.get(name).__module__.rpartition(".")[2]
        if not registry.card(name).verified:
            assert "fixture(" in (Path(__file__).parents[1] / "models" / f"test_{module}.py").read_text(), name


@pytest.fixture
def tiny_weights(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "references")
    monkeypatch.setenv(reference.VARIABLE, str(tmp_path / "own"))
    state = dict(models.build(tiny).state_dict()) | {"decoder.x": torch.zeros(1)}
    torch.save(state, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_check_model(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published", "--save-reference")
    assert code == 0 and (tmp_path / "references" / "tiny_published.json").is_file() and "reference: " in shown
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published")
    assert code == 0 and "ok    images as stored: cosine 1.000000" in shown

    answer = tmp_path / "answer.json"
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published", tiny_weights, "--json", answer)
    assert code == 0 and "ignored decoder.x" in shown
    told = json.loads(answer.read_text())
    assert told["passed"] and told["load"]["ignored"] == ["decoder.x"] and len(told["weights_hash"]) == 64

    path = tmp_path / "references" / "tiny_published.json"
    found = reference.Reference.load(path)
    found.image = [[-value for value in row] for row in found.image]
    found.save(path)
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published", "--json", answer)
    assert code == 1 and "FAIL  images as stored: cosine -1.000000" in shown
    assert "does not reproduce its reference" in shown
    assert not json.loads(answer.read_text())["passed"]


def test_check_model_of_wrong_files(
    tiny_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_publish")
    assert code == 2 and "did you mean 'tiny_published'" in shown
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published", "absent.pt")
    assert code == 1 and "no such file or folder" in shown
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published", "owner/name")
    assert code == 2 and "pin it" in shown
    tiny_weights.write_bytes(b"<html>")
    code, shown = run(capsys, monkeypatch, "check-model", "tiny_published", tiny_weights)
    assert code == 1 and "web page" in shown
