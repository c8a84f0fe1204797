"""ResNet-50 of torchvision: its own state dict loads strictly and gives its own features; no text tower."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights, resnet50

import m3bind.models as models
from m3bind.errors import CheckpointError, ConfigError
from m3bind.modalities.base import Sample


@pytest.fixture(scope="module")
def published(scratch: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    network = resnet50(weights=None).eval()
    path = scratch / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return network, path


def photograph() -> Sample:
    pixels = np.random.default_rng(0).random((300, 420, 3)).astype(np.float32)
    return Sample("retina", np.round(pixels * 255) / 255)


def test_features_and_transform_are_torchvisions(published: tuple[torch.nn.Module, Path]) -> None:
    network, path = published
    model = models.load("imagenet_resnet50", path)
    sample = photograph()
    picture = Image.fromarray((sample.array * 255).round().astype(np.uint8))
    # torchvision's first weights: shortest side 256, crop 224
    expected = ResNet50_Weights.IMAGENET1K_V1.transforms()(picture)
    inputs = model.preprocess(sample)
    assert (inputs - expected).abs().max() < 2e-6
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        assert torch.equal(model.image_features(inputs[None]), network(inputs[None]))
        assert model.encode_image(inputs[None]).norm(dim=-1).item() == pytest.approx(1, abs=1e-6)


def test_another_size_takes_the_whole_picture() -> None:
    model = models.build("imagenet_resnet50", size=64)
    assert model.preprocess(photograph()).shape == (3, 64, 64)
    assert models.build("imagenet_resnet50", **model.settings()).size == 64  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="below 32"):
        models.build("imagenet_resnet50", size=8)


def test_texts_are_refused_and_other_files_do_not_load(published: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    model = models.build("imagenet_resnet50")
    with pytest.raises(ConfigError, match="no text tower; take its image features"):
        model.tokenize(["a text"])
    state = torch.load(published[1], weights_only=True)
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1"):
        models.load("imagenet_resnet50", tmp_path / "part.pth")
