"""The median-beat ECG tower: definition of the beat and rhythm features, and their head."""

import numpy as np
import pytest
import torch

from m3bind.modalities.base import Sample
from m3bind.models.compact_beat import AFTER, BEFORE, median_beat
from m3bind.models.layers.heads import make_head


def record(intervals: list[float], seconds: float = 10.0, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """12 leads with a narrow R wave and a T wave after each interval, at 100 Hz; lead k is k/12 mV high."""
    time = np.arange(int(seconds * 100)) / 100
    wave = np.zeros_like(time)
    at = 0.3
    index = 0
    while at < seconds:
        wave += np.exp(-(((time - at) / 0.02) ** 2)) + 0.2 * np.exp(-(((time - at - 0.25) / 0.05) ** 2))
        at += intervals[index % len(intervals)]
        index += 1
    heights = np.arange(1, 13)[:, None] / 12
    random = np.random.default_rng(seed)
    return (heights * wave + noise * random.standard_normal((12, len(time)))).astype(np.float32)


def test_the_beat_is_centred_on_its_peak_and_keeps_voltage():
    beat, rhythm = median_beat(record([0.8]))
    assert beat.shape == (12, BEFORE + AFTER)
    assert abs(int(beat[11].argmax()) - BEFORE) <= 4
    assert beat[11].max() / beat[5].max() == pytest.approx(2, rel=0.05)
    assert 0.7 < beat[11].max() < 1.2
    assert rhythm[0] == pytest.approx(0.8, abs=0.02)
    assert rhythm[1] < 0.02


def test_irregular_rhythm_shows_in_the_features():
    regular = median_beat(record([0.8], noise=0.02))[1]
    irregular = median_beat(record([0.5, 1.1, 0.7, 0.9], noise=0.02))[1]
    assert irregular[1] > 5 * regular[1] and irregular[2] > 5 * regular[2]


def test_noise_is_averaged_away():
    clean, noisy = median_beat(record([0.8]))[0], median_beat(record([0.8], noise=0.1))[0]
    assert np.abs(clean - noisy).std() < 0.06


@pytest.mark.parametrize("signal", [np.zeros((12, 1000), np.float32), np.ones((12, 300), np.float32)])
def test_without_beats_it_still_answers(signal):
    beat, rhythm = median_beat(signal)
    assert np.isfinite(beat).all() and np.isfinite(rhythm).all()


def test_preprocess_accepts_other_rates(tmp_path):
    from m3bind.models import registry
    from m3bind.models.layers.tokenizer import train_wordpiece

    train_wordpiece(["normal ecg", "atrial fibrillation"], vocab_size=100).save(str(tmp_path / "tokenizer.json"))
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = registry.build("compact_beat", assets=tmp_path, text_config=config)
    at_100 = record([0.8])
    at_500 = np.repeat(at_100, 5, axis=1)
    a = model.preprocess(Sample("ecg", at_100, rate=100.0))
    b = model.preprocess(Sample("ecg", at_500, rate=500.0))
    assert a.shape == b.shape == (964,)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.95
    assert model.frozen == ("image_trunk",)
    assert model.encode_image(a[None]).shape == (1, 64)


def test_mlp_head_standardises_by_what_calibrate_saw():
    torch.manual_seed(0)
    head = make_head("mlp", 6, 3, dropout=0.0, dropout_in=0.0)
    features = torch.randn(50, 6) * torch.tensor([1.0, 10, 100, 0.1, 1, 0]) + 5
    head.calibrate(features)
    standard = (features - head.mean) / head.std
    assert torch.allclose(standard[:, :5].mean(0), torch.zeros(5), atol=1e-4)
    assert torch.allclose(standard[:, :5].std(0, correction=0), torch.ones(5), atol=1e-4)
    assert torch.isfinite(head(features)).all()
    assert {"mean", "std"} <= set(head.state_dict())
