"""The commands about models, in this process."""

import sys
from pathlib import Path

import pytest
import torch

from m3bind import cli
from m3bind.models.checkpoint import read_state


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
    assert code == 0 and "kept 1 tensors" in shown and "dropped callbacks" in shown
    assert torch.equal(read_state(out)["a"], torch.arange(3))
    path.write_bytes(path.read_bytes()[:-100])
    code, shown = run(capsys, monkeypatch, "convert", path, out, "--i-trust-this-file")
    assert code == 1 and "damaged" in shown
