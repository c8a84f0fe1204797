"""Every binding method and post step on a device without float64: nothing is mixed, results are those of the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from m3bind.align import methods, post
from m3bind.config import AlignConfig, LoraConfig, PostConfig
from m3bind.core.device import pick
from pretend.device import DEVICE, pretend_device
from pretend.steps import assert_same_losses, counted_steps
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 40, "ct": 24}
STEPS = 6
TRAINED = {"steps": STEPS, "batch": 8, "lr": 1e-2}
OPTIONS = {
    "procrustes": [{}, {"center": "fit"}, {"center": "fit+readd"}],
    "relative": [{}],
    "cmcr": [TRAINED, {**TRAINED, "weighted": False}],
    "exmcr": [TRAINED, {**TRAINED, "base": "ct"}],
    "textme": [{**TRAINED, "warm": 2}],
    "medbind_bridges": [TRAINED],
}
SETTINGS = [
    {"method": name, "options": options, **more}
    for name in methods.names()
    for options in OPTIONS.get(name, [{}])
    for more in ([{}] if name != "m3bind" else [{"bridge_maps": "two"}, {"bridge": "identity", "text": "head"}])
]


def bound(settings: AlignConfig, folder: Path, device: str) -> dict[str, NDArray[np.float32]]:
    """Bound images and texts after each post step."""
    towers = methods.get(settings.method).towers
    pairs = toy_pairs(
        SIZES, image="features" if towers else "embedding", text="input" if towers else "embedding", joint_dim=10
    )
    for p in pairs.values():
        p.model.to(device)
    inputs = toy_inputs(pairs, folder)
    inputs.compute = pick(device, "float32", workers=1)
    bridges = methods.get(settings.method).bind(inputs, settings)
    rows = {}
    for m, p in pairs.items():
        bridge = bridges[m].to(device)
        images, texts = p.images.embed(np.arange(len(p))), p.texts.embed(np.concatenate(p.captions))
        for gap in post.GAPS:
            posted = post.after(bridge, PostConfig(gap=gap, iso=(1, 0)), images, texts, p.model)
            with torch.no_grad():
                sides = {"image": posted.image(images), "text": posted.text(texts)}
            rows |= {f"{m} {gap} {side}": value.cpu().numpy() for side, value in sides.items()}
    return rows


@pytest.mark.parametrize("form", SETTINGS, ids=lambda form: "-".join(map(str, form.values()))[:60])
def test_a_method_gives_the_same_on_a_device(form: dict[str, Any], tmp_path: Path) -> None:
    settings = AlignConfig(
        dim=12, pool=200, steps=STEPS, batch=8, shared_batch=8, lr=1e-2, lora=LoraConfig(dropout=0), **form
    )
    rows = bound(settings, tmp_path / "cpu", "cpu")
    with pretend_device(float64=False) as log, counted_steps(log) as waits:
        there = bound(settings, tmp_path / "device", DEVICE)
    assert there.keys() == rows.keys()
    for key, value in rows.items():
        np.testing.assert_allclose(there[key], value, atol=2e-6, err_msg=key)
    if form["method"] in ("procrustes", "relative"):
        assert not waits
    else:
        assert len(waits) == STEPS
        assert max(waits) <= 2
        assert_same_losses(tmp_path / "device" / "log.jsonl", tmp_path / "cpu" / "log.jsonl")
