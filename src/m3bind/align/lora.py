"""Low-rank adapters (LoRA) in the towers of a dual encoder: inject, freeze running statistics, save, merge.

* `inject`: adapters on the modules named by a model's card, everything else frozen.
* `freeze_running_stats`: BatchNorm statistics and codebooks stay unchanged, also after `.train()`.
* `lora_parameters`: the adapters' parameters by name.
* `merge`: adapters added to the weights; module classes and state-dict keys are those of the model again.

An adapter adds (alpha / r) * B A to a weight W (out, in), with A (r, in) and B (out, r), B starting at zero.
LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685. The layers are those of peft.

Possible targets: nn.Linear, convolutions, embeddings, and nn.MultiheadAttention as a whole (open_clip's `attn`). The
latter has query, key and value in one parameter, so its adapter covers all three and the output projection, and peft
supports no adapter dropout there (it is set to 0 if every target is such a module; mixed targets are an error).
"""

import types
from typing import Any, Literal

from torch import nn
from torch.autograd.graph import increment_version
from torch.nn.modules.batchnorm import _NormBase

from m3bind.config import LoraConfig
from m3bind.errors import ConfigError
from m3bind.models.base import DualEncoder

Part = Literal["text", "image"]
# Buffers changed by a forward pass in train mode: normalisation statistics, moving-average codebooks, power iteration.
_DRIFTING = {"running_mean", "running_var", "embed_avg", "cluster_size", "ema_w", "ema_count", "_u", "weight_u"}
_FAST_PATH = "activation_relu_or_gelu"


def inject(model: DualEncoder, part: Part, settings: LoraConfig | None = None) -> list[str]:
    """Inject adapters into the trunk of one tower, at the targets named by its card (`lora_text`, `lora_image`).

    The trunk's weights are frozen, the adapters trainable; the model's output does not change (B is zero). A target
    matches a module whose dotted name equals it or ends with it, or the trunk itself by the name "trunk".

    Returns:
        Names of the modules with an adapter, relative to the trunk ("trunk" is the trunk itself).

    Raises:
        ConfigError: the card names no targets, a target matches no module, or the part already has adapters.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    settings = settings or LoraConfig()
    attribute = f"{part}_trunk"
    holder = nn.ModuleDict({"trunk": getattr(model, attribute)})
    targets = model.card.lora_text if part == "text" else model.card.lora_image
    matched = _targets(holder, targets, type(model).name or type(model).__name__, part)
    fused = [isinstance(holder.get_submodule(name), nn.MultiheadAttention) for name in matched]
    if any(fused) and not all(fused):
        raise ConfigError(f"LoRA targets {targets} mix nn.MultiheadAttention with other modules; name one kind only.")
    dropout = 0.0 if all(fused) else settings.dropout
    config = PeftConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=dropout, bias="none", target_modules=matched
    )
    holder["trunk"].requires_grad_(False)
    inject_adapter_in_model(config, holder)
    for name in matched:  # peft leaves its dropout in train mode, also inside a model in eval mode
        adapter: Any = holder.get_submodule(name)
        adapter.train(adapter.get_base_layer().training)
    setattr(model, attribute, holder["trunk"])
    _fast_path(holder["trunk"], False)
    return [name.removeprefix("trunk.") for name in matched]


def _targets(holder: nn.ModuleDict, targets: tuple[str, ...], model: str, part: Part) -> list[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = dict(holder.named_modules())
    if any(isinstance(module, BaseTunerLayer) for module in modules.values()):
        raise ConfigError(f"the {part} tower of {model} already has adapters; merge them first.")
    leaves = {name.rpartition(".")[2] for name, child in modules.items() if isinstance(child, nn.Linear)}
    hint = f"Its linear layers are called: {', '.join(sorted(leaves)) or 'none'}."
    if not targets:
        raise ConfigError(f"the card of {model} names no LoRA targets (lora_{part}). {hint}")
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in modules):
            raise ConfigError(f"LoRA target {target!r} (lora_{part} of {model}) matches no module. {hint}")
    endings = tuple(f".{target}" for target in targets)
    return [name for name in modules if f".{name}".endswith(endings)]


def _fast_path(module: nn.Module, on: bool) -> None:
    """The fast path of nn.TransformerEncoderLayer in eval mode bypasses the adapters: disable or restore it."""
    for child in module.modules():
        if isinstance(child, nn.TransformerEncoderLayer):
            if on:
                setattr(child, _FAST_PATH, child.__dict__.pop("_before_lora", getattr(child, _FAST_PATH)))
            else:
                child.__dict__.setdefault("_before_lora", getattr(child, _FAST_PATH))
                setattr(child, _FAST_PATH, 0)


def freeze_running_stats(module: nn.Module) -> list[str]:
    """Fix every submodule whose state changes in train mode to eval mode, also after `.train()`; returns their names.

    These are normalisation layers with running statistics, codebooks updated as moving averages (only the codebook: a
    quantiser's straight-through gradient remains), and spectral normalisation.
    """
    names = []
    for name, child in module.named_modules():
        tracked = isinstance(child, _NormBase) and child.track_running_stats
        if tracked or _DRIFTING.intersection(key for key, _ in child.named_buffers(recurse=False)):
            child.eval()
            child.train = types.MethodType(_stay_in_eval, child)
            names.append(name)
    return names


def _stay_in_eval(self: nn.Module, mode: bool = True) -> nn.Module:
    for child in self.modules():
        child.training = False
    return self


def lora_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by their names in `module`."""
    return {name: parameter for name, parameter in module.named_parameters() if ".lora_" in f".{name}"}


def merge(model: nn.Module) -> int:
    """Add every adapter to its weight and restore the model's own modules; returns the number of adapters.

    Afterwards classes and state-dict keys are those before `inject`, and in eval mode the outputs are the adapted ones.
    The model stays frozen. Modules without adapters do not change.
    """
    from peft.tuners.lora.layer import LoraLayer

    count = 0
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, LoraLayer) or not _is_attached(model, name, layer):
            continue
        adapted: Any = layer
        if isinstance(adapted.get_base_layer(), nn.MultiheadAttention):
            plain = adapted.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            adapted.merge()
            plain = adapted.get_base_layer()
        plain.requires_grad_(False)
        for parameter in plain.parameters():
            increment_version(parameter)  # peft changes `.data`, unseen by whoever holds copies in other precisions
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
        count += 1
    _fast_path(model, True)
    return count


def _is_attached(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether `name` still refers to `module`: merging an attention module removes its inner adapters."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return False
