"""Frozen parts are computed once; a hash detects whether a network has changed."""

import torch
from torch import nn

from m3bind.data.cache import FeatureCache
from m3bind.models.weights.checkpoint import hash_state
from m3bind.pipeline.features import FeatureExtractor


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
