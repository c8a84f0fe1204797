"""m3bind encode and m3bind merge on a small mixed archive."""

import sys

import pandas as pd
import pytest

from m3bind.cli.app import main
from m3bind.encode import job
from m3bind.encode.job import open_encoded
from m3bind.space.bundle import save_space
from space import archives


@pytest.fixture(autouse=True, scope="module")
def _known(_registered):
    archives.register()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    save_space(archives.make_space(), folder / "space")
    return folder, archives.make_archive(folder / "in", 30)


@pytest.fixture
def m3bind(archive, monkeypatch, capsys):
    """Run a command; exit code and what was printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["m3bind", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, "".join(capsys.readouterr())

    return run


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_of_anything_and_the_same_in_shares(archive, tmp_path, m3bind, monkeypatch):
    monkeypatch.setattr(job, "SHARD", 7)
    folder, bad = archive
    rest = ["--space", folder / "space"]
    code, shown = m3bind("encode", folder / "in", *rest, "--out", tmp_path / "whole")
    assert code == 1 and "15 done" in shown and "15 bad" in shown and "xray: float32" in shown
    assert sorted(pd.read_csv(tmp_path / "whole" / "quarantine.csv")["path"]) == list(map(str, bad))
    for share in ("2/2", "1/2"):
        code, shown = m3bind("encode", folder / "in", *rest, "--out", tmp_path / "out", "--shard", share)
        assert code == 1 and f"share {share}:" in shown and not (tmp_path / "out").exists()
    code, shown = m3bind("merge", tmp_path / "out.parts", "--out", tmp_path / "out")
    assert code == 1 and content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_manifest_brings_modalities_ids_and_its_bad_rows(archive, tmp_path, m3bind):
    folder, bad = archive
    sound = sorted(set((folder / "in").rglob("*.png")) - set(bad))[:3]
    rows = [{"id": f"p{n}", "modality": "xray", "path": path, "label": "normal"} for n, path in enumerate(sound)]
    rows.append({"id": "p9", "modality": "nothing", "path": sound[0], "label": "normal"})
    pd.DataFrame(rows).to_csv(folder / "m.csv", index=False)
    common = ["encode", folder / "m.csv", "--space", folder / "space", "--out", tmp_path / "out"]
    code, _ = m3bind(*common, "--keep", "id,label")
    done = open_encoded(tmp_path / "out")
    assert code == 1 and done.items["id"].tolist() == ["p0", "p1", "p2"] and set(done.items["label"]) == {"normal"}
    reasons = pd.read_csv(tmp_path / "out" / "quarantine.csv")["reason"]
    assert len(reasons) == 1 and reasons[0].startswith("row 5 of the manifest: ")
    code, _ = m3bind(*common)
    assert code == 1 and not any(b"normal" in data or b"p0" in data for data in content(tmp_path / "out").values())


def test_without_bad_files_the_exit_code_is_zero(archive, tmp_path, m3bind):
    folder, bad = archive
    sound = sorted(set((folder / "in").rglob("*.png")) - set(bad))[:2]
    code, shown = m3bind("encode", *sound, "--space", folder / "space", "--out", tmp_path / "out", "--modality", "xray")
    assert code == 0 and "xray 2" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard", "3/2"], "share 3/2"),
        (["--shard", "two"], "--shard two: give i/n"),
        (["--precision", "int8"], "unknown precision 'int8'"),
        (["--parts", "0"], "must be positive"),
        (["--modality", "xrai"], "did you mean 'xray'"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(archive, tmp_path, m3bind, words, said):
    folder, _ = archive
    code, shown = m3bind("encode", folder / "in", "--space", folder / "space", "--out", tmp_path / "out", *words)
    assert code == 2 and said in shown and list(tmp_path.iterdir()) == []
