"""Towers alone: embedding passes beside open_clip's, layouts and kernels of texts, precisions, torch.compile, AdamW."""

import copy
import functools
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertModel

import m3bind.models as models
from _gpu_measure import Bench, Row, chunks, operations, randomise, report_lengths, tokens_of
from m3bind.data.batching import length_buckets
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.bert_packed import Packed

CONTEXT = 77  # tokens of open_clip's texts


# ---- embedding passes


def _twins(bench: Bench) -> tuple[DualEncoder, nn.Module]:
    """m3bind's CLIP and open_clip's with the same random weights, on the device, in eval mode."""
    patch = 32 if bench.tiny else 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = randomise(open_clip.create_model(f"ViT-B-{patch}", pretrained=None, device=bench.device)).eval()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "open_clip_pytorch_model.bin")
        ours = models.load(f"quiltnet_b{patch}", Path(folder) / "open_clip_pytorch_model.bin")
    for model in (ours, theirs) if bench.tiny else ():
        _shorten(model)
    return ours.to(bench.device).requires_grad_(False), theirs.requires_grad_(False)


def _shorten(module: nn.Module) -> None:
    """One layer of each list of layers."""
    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            del child[1:]


def _inference(run: Callable[[], object]) -> Callable[[], object]:
    return torch.inference_mode()(run)


def _cosine(found: Tensor, exact: Tensor) -> float:
    return float(F.cosine_similarity(found.float(), exact.float()).min())


def image_embedding(bench: Bench) -> list[Row]:
    """Images through ViT-B/16, from the device's memory: ours and open_clip's."""
    ours, theirs = _twins(bench)
    size = 2 if bench.tiny else 512
    images = torch.randn(size, 3, 224, 224, device=bench.device)
    half = copy.deepcopy(ours).to(torch.bfloat16)
    their_half = copy.deepcopy(theirs).to(torch.bfloat16)
    rounded = images.to(torch.bfloat16)
    compiled = torch.compile(ours.encode_image)

    def autocast(encode: Callable[[Tensor], Tensor]) -> Tensor:
        with bench.autocast():
            return encode(images)

    forms: dict[str, tuple[Callable[[], Tensor], str]] = {
        "m3bind, float32": (lambda: ours.encode_image(images), "float32"),
        "m3bind, autocast": (lambda: autocast(ours.encode_image), "bfloat16"),
        "m3bind, bfloat16 weights": (lambda: half.encode_image(rounded), "bfloat16"),
        "m3bind, autocast, compiled": (lambda: autocast(compiled), "bfloat16"),
        "open_clip, float32": (lambda: theirs.encode_image(images, normalize=True), "float32"),
        "open_clip, autocast": (lambda: autocast(lambda x: theirs.encode_image(x, normalize=True)), "bfloat16"),
        "open_clip, bfloat16 weights": (lambda: their_half.encode_image(rounded, normalize=True), "bfloat16"),
    }
    with torch.inference_mode():
        exact = theirs.encode_image(images[:2], normalize=True)
        flop = operations(forms["m3bind, float32"][0])
    rows = []
    for name, (run, dtype) in forms.items():
        row = bench.guarded(name, lambda run=run, dtype=dtype: bench.measure(_inference(run), size, 2, dtype, flop))
        if "error" not in row:
            with torch.inference_mode():
                row["cosine"] = _cosine(run()[:2], exact)
        rows.append(row)
    return rows


def text_embedding(bench: Bench) -> list[Row]:
    """Report-like texts of at most 77 tokens through CLIP's text tower: ours by length, open_clip's padded to 77."""
    ours, theirs = _twins(bench)
    size = 4 if bench.tiny else 2048
    lengths = report_lengths(size, CONTEXT - 1)
    tokens = tokens_of(lengths, 49000, CONTEXT)
    tokens["input_ids"][torch.arange(size), lengths - 1] = 49407  # the end, which is pooled
    groups = [torch.as_tensor(group) for group in length_buckets(lengths.tolist(), 16384)]
    batches = [_cut(tokens, group, lengths, bench.device) for group in groups]
    whole = tokens["input_ids"].to(bench.device)

    def grouped() -> Tensor:
        with bench.autocast():
            return torch.cat([ours.encode_text(batch) for batch in batches])

    def padded() -> Tensor:
        with bench.autocast():
            return torch.cat([theirs.encode_text(whole[part], normalize=True) for part in chunks(size, 256)])

    with torch.inference_mode():
        exact = theirs.encode_text(whole[groups[0][:2].to(bench.device)], normalize=True)
    rows = []
    for name, run in {"m3bind, autocast, by length": grouped, "open_clip, autocast, padded to 77": padded}.items():
        row = bench.guarded(name, lambda run=run: bench.measure(_inference(run), size))
        if name.startswith("m3bind") and "error" not in row:
            with torch.inference_mode():
                row["cosine"] = _cosine(grouped()[:2], exact)
        rows.append(row)
    return rows


def _cut(tokens: Tokens, group: Tensor, lengths: Tensor, device: torch.device) -> Tokens:
    """The texts `group`, padded to the longest of them."""
    longest = int(lengths[group].max())
    return {name: value[group, :longest].to(device) for name, value in tokens.items()}


# ---- texts


def _bert(bench: Bench) -> BertConfig:
    small = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    return BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **(small if bench.tiny else {}))


def _adapt(module: nn.Module) -> None:
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"]), module)


def text_layouts(bench: Bench) -> list[Row]:
    """136 texts of 10 to 120 tokens through BERT-base: padded, packed, and transformers' own forward."""
    count = 8 if bench.tiny else 136
    lengths = torch.linspace(120, 10, count).round().long()
    tokens = {name: value.to(bench.device) for name, value in tokens_of(lengths, 28000).items()}
    longer = {name: F.pad(value, (0, 256 - value.shape[1])) for name, value in tokens.items()}
    trunk = BertTrunk(_bert(bench), "cls").to(bench.device).requires_grad_(False)
    randomise(trunk)
    library = BertModel(_bert(bench), add_pooling_layer=False).to(bench.device).requires_grad_(False)
    library.load_state_dict(trunk.bert.state_dict())
    padded = trunk._layouts

    def packed(real: Tensor) -> list[tuple[Tensor | None, Packed]]:
        return [(torch.arange(count, device=real.device), Packed(real, real.sum(1)))]

    def ours(layout: Callable[[Tensor], object]) -> Tensor:
        trunk._layouts = layout  # type: ignore[method-assign, assignment]
        with bench.autocast():
            return trunk(**tokens)

    def theirs(batch: Tokens) -> Tensor:
        with bench.autocast():
            return library(**batch).last_hidden_state[:, 0]

    forms = {
        "m3bind, padded": functools.partial(ours, padded),
        "m3bind, packed": functools.partial(ours, packed),
        "transformers, padded to the longest": functools.partial(theirs, tokens),
        "transformers, padded to 256": functools.partial(theirs, longer),
    }
    rows = []
    with torch.inference_mode():
        exact = theirs(tokens)
    for name, run in forms.items():
        row = bench.guarded(f"forward: {name}", lambda run=run: bench.measure(_inference(run), count))
        if "error" not in row:
            with torch.inference_mode():
                row["cosine"] = _cosine(run(), exact)
        rows.append(row)
    _adapt(trunk)
    _adapt(library)
    trained = [p for module in (trunk, library) for p in module.parameters() if p.requires_grad]

    def step(run: Callable[[], Tensor]) -> None:
        run().float().square().mean().backward()
        for parameter in trained:
            parameter.grad = None

    for name, run in forms.items():
        rows.append(bench.guarded(f"LoRA step: {name}", lambda run=run: bench.measure(lambda: step(run), count)))
    return rows


def attention_kernels(bench: Bench) -> list[Row]:
    """Masked attention of BERT-base with lengths that vary: each kernel, and what a new shape costs at first."""
    heads, width, texts = (2, 16, 4) if bench.tiny else (12, 64, 136)
    steps = range(3) if bench.tiny else range(40)
    kinds = {
        "default": None,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    if bench.device.type == "cpu":
        kinds = {"default": None, "math": SDPBackend.MATH}

    def inputs(length: int) -> tuple[Tensor, Tensor]:
        states = torch.randn(texts, length, 3, heads, width, device=bench.device, dtype=torch.bfloat16)
        real = (
            torch.arange(length, device=bench.device) < torch.linspace(length, 10, texts, device=bench.device)[:, None]
        )
        bias = torch.zeros(real.shape, device=bench.device, dtype=torch.bfloat16).masked_fill_(~real, float("-inf"))
        return states.permute(2, 0, 3, 1, 4), bias[:, None, None]

    def attend(states: Tensor, bias: Tensor, kind: SDPBackend | None) -> Tensor:
        q, k, v = (x.detach().requires_grad_() for x in states.unbind())
        if kind is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            with sdpa_kernel(kind):
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out.sum().backward()
        return out

    def first_pass(kind: SDPBackend | None, offset: int) -> Row:
        shapes = [inputs(60 + offset + 3 * number) for number in steps]
        bench.synchronise()
        times = []
        for _ in range(2):
            start = time.perf_counter()
            for states, bias in shapes:
                attend(states, bias, kind)
            bench.synchronise()
            times.append(1e3 * (time.perf_counter() - start) / len(shapes))
        return {"ms": times[1], "ms_new_shape": times[0]}

    return [bench.guarded(name, lambda k=kind, o=o: first_pass(k, o)) for o, (name, kind) in enumerate(kinds.items())]


# ---- training parts


def optimisers(bench: Bench) -> list[Row]:
    """One AdamW step of BERT-base's parameters: fused, grouped, one by one."""
    shapes = [p.shape for p in BertModel(_bert(bench)).parameters()]
    rows = []
    for name, options in {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}}.items():
        parameters = [nn.Parameter(torch.randn(shape, device=bench.device)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, **options)
        rows.append(bench.guarded(f"AdamW, {name}", lambda o=optimiser: bench.measure(o.step, flop=0)))
    return rows


def recomputation(bench: Bench) -> list[Row]:
    """Forward and backward of ViT-B/16 with 72 images: whole batch, and in recomputed parts of 8."""
    from m3bind.training.pairs import in_parts

    ours, _ = _twins(bench)
    size, part = (2, 1) if bench.tiny else (72, 8)
    images = torch.randn(size, 3, 224, 224, device=bench.device)
    ours.image_trunk.requires_grad_(True)

    def step(parts: int, recompute: bool) -> None:
        with bench.autocast():
            out = in_parts(lambda x: ours.encode_image(x).float(), torch.split(images, parts), recompute)
        out.square().mean().backward()
        ours.zero_grad(set_to_none=True)

    forms = {"whole batch": (size, False), f"recomputed in parts of {part}": (part, True)}
    return [
        bench.guarded(name, lambda p=parts, r=recompute: bench.measure(lambda: step(p, r), size))
        for name, (parts, recompute) in forms.items()
    ]
