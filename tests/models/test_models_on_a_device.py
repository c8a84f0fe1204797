"""Every registered model, with fewer layers, on the pretend device: embeddings and gradients are those of the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import m3bind.models as models
from m3bind.align.lora import inject, lora_parameters
from m3bind.models import registry
from m3bind.models.base import DualEncoder
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.published import PublishedModel
from m3bind.models.weights import reference
from m3bind.models.weights.checkpoint import without_initialisation
from models.tiny_models import TEXTS
from pretend.device import DEVICE, pretend_device

TOLERANCE = 3e-6  # of gradients, relative: CT-CLIP's differ by up to 2e-6 where attention is computed in another form
LAYERS = 2  # of each run of equal layers
OWN = {"modality": "xray", "text": "bert"}
FOLDERS = {"hf_clip_any": "hf_clip_folder", "open_clip_any": "open_clip_plain"}  # fixtures of models in a folder


def make(name: str, fixture: Callable[[str], Any]) -> DualEncoder:
    """The model with generated weights and few layers."""
    kind = registry.get(name)
    with without_initialisation():
        if name in FOLDERS:
            model = models.load(name, fixture(FOLDERS[name]))
        elif issubclass(kind, PublishedModel):
            model = models.build(name)
        else:
            model = models.build(name, fixture("assets"), **OWN)
    shorten(model)
    reference.fill(model)
    return model.eval()


def shorten(module: nn.Module) -> None:
    """Remove all but the first layers of each run of layers with the same class and tensors."""
    for child in list(module.children()):
        if isinstance(child, nn.ModuleList | nn.Sequential):
            forms = [(type(layer), [tuple(t.shape) for t in layer.state_dict().values()]) for layer in child]
            for at in range(len(child) - 1, LAYERS - 1, -1):
                if forms[at][1] and all(forms[at] == forms[at - back] for back in range(1, LAYERS + 1)):
                    del child[at]
        shorten(child)
    if isinstance(module, BertTrunk):
        module.states = tuple(min(state, len(module.bert.encoder.layer)) for state in module.states)


def moved(value: Any, device: str) -> Any:
    return {k: v.to(device) for k, v in value.items()} if isinstance(value, dict) else value.to(device)


def result(model: DualEncoder, part: str, batch: Any, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings of one side, and gradients of its adapters."""
    batch = moved(batch, device)
    rows = model.encode_image(batch) if part == "image" else model.encode_text(batch)
    adapters = lora_parameters(getattr(model, f"{part}_trunk"))
    for parameter in adapters.values():
        parameter.grad = None
    if adapters:
        (rows * torch.linspace(-1, 1, rows.numel()).to(device).view_as(rows)).sum().backward()
    assert rows.device.type == torch.device(device).type
    return rows.detach().cpu(), {n: p.grad.cpu().clone() for n, p in adapters.items() if p.grad is not None}


def marked(name: str) -> Any:
    """Published models are large although they have few layers; that of CT-Net takes minutes."""
    marks = [pytest.mark.whole] if issubclass(registry.get(name), PublishedModel) else []
    return pytest.param(name, marks=[pytest.mark.slow] if name == "ct_net" else marks)


@pytest.mark.parametrize("name", map(marked, models.names()))
def test_embeddings_and_gradients_are_those_of_the_cpu(name: str, request: pytest.FixtureRequest) -> None:
    model = make(name, request.getfixturevalue)
    inputs: dict[str, Any] = {"image": reference.fixed_images(reference._shape(model, reference._preprocessed(model)))}
    own_tokenizer = not isinstance(model, PublishedModel)
    texts = model.tokenize(TEXTS) if own_tokenizer else reference.texts_for(model)
    if texts is not None:
        inputs["text"] = texts
    model.requires_grad_(False)
    for part in inputs:
        if getattr(model.card, f"lora_{part}"):
            torch.manual_seed(0)
            inject(model, part)
            for parameter in lora_parameters(getattr(model, f"{part}_trunk")).values():
                nn.init.normal_(parameter, std=0.02)
    with sdpa_kernel(SDPBackend.MATH):  # the form of attention that the pretend device has
        theirs = {part: result(model, part, batch, "cpu") for part, batch in inputs.items()}
    with pretend_device() as log:
        model.to(DEVICE)
        for part, batch in inputs.items():
            rows, gradients = result(model, part, batch, DEVICE)
            assert (rows - theirs[part][0]).abs().max() < 1e-6
            assert gradients.keys() == theirs[part][1].keys()
            for key, gradient in theirs[part][1].items():
                assert (gradients[key] - gradient).abs().max() <= TOLERANCE * max(1, float(gradient.abs().max())), key
    waiting = [place for place in log.syncs if "models/" in place]
    assert not waiting, "the network itself makes the host wait"
