import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export.students import HEADS, TEXTS, student
from m3bind.errors import ConfigError
from m3bind.export.student import Padded, plain_layers

PLAIN = (nn.Linear, nn.LayerNorm, nn.GELU, nn.Tanh)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_plain_layers_compute_what_the_head_does(head, scale):
    encoder = student(head)
    layers = plain_layers(encoder)
    assert all(type(layer) in PLAIN for layer in layers)
    features = torch.randn(50, 24, generator=torch.Generator().manual_seed(1)) * scale
    with torch.no_grad():
        ours, theirs = (F.normalize(part(features), dim=1) for part in (encoder.head, layers))
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "pooler"])
def test_padded_equals_packed(pooling):
    encoder = student(pooling=pooling)
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        np.testing.assert_allclose(Padded(encoder)(**tokens), encoder.encode(tokens), atol=1e-6)


def test_the_students_own_weights_are_left_alone():
    encoder = student("linear")
    plain_layers(encoder)[0].weight.data.zero_()
    assert float(encoder.head.weight.abs().sum()) > 0


def test_what_no_other_library_has_is_refused():
    with pytest.raises(ConfigError, match="padding"):
        Padded(student(pooling="padded"))
    encoder = student()
    encoder.head = nn.ReLU()
    with pytest.raises(ConfigError, match="ReLU"):
        plain_layers(encoder)
    encoder = student()
    encoder.trunk.states = (1,)
    with pytest.raises(ConfigError, match="hidden states"):
        Padded(encoder)
    encoder = student()
    encoder.trunk.bert.lora_A = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="merge"):
        Padded(encoder)
