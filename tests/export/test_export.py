import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import m3bind
from export.students import HEADS, TEXTS, student
from m3bind.cli.app import app
from m3bind.encode.job import Encoded
from m3bind.errors import ConfigError, SpaceError, UnknownNameError
from m3bind.export import FORMATS, EvaluationResult, arrays, export_arrays, export_space, verify
from m3bind.export.hub import without_paths
from m3bind.space.bundle import Space, load, save_space
from m3bind.space.folder import SpaceInfo
from space import tiny

FORMS = [*((head, "mean", "bert") for head in HEADS), ("linear", "cls", "distilbert"),
         *(("adapter", pooling, "bert") for pooling in ("cls", "last", "pooler"))]  # fmt: skip


def saved(folder, text=None, **info):
    """A space of tiny models with this student."""
    encoder = text or student()
    plain = tiny.make_space(dim=encoder.head_settings["dim"], distilled=False)
    contents = plain._contents
    space = Space(contents.models, contents.bridges, contents.means, encoder, SpaceInfo(**info))
    return load(save_space(space, folder / "space"))


def archive(folder, n=7):
    items = pd.DataFrame(
        {
            "row": np.arange(n),
            "id": [f"i{number}" for number in range(n)],
            "modality": ["grey"] * n,
            "path": [f"/data/Jane Doe/{number}.png" for number in range(n)],
            "label": ["ü"] * n,
        }
    )
    rows = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return Encoded(folder, rows, items, "f" * 64, False, 0)


@pytest.mark.parametrize(("head", "pooling", "family"), FORMS)
def test_sentence_transformers_gives_the_same_vectors(tmp_path, head, pooling, family):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    space = saved(tmp_path, student(head, pooling, family))
    done = export_space(space, "sentence-transformers", tmp_path / "out")
    model = sentence_transformers.SentenceTransformer(str(done.folder), device="cpu", trust_remote_code=False)
    np.testing.assert_allclose(model.encode(TEXTS), space.encode_text(TEXTS), atol=1e-5)
    assert not list(done.folder.rglob("*.py")) and model.max_seq_length == 48


@pytest.mark.parametrize(("head", "pooling", "family"), FORMS)
def test_the_code_in_the_readme_of_the_hf_folder_gives_the_same_vectors(tmp_path, head, pooling, family):
    space = saved(tmp_path, student(head, pooling, family))
    folder = export_space(space, "hf", tmp_path / "out").folder
    page = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1].replace("FOLDER", str(folder))
    names = {"TEXTS": TEXTS}
    exec(re.sub(r"^texts = .*$", "texts = TEXTS", code, flags=re.M), names)
    np.testing.assert_allclose(names["embeddings"].numpy(), space.encode_text(TEXTS), atol=1e-5)
    assert "trust_remote_code" not in page


def test_every_export_lists_its_files_and_a_changed_one_is_found(tmp_path):
    space = saved(tmp_path)
    folder = export_space(space, "hf", tmp_path / "out").folder
    about = verify(folder)
    assert about["space"] == space.fingerprint and about["kind"] == "hf" and about["licences"] == space.licences
    assert set(about["files"]) == {path.name for path in folder.iterdir()} - {"export.json"}
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SpaceError, match=r"model\.safetensors"):
        verify(folder)
    with pytest.raises(ConfigError, match="not an export"):
        verify(tmp_path)


def test_a_failure_leaves_the_older_export(tmp_path, monkeypatch):
    space = saved(tmp_path)
    folder = export_space(space, "hf", tmp_path / "out").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("m3bind.export.hf.student_readme", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_space(space, "hf", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_only_exports_are_replaced_and_names_are_checked(tmp_path):
    space = saved(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not an export"):
        export_space(space, "hf", tmp_path / "mine")
    with pytest.raises(UnknownNameError, match="sentence-transformers"):
        export_space(space, "sentence-transformer", tmp_path / "out")
    bare = load(save_space(tiny.make_space(distilled=False), tmp_path / "bare"))
    with pytest.raises(SpaceError, match="no student"):
        export_space(bare, "hf", tmp_path / "out")


def test_load_recognises_an_export(tmp_path):
    space = saved(tmp_path)
    for to in ("hf", "sentence-transformers"):
        folder = export_space(space, to, tmp_path / to).folder
        with pytest.raises(SpaceError, match=re.escape(FORMATS[to])):
            m3bind.load(folder)


SECRET = "/home/jane.doe/study 17"


def test_hub_layout_is_a_space_with_a_card(tmp_path):
    modality = {"checkpoint": f"{SECRET}/w.pt", "model": "tiny", "text": "owner/name"}
    data = {"manifest": f"{SECRET}/list.csv", "root": "relative/Doe", "seed": 1}
    config = {"data": data, "steps": 3, "modalities": {"grey": modality}}
    space = saved(tmp_path, config=config, records={"grey": {"train": 12, "test": 3}}, synthetic=True)
    lines = [EvaluationResult("zero shot, normal", "grey", "auc", 40, 0.5, 0.8125, 0.7, None),
             EvaluationResult("search", "mean", "R@10", 9,
             None, 0.25, 0.2, 0.3)]  # fmt: skip
    folder = export_space(space, "hub", tmp_path / "out", results=lines).folder
    again = m3bind.load(folder)
    assert again.fingerprint == space.fingerprint
    np.testing.assert_array_equal(again.encode_text(TEXTS), space.encode_text(TEXTS))
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert not any(name in path.read_text() for name in ("jane", "Doe", "study 17"))
    assert again.info.config["modalities"]["grey"]["text"] == "owner/name" and again.info.config["steps"] == 3
    verify(folder)
    page = (folder / "README.md").read_text()
    front = yaml.safe_load(page.split("---")[1])
    assert front["library_name"] == "m3bind" and front["license"] == "cc0-1.0" and "synthetic" in front["tags"]
    for piece in ("SYNTHETIC", "| grey | tiny | here |", "| grey | 12 | 3 |", "Not a medical device", space.fingerprint,
                  "| zero shot, normal | grey | auc | 40 | 0.500 | 0.812 | – |", "0.200 to 0.300"):  # fmt: skip
        assert piece in page
    assert len(json.loads((folder / "results.json").read_text())) == 2


def test_paths_are_left_out_of_settings_and_nothing_else():
    kept = {"a": 1, "b": None, "text": "owner/name", "lr": [0.1, "cosine"], "model": "clip"}
    assert without_paths(kept) == kept
    for path in ("/a/b", "~/x", "./x", "../x", "C:\\x", "a\\b", "a/b/c.pt"):
        assert without_paths({"x": [path]}) == {"x": ["(left out)"]}
    assert without_paths({"manifest": "doe.csv", "sets": ["x"]}) == {"manifest": "(left out)", "sets": ["(left out)"]}


def test_arrays_hold_the_archive_without_names(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 3)
    encoded = archive(tmp_path)
    done = export_arrays(encoded, "parquet", tmp_path / "table")
    table = pd.read_parquet(done.folder / "embeddings.parquet")
    assert list(table) == ["id", "modality", "embedding"] and table["id"].tolist() == encoded.items["id"].tolist()
    np.testing.assert_array_equal(np.stack(table["embedding"]), encoded.embeddings)
    done = export_arrays(encoded, "npz", tmp_path / "npz", columns=["label"])
    with np.load(done.folder / "embeddings.npz", allow_pickle=False) as found:
        assert sorted(found) == ["embedding", "id", "label", "modality", "space"]
        np.testing.assert_array_equal(found["embedding"], encoded.embeddings)
        assert found["label"].tolist() == ["ü"] * 7 and str(found["space"]) == "f" * 64
    for file in (*(tmp_path / "table").iterdir(), *(tmp_path / "npz").iterdir()):
        assert b"Jane" not in file.read_bytes()
    assert verify(tmp_path / "npz")["columns"] == ["id", "modality", "label"]


def test_arrays_refuse_missing_columns(tmp_path):
    with pytest.raises(UnknownNameError, match="label"):
        export_arrays(archive(tmp_path), "npz", tmp_path / "out", columns=["lable"])
    with pytest.raises(UnknownNameError, match="parquet"):
        export_arrays(archive(tmp_path), "parket", tmp_path / "out")
    with pytest.raises(ConfigError, match="no embedding"):
        export_arrays(archive(tmp_path, 0), "npz", tmp_path / "out")


def test_command_line(tmp_path):
    saved(tmp_path)
    row = {"protocol": "zero_shot", "dataset": "d", "modality": "grey", "split": "test", "text_encoder": "teacher"}
    row |= {"metric": "auc", "value": 0.75, "ci_low": 0.7, "ci_high": None, "n": 9, "chance": 0.5, "stage": "aligned"}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    arguments = ["export", str(tmp_path / "space"), "--to", "hub", "--out", str(tmp_path / "hub")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "m3bind.load" in result.output
    assert "| grey | auc | 9 | 0.500 | 0.750 | – |" in (tmp_path / "hub" / "README.md").read_text()
    m3bind.load(tmp_path / "hub")
    result = CliRunner().invoke(app, [*arguments[:3], "nothing", *arguments[4:]])
    assert isinstance(result.exception, UnknownNameError)


def test_no_random_numbers_are_drawn(tmp_path):
    space = saved(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    export_space(space, "sentence-transformers", tmp_path / "out")
    assert torch.equal(torch.rand(3), expected)
