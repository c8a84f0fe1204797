"""Binding methods and post steps on the device: closed forms equal the CPU's, trained ones are close."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from align.test_methods import BASE, ON_EMBEDDINGS, QUICK, related_pairs
from m3bind.align import methods, post
from m3bind.align.procrustes import BaseBridge
from m3bind.config import AlignConfig, PostConfig
from m3bind.core.device import Compute
from m3bind.training.pairs import Pairs
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 60, "ct": 30, "ecg": 40}
CLOSED = ("procrustes", "relative")
CPU = torch.device("cpu")
Bound = dict[str, tuple[Tensor, Tensor]]


def pairs_for(name: str) -> dict[str, Pairs]:
    return related_pairs() if name in ON_EMBEDDINGS else toy_pairs(SIZES, image="input", text="input", joint_dim=10)


def bind(name: str, folder: Path, device: torch.device) -> Bound:
    """Per modality, image and text rows after binding on `device`, on the host."""
    torch.manual_seed(0)
    pairs = pairs_for(name)
    for p in pairs.values():
        p.model.to(device)
    options = {"options": ON_EMBEDDINGS[name]} if name in ON_EMBEDDINGS else QUICK | {"lr": 1e-3, "steps": 10}
    settings = AlignConfig(**BASE, method=name, **options)
    inputs = replace(toy_inputs(pairs, folder), compute=Compute(device))
    bridges = methods.get(name).bind(inputs, settings)
    return {m: sides(bridges[m], p) for m, p in pairs.items()}


@torch.no_grad()
def sides(bridge: BaseBridge, pairs: Pairs) -> tuple[Tensor, Tensor]:
    device = pairs.model.logit_scale.device
    bridge.to(device).eval()
    random = torch.Generator().manual_seed(0)
    rows = [F.normalize(torch.randn(20, pairs.model.joint_dim, generator=random), dim=1) for _ in range(2)]
    return bridge.image(rows[0].to(device)).cpu(), bridge.text(rows[1].to(device)).cpu()


@pytest.mark.parametrize("name", methods.names())
def test_a_method_binds_as_on_the_cpu(name: str, device: torch.device, tmp_path: Path) -> None:
    wanted, found = bind(name, tmp_path / "cpu", CPU), bind(name, tmp_path / "device", device)
    for m, both in wanted.items():
        for mine, theirs in zip(found[m], both):
            if name in CLOSED:
                torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
            else:
                assert float(F.cosine_similarity(mine, theirs).min()) >= 0.99, m


@pytest.mark.parametrize(
    "settings",
    [*({"gap": gap} for gap in ("centre", "rotate", "realign", "pc")), {"iso": (1, 2)}],
    ids=lambda s: str(next(iter(s.items()))),
)
def test_a_post_step_is_that_of_the_cpu(settings: dict, device: torch.device, tmp_path: Path) -> None:
    pairs = related_pairs()
    bridges = methods.get("procrustes").bind(toy_inputs(pairs, tmp_path), AlignConfig(**BASE, method="procrustes"))
    random = torch.Generator().manual_seed(0)
    for m, p in pairs.items():
        rows = [F.normalize(torch.randn(40, p.model.joint_dim, generator=random), dim=1) for _ in range(2)]
        found = []
        for where in (CPU, device):
            p.model.to(where)
            bridge = bridges[m].to(where)
            steps = PostConfig(**settings)
            after = post.after(bridge, steps, rows[0].to(where), rows[1].to(where), p.model)
            found.append(sides(after, p))
            bridges[m].to(CPU)
            p.model.to(CPU)
        for theirs, mine in zip(*found):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
