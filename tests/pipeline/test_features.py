"""Frozen parts are computed once; a hash detects whether a network has changed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m3bind.data.cache import FeatureCache
from m3bind.data.records import Record
from m3bind.models.layers.augment import ItemRandom
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.features import FeatureExtractor
from m3bind.training.pairs import TextTable
from pretend.device import DEVICE, pretend_device
from toys import ToyEncoder


def test_the_hash_follows_the_weights(tmp_path):
    encoder, network = FeatureExtractor(FeatureCache(tmp_path)), nn.Linear(3, 2)
    seen = [encoder._hash(network)]
    assert encoder._hash(network) == seen[0] == hash_state(network.state_dict())
    with torch.no_grad():
        network.weight.add_(1)  # as an optimiser does
    seen.append(encoder._hash(network))
    network.load_state_dict({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    seen.append(encoder._hash(network))
    network.weight.data += 1  # as merging an adapter does: no mark is left
    encoder.invalidate_hashes()
    seen.append(encoder._hash(network))
    assert len(set(seen)) == 4 and seen[-1] == hash_state(network.state_dict())


@pytest.mark.parametrize("views", [1, 2])
def test_a_model_on_a_device_gives_the_same_arrays(
    tmp_path: Path, make_picture: Callable[..., Path], views: int
) -> None:
    texts = ["large heart", "normal", "small nodule left lung"]
    records = [
        Record(f"{n}", "xray", make_picture(tmp_path / f"{n}.png", "xray", n), "", (), (text,), (), f"{n}", "train", "")
        for n, text in enumerate(texts)
    ]
    model = ToyEncoder()

    def everything(extractor: FeatureExtractor) -> list[NDArray[np.float32]]:
        table = TextTable()
        table.ids(texts)
        return [
            extractor.image_features(records, model, views),
            extractor.image_embeddings(records, model),
            extractor.text_features(texts, model),
            extractor.text_side(model, table, "embedding").embed(np.arange(3)).detach().cpu().numpy(),
        ]

    theirs = everything(FeatureExtractor(FeatureCache(tmp_path / "cpu")))
    with pretend_device() as log:
        model.to(DEVICE)
        ours = everything(FeatureExtractor(FeatureCache(tmp_path / "device")))
    assert log.operations["aten.mm.default"] or log.operations["aten.addmm.default"]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


class Degrading(ToyEncoder):
    def degrade(self, batch: Tensor, random: ItemRandom, probability: float) -> Tensor:
        return batch + (random.uniform() < probability)[:, None]


def test_views_that_lose_quality(tmp_path: Path, make_picture: Callable[..., Path]) -> None:
    """View 0 is the image; the others change with `degrade`, whatever the cache holds."""
    records = [
        Record(f"{n}", "xray", make_picture(tmp_path / f"{n}.png", "xray", n), "", (), ("x",), (), f"{n}", "train", "")
        for n in range(3)
    ]
    model, extractor = Degrading(), FeatureExtractor(FeatureCache(tmp_path / "cache"))
    plain, degraded, again = (extractor.image_features(records, model, 3, degrade) for degrade in (0.0, 1.0, 0.0))
    np.testing.assert_array_equal(plain, again)
    np.testing.assert_allclose(plain[:, 0], degraded[:, 0], atol=1e-6)
    assert (np.abs(plain[:, 1:] - degraded[:, 1:]).max((1, 2)) > 1e-3).all()
    embedded = extractor.image_embeddings(records, model, 3, 1.0)
    np.testing.assert_allclose(embedded[:, 0], extractor.image_embeddings(records, model), atol=1e-6)
    assert embedded.shape == (3, 3, model.joint_dim)
    assert (np.abs(embedded[:, 1:] - embedded[:, :1]).max((1, 2)) > 1e-4).all()
