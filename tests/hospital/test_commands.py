"""Wrong use of the hospital commands is refused in one line, before anything is loaded or written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hospital.conftest import SALT
from m3bind.cli import app

COMMON = ["--space", "nowhere", "--index"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["listen", *COMMON, "{}", "--complete", "never"], "quiet or release"),
        (["listen", *COMMON, "{}", "--host", "0.0.0.0"], "--allow"),
        (["listen", *COMMON, "{}", "--tls-cert", "own.pem"], "--tls-key"),
        (["listen", *COMMON, "{}", "--tls-ca", "ca.pem"], "--tls-cert"),
        (["listen", *COMMON, "{}", "--tls-cert", "own.pem", "--tls-key", "own.key"], "own.pem, own.key"),
        (["listen", *COMMON, "{}", "--dates", "all"], "none or shift"),
        (["listen", *COMMON, "milvus:x.db"], "--spool"),
        (["listen", *COMMON, "{}"], "nowhere"),
        (["pull", "http://127.0.0.1:1/x", *COMMON, "{}", "--from", "yesterday"], "2020-01-31"),
        (["pull", "127.0.0.1/x", *COMMON, "{}"], "DICOMweb address"),
        (["pull", "http://127.0.0.1:1/x", *COMMON, "{}", "--auth-file", "nothing"], "--auth-file"),
        (["send-results", "{}", "--space", "nowhere", "--labels", "a,b"], "--out DIR"),
        (["send-results", "{}", "--space", "nowhere", "--labels", "a,b", "--to", "X@y:1"], "--mapping"),
    ],
)
def test_wrong_use(command: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3BIND_SALT", SALT)
    done = CliRunner().invoke(app, [part.replace("{}", str(tmp_path / "index")) for part in command])
    assert done.exit_code != 0 and said in str(done.exception) + done.output
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pynetdicom" else found(name))
    done = CliRunner().invoke(app, ["listen", *COMMON, "index"])
    assert "pip install 'm3bind[hospital]'" in str(done.exception)


def test_destinations() -> None:
    from m3bind.errors import ConfigError
    from m3bind.hospital.send import destination

    for text in ("PACS", "PACS@host", "PACS@host:port", "a title that is too long@h:1", "ftp://x"):
        with pytest.raises(ConfigError, match="AET@HOST:PORT"), destination(text, []):
            pass
