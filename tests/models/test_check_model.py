"""`check_model`: how it reports a changed library or another file, and the references included in the package."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.weights import check, reference
from m3bind.models.weights.check import check_model
from m3bind.models.weights.checkpoint import hash_state, save_state, without_initialisation
from m3bind.models.weights.reference import Reference, fill, fixed_images, fixed_tokens, generated
from models.tiny_published import tiny  # noqa: F401
from pretend.device import DEVICE, pretend_device


@pytest.fixture
def stored(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """The tiny model with a reference of its generated weights."""
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "references")
    monkeypatch.setenv(reference.VARIABLE, str(tmp_path / "own"))
    result = check_model(tiny, save=True)
    assert result.saved == str(tmp_path / "references" / "tiny_published.json") and result.passed
    return tiny


def failed(result: check.Result) -> list[str]:
    return [check.name for check in result.checks if check.passed is False]


def weights(name: str, path: Path, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """A checkpoint of the tiny model in the form of its authors."""
    torch.manual_seed(0)
    state = dict(models.build(name).state_dict())
    state = {key.replace("image_trunk.", "visual.").replace("scale.log", "logit_scale"): v for key, v in state.items()}
    torch.save({"state_dict": state | {"decoder.weight": torch.zeros(1)} | changed}, path)
    return state


# ---- weights and inputs


def test_weights_follow_from_names() -> None:
    twice = [nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Linear(500, 300)) for _ in range(2)]
    for model in twice:
        fill(model)
    first, second = (model.state_dict() for model in twice)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert first["2.weight"].std() == pytest.approx(500**-0.5, rel=0.02)
    assert first["1.weight"].mean() == pytest.approx(1, abs=0.05) and first["1.running_var"].min() >= 1
    assert first["2.bias"].abs().max() < 0.5 and int(first["1.num_batches_tracked"]) == 0
    assert generated("a.embeddings.weight", torch.zeros(400, 50)).std() == pytest.approx(0.5, rel=0.02)
    assert not torch.equal(generated("a", torch.zeros(9)), generated("b", torch.zeros(9)))
    assert generated("x", torch.zeros(3, dtype=torch.float16)).dtype == torch.float16
    assert float(generated("scale.log", torch.tensor(2.5))) == 2.5


STREAM = [-0.5737049, -0.0685076, -0.6170834, -1.2994326, 0.4401375, 1.6161708]


def test_the_stream_of_numbers_is_the_one_the_references_were_made_with() -> None:
    """If numpy ever drew another one, every reference would differ."""
    drawn = generated("a.weight", torch.zeros(2, 3)).flatten().tolist()
    assert drawn == pytest.approx(STREAM, abs=1e-6)


def test_inputs_follow_from_shapes() -> None:
    images = fixed_images((2, 3, 20, 30))
    assert images.shape == (2, 3, 20, 30) and images.abs().max() <= 1 and images.dtype == torch.float32
    assert torch.equal(images, fixed_images((2, 3, 20, 30))) and not torch.equal(images[0], images[1])
    for vocabulary, first in ((49408, 49406), (28996, 101), (300, 1)):
        tokens = fixed_tokens(vocabulary, 77)
        assert tokens["input_ids"].shape == (3, 14) and int(tokens["input_ids"].max()) < vocabulary
        assert tokens["attention_mask"].sum(1).tolist() == [9, 14, 5] and int(tokens["input_ids"][0, 0]) == first
    assert fixed_tokens(300, 7)["input_ids"].shape == (3, 7)


# ---- without a file


def test_the_same_model_passes_and_a_reference_survives_its_file(stored: str) -> None:
    result = check_model(stored)
    assert result.passed and [c.name for c in result.checks] == [
        "images as stored",
        "texts as stored",
        "preprocessing as stored",
    ]
    assert "cosine 1.000000, largest difference 0.0e+00" in result.as_text()
    path = reference.reference_path(stored)
    assert (path.stat().st_size) < 4000 and Reference.load(path).image == Reference.load(path).image
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match="damaged reference"):
        check_model(stored)
    path.unlink()
    result = check_model(stored)
    assert result.passed and "none stored" in result.as_text()


def _larger_eps(model: DualEncoder) -> None:
    model.image_trunk.norm.eps = 0.5  # type: ignore[union-attr]


def _another_activation(model: DualEncoder) -> None:
    model.image_trunk.act = nn.SiLU()


def _shifted_positions(model: DualEncoder) -> None:
    table = model.text_trunk.bert.embeddings.position_embeddings  # type: ignore[union-attr]
    table.forward = lambda ids: type(table).forward(table, ids + 1)  # type: ignore[union-attr]


def _training(model: DualEncoder) -> None:
    model.image_trunk.drop.forward = lambda x: torch.dropout(x, 0.5, True)  # type: ignore[union-attr]


def _nan(model: DualEncoder) -> None:
    model.image_head.forward = lambda x: x * float("nan")  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (_larger_eps, ["images as stored"]),
        (_another_activation, ["images as stored"]),
        (_shifted_positions, ["texts as stored"]),
        (_training, ["images as stored"]),
        (_nan, ["images as stored"]),
    ],
)
def test_a_library_that_computes_otherwise_fails(
    stored: str, change: Any, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = registry.build

    def changed(name: str, **settings: Any) -> DualEncoder:
        model = build(name, **settings)
        change(model)
        return model

    monkeypatch.setattr(registry, "build", changed)
    result = check_model(stored)
    assert failed(result) == names and not result.passed
    assert "FAIL" in result.as_text() and "with the same libraries as then" in result.as_text()


def test_other_preprocessing_and_other_names_fail(stored: str) -> None:
    path = reference.reference_path(stored)
    found = Reference.load(path)
    assert found.input is not None
    found.input = [value + 0.05 * (number % 2) for number, value in enumerate(found.input)]
    found.versions["torchvision"] = "0.1"
    found.save(path)
    result = check_model(stored)
    assert failed(result) == ["preprocessing as stored"] and "torchvision 0.1 -> " in result.as_text()
    found.names += 1
    found.save(path)
    assert failed(check_model(stored)) == ["reference"]


def test_small_changes_are_detected(stored: str) -> None:
    path = reference.reference_path(stored)
    found = Reference.load(path)
    found.image[0][0] += 1e-4
    found.save(path)
    result = check_model(stored)
    assert result.passed and "note  images: they changed by more than rounding" in result.as_text()


def test_what_has_no_published_weights(stored: str) -> None:
    with pytest.raises(ConfigError, match=r"compact_2d is not one of the published models: .*flair"):
        check_model("compact_2d")
    result = check_model(stored, act="relu")
    assert "not compared, since settings were given" in result.as_text()


# ---- with a file


def test_a_checkpoint_is_loaded_reported_and_remembered(stored: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.ckpt"
    weights(stored, path)
    result = check_model(stored, path)
    assert result.passed and result.load is not None and result.load.ignored == ("decoder.weight",)
    text = result.as_text()
    for part in (
        "1 of the file ignored by name",
        "ignored decoder.weight",
        "none saved yet",
        "images finite, unit length",
    ):
        assert part in text
    assert result.weights_hash == hash_state(models.load(stored, path).state_dict())

    saved = check_model(stored, path, save=True)
    assert saved.saved == str(tmp_path / "own" / f"tiny_published-{saved.weights_hash[:16]}.json")
    again = check_model(stored, path)
    assert again.passed and [c.name for c in again.checks].count("images as stored") == 2
    content = json.loads(Path(saved.saved).read_text())
    content["image"] = content["text"]
    Path(saved.saved).write_text(json.dumps(content | {"shape": [2, 3, 16, 16]}))
    assert not check_model(stored, path, save=False).passed

    save_state(models.load(stored, path).state_dict(), tmp_path / "own.safetensors")
    assert check_model(stored, tmp_path / "own.safetensors").weights_hash == saved.weights_hash, "whatever the form"


def test_bad_weights_fail(stored: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.ckpt"
    weights(stored, path, **{"image_head.weight": torch.full((8, 8), float("nan"))})
    result = check_model(stored, path)
    assert failed(result) == ["weights finite", "images finite, unit length", "images alone as in a batch"]
    assert "not in image_head.weight" in result.as_text() and result.as_dict()["passed"] is False
    weights(stored, path, **{"image_head.weight": torch.zeros(8, 8)})
    assert failed(check_model(stored, path)) == ["images finite, unit length"]
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"tiny\.ckpt does not fit TinyPublished: \d+ missing"):
        check_model(stored, path)


def test_a_model_whose_texts_depend_on_their_padding_fails(stored: str, tmp_path: Path) -> None:
    weights(stored, tmp_path / "tiny.ckpt")
    build = registry.build

    def padded(name: str, **settings: Any) -> DualEncoder:
        model = build(name, **settings)
        model.text_trunk.pooling = "padded"  # type: ignore[assignment]
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "build", padded)
        assert "texts alone as in a batch" in failed(check_model(stored, tmp_path / "tiny.ckpt"))


# ---- building without random numbers


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_a_model_loaded_without_initialisation_is_the_same(stored: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.ckpt"
    weights(stored, path)
    usual = models.build(stored).eval()
    usual.load_checkpoint(path)
    loaded = models.load(stored, path)
    models.save(loaded, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    for model in (loaded, again):
        same = everything(usual)
        assert same.keys() == everything(model).keys() and not model.training
        assert all(torch.equal(value, same[key]) for key, value in everything(model).items())
    assert torch.equal(loaded.image_trunk.get_buffer("grid"), torch.linspace(0.5, 1.5, 8))


def test_only_random_numbers_for_parameters_are_skipped() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with without_initialisation():
        layers = nn.ModuleList(
            [nn.Linear(300, 300), nn.Conv2d(3, 3, 3), nn.Embedding(50, 50), nn.MultiheadAttention(8, 2)]
        )
        for parameter in layers.parameters():
            nn.init.trunc_normal_(parameter)
            nn.init.xavier_uniform_(parameter) if parameter.ndim > 1 else nn.init.normal_(parameter)
        assert torch.equal(torch.get_rng_state(), before), "nothing was drawn"
        norm, constant = nn.BatchNorm1d(4), nn.init.constant_(nn.Parameter(torch.zeros(3)), 2.0)
        buffer = torch.zeros(1000).normal_()
    assert norm.weight.tolist() == [1] * 4 and norm.running_var.tolist() == [1] * 4 and constant.tolist() == [2] * 3
    assert 0.9 < float(buffer.std()) < 1.1
    assert float(nn.Linear(300, 300).weight.detach().std()) > 0.01, "afterwards all is as before"


def test_one_file_of_a_hub_repository_brings_its_tokenizer(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ndrusen")
    weights(stored, folder / "tiny.ckpt")
    monkeypatch.setattr("m3bind.models.published.resolve", lambda source, *rest, **options: _found(source, folder))
    model = models.load(stored, "owner/name:tiny.ckpt", revision="abc")
    assert model.tokenize(["drusen"])["input_ids"].tolist() == [[2, 5, 3]]
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        models.load(stored, folder / "tiny.ckpt").tokenize(["drusen"])


def _found(source: object, folder: Path) -> Path:
    if str(source) == "owner/name:tiny.ckpt":
        return folder / "tiny.ckpt"
    if Path(str(source)).exists():
        return Path(str(source))
    raise ConfigError("not there")


# ---- the package


def test_references_belong_to_published_models() -> None:
    known = set(check.published())
    files = sorted(reference.FOLDER.glob("*.json"))
    assert files and {file.stem for file in files} <= known
    assert sum(file.stat().st_size for file in files) < 1_000_000
    for file in files:
        found = Reference.load(file)
        rows = torch.tensor(found.image + (found.text or []))
        assert found.model == file.stem and found.weights == "generated"
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["flair", "clip"])
def test_published_models_compute_what_is_stored(name: str) -> None:
    result = check_model(name)
    assert result.passed and len(result.checks) == 3, result.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", check.published())
def test_every_published_model_computes_what_is_stored(name: str) -> None:
    result = check_model(name)
    assert result.passed, result.as_text()
    assert reference.reference_path(name).is_file(), f"make reference, or: m3bind check-model {name} --save-reference"


@pytest.mark.slow
@pytest.mark.parametrize("name", check.published())
def test_every_published_model_is_the_same_without_initialisation(name: str) -> None:
    usual = models.build(name)
    fill(usual)
    with without_initialisation():
        quick = models.build(name)
    for value in quick.parameters():
        value.data.fill_(float("nan") if value.numel() > 1 else float(value))
    fill(quick)
    same = everything(usual)
    assert all(torch.equal(value, same[key]) for key, value in everything(quick).items())


def test_a_model_on_an_accelerator_is_compared_with_the_same_references(stored: str, tmp_path: Path) -> None:
    weights(stored, tmp_path / "authors.pt")
    check_model(stored, tmp_path / "authors.pt", save=True)
    expected = check_model(stored, tmp_path / "authors.pt")
    with pretend_device(float64=False):
        result = check_model(stored, tmp_path / "authors.pt", device=torch.device(DEVICE))
    assert result.passed and [c.name for c in result.checks] == [c.name for c in expected.checks]
    assert result.weights_hash == expected.weights_hash
