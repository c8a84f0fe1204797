"""What every model's preprocessing gives, in the smallest type: the same numbers in a quarter of the space."""

from pathlib import Path

import numpy as np
import pytest
import torch

from m3bind import models
from m3bind.data.packing import STEP_ERROR, expand, pack, together
from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.layers.text_encoder import train_wordpiece
from m3bind.pipeline.stored_inputs import levels_of

RANDOM = np.random.default_rng(0)
LEVELS = {
    "biomedclip", "clip", "convirt", "cxr_clip_resnet50", "gloria_resnet50", "imagenet_resnet50", "keep", "medclip_vit",
    "mgca_resnet_50", "pe_core_b16", "plip", "prior", "retclip_vitb16", "ct_net",
}  # fmt: skip
FLOATS = {
    "compact_1d",
    "compact_2d",
    "compact_3d",
    "compact_beat",
    "ct_clip",
    "ecg_clip_repository",
    "flair",
    "merl_resnet18",
}
EXTERNAL = {"hf_clip_any", "open_clip_any", "ecg_clip"}  # need weights or a source of their own


def one_of_each() -> list[str]:
    """A name for every preprocessing among the registered models."""
    first: dict[object, str] = {}
    for name in registry.names():
        first.setdefault(registry.get(name).preprocess, name)
    return sorted(set(first.values()) - EXTERNAL)


def samples() -> list[Sample]:
    """Pictures of several sizes, a volume and a signal."""
    grey, colour = RANDOM.integers(0, 256, (300, 230)), RANDOM.integers(0, 256, (40, 97, 3))
    volume = RANDOM.integers(-1100, 900, (7, 30, 40)).astype(np.float32)
    signal = (RANDOM.integers(-900, 900, (12, 5000)) * 0.005).astype(np.float32)
    return [
        Sample("xray", grey.astype(np.float32) / np.float32(255)),
        Sample("retina", colour.astype(np.float32) / np.float32(255)),
        Sample("ct", volume, spacing=(2.0, 1.0, 1.0), unit="HU"),
        Sample("ecg", signal, rate=500.0),
    ]


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    (folder / "tokenizer.json").write_text(train_wordpiece(["heart and lung"] * 4).to_str())
    return folder


def outline(name: str, assets: Path) -> DualEncoder:
    """The model without weights."""
    if not name.startswith("compact"):
        with torch.device("meta"):
            return models.build(name)
    kinds = {"compact_1d": "ecg", "compact_beat": "ecg", "compact_3d": "ct"}
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return models.build(name, modality=kinds.get(name, "xray"), assets=assets, text_config=config)


@pytest.mark.parametrize("name", one_of_each())
def test_inputs_are_the_same_from_the_smallest_type(name: str, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ct_clip", "ct_net"):  # smaller canvases, to spare time
        monkeypatch.setattr(
            f"m3bind.models.{module}.SHAPE", {"ct_clip": (60, 100, 100), "ct_net": (402, 60, 60)}[module]
        )
    model = outline(name, assets)
    levels, forms = levels_of(model), set()
    for sample in samples():
        try:
            row = model.preprocess(sample).numpy()
        except ConfigError:  # of another kind
            continue
        if name == "ct_net":
            row = row.reshape(-1, *row.shape[2:])
        packed = pack(row, levels)
        back = expand(together([packed], levels)).numpy()[0]
        forms.add(packed.form)
        if packed.form == "step":
            assert np.abs(back - row).max() <= STEP_ERROR * np.ptp(row)
        else:
            np.testing.assert_array_equal(back.view(np.int32), row.view(np.int32))
        if packed.form == "level" and name != "ct_net":
            assert packed.array.dtype == np.uint8 and 4 * packed.nbytes == row.nbytes
    assert forms and (name in LEVELS) == (forms == {"level"}), "a new model: add it to LEVELS or FLOATS"
    assert name in LEVELS | FLOATS


def test_whole_hounsfield_units_are_exact_where_nothing_is_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3bind.models.ct_clip.SHAPE", (20, 40, 40))
    with torch.device("meta"):
        model = models.build("ct_clip")
    volume = RANDOM.integers(-1500, 1500, (24, 40, 30)).astype(np.float32)
    row = model.preprocess(Sample("ct", volume, spacing=(1.5, 0.75, 0.75), unit="HU")).numpy()
    packed = pack(row, levels_of(model))
    assert packed.form == "level" and packed.array.dtype == np.int16
    np.testing.assert_array_equal(expand(together([packed], levels_of(model))).numpy()[0], row)
