"""Training steps of every stage by m3bind's own loop, beside a plain loop of transformers, peft and a DataLoader.

Both have the same networks, weights, adapters, inputs and precision. The plain loop pads every text of a batch to the
longest, encodes repeated texts again, and sends float32 images.
"""

import copy
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import m3bind.models as models
from _gpu_measure import Bench, Row, randomise, report_lengths
from m3bind.align import lora
from m3bind.align.methods.base import BindingInputs
from m3bind.align.objective import clip_loss
from m3bind.align.procrustes import Bridge, identity_map
from m3bind.align.stage import AlignStage
from m3bind.config import AlignConfig, DistillConfig, PretrainConfig, TrainConfig
from m3bind.core.device import Compute, pick
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.distill.stage import DistillSampler, DistillStage, Teachers
from m3bind.distill.student import StudentTexts
from m3bind.models.base import DualEncoder, Tokens
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.text_encoder import make_text_encoder, train_wordpiece
from m3bind.models.weights.checkpoint import without_initialisation
from m3bind.models.weights.reference import _preprocessed
from m3bind.pretrain.stage import PretrainStage
from m3bind.training import loader, loop
from m3bind.training.checkpoint import Checkpoints
from m3bind.training.pairs import Images, Pairs, Texts

PAPER = {"xray": "mgca_vit_base", "retina": "flair", "ecg": "ecg_clip", "pathology": "quiltnet_b32", "ct": "ct_clip"}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DIM, WORKERS = 512, 4
_TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "ecg": ("compact_1d", {"seconds": 2.0}),
    "ct": ("compact_3d", {"shape": [6, 16, 16]}),
}
Encode = Callable[[DualEncoder, Tensor], Tensor]


# ---- networks and inputs


class RandomRows:
    """Images stored in 8 bits that become float32 in -1..1 on the device."""

    def __init__(self, count: int, shape: Sequence[int]) -> None:
        random = np.random.default_rng(0)
        self.codes = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        self.shape = (count, *shape)

    def __len__(self) -> int:
        return len(self.codes)

    def packed(self, positions: np.ndarray) -> dict[str, Tensor]:
        return {"codes": torch.from_numpy(self.codes[positions])}

    def expand(self, packed: Mapping[str, Tensor]) -> Tensor:
        return packed["codes"].float() / 127.5 - 1


class RandomTokens:
    """Token ids of report-like texts."""

    def __init__(self, count: int, longest: int, vocabulary: int) -> None:
        random = np.random.default_rng(1)
        self.sizes = report_lengths(count, longest).numpy()
        low, high = min(1000, vocabulary // 2), min(vocabulary - 1, 21000)
        self.ids = [random.integers(low, high, size) for size in self.sizes]
        for row in self.ids:
            row[-1] = vocabulary - 1  # the end of a text: CLIP's tower pools it

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        return self.sizes[ids]

    def padded(self, ids: np.ndarray) -> Tokens:
        table = torch.zeros(len(ids), int(self.sizes[ids].max()), dtype=torch.int64)
        mask = torch.zeros_like(table)
        for row, number in enumerate(ids):
            size = self.sizes[number]
            table[row, :size] = torch.from_numpy(self.ids[number])
            mask[row, :size] = 1
        return {"input_ids": table, "attention_mask": mask}


def build(name: str, bench: Bench, modality: str = "xray") -> DualEncoder:
    """A model with random weights on the device; a small one in its place for a tiny benchmark."""
    text = {"text": "bert", "text_config": SMALL if bench.tiny else BASE, "max_tokens": 32 if bench.tiny else 256}
    with tempfile.TemporaryDirectory() as folder, without_initialisation():
        train_wordpiece(["normal heart and lung"], 60).save(str(Path(folder) / "tokenizer.json"))
        if bench.tiny:
            kind, size = _TINY.get(modality, ("compact_2d", {"image_size": 32}))
            shared = {"modality": modality, "widths": [8, 16], "joint_dim": 16}
            model = models.build(kind, assets=folder, **shared, **size, **text)
        else:
            model = models.build(name, **({"assets": folder, **text} if name == "ecg_clip" else {}))
    model.to(bench.device)
    randomise(model)
    return model


def pairs_of(model: DualEncoder, modality: str, count: int, texts: int) -> Pairs:
    """`count` random images with random texts out of `texts`."""
    table = next(m.num_embeddings for m in model.text_trunk.modules() if isinstance(m, nn.Embedding))
    tokens: Any = RandomTokens(texts, min(model.max_tokens, 236), table)
    rows = RandomRows(count, tuple(_preprocessed(model).shape))
    random = np.random.default_rng(2)
    captions, none = Ragged.of(random.integers(0, texts, (count, 1))), Ragged.of([()] * count)
    images, side = Images(model, "input", rows), Texts(model, "input", TextTable(), tokens)
    return Pairs(modality, model, images, side, captions, none, np.full(count, -1))


# ---- m3bind's loop


def ours(bench: Bench, stage: Any, settings: TrainConfig, compute: Compute | None = None) -> Row:
    """Steps of `m3bind.training.loop`, with its loader, as `train` makes them."""
    compute = compute or dataclasses.replace(pick(str(bench.device)), workers=WORKERS)
    with tempfile.TemporaryDirectory() as folder:
        run = loop._Run(stage, settings, Checkpoints(Path(folder)), "benchmark", 0, compute)
        batches = loader.batches(stage, 0, 1_000_000, compute)
        return _timed(bench, batches, lambda step, batch: run.step(step, batch)["loss"])


def _timed(bench: Bench, batches: Iterator[Any], step: Callable[[int, Any], float]) -> Row:
    """Steps on successive batches: their time, the share of it spent waiting for a batch, items, the last loss."""
    numbers, waited, seen, seconds = itertools.count(), [0.0], [0, 0], [0.0]
    losses: list[float] = []

    def once() -> None:
        start = time.perf_counter()
        batch = next(batches)
        waited[0] += time.perf_counter() - start
        losses.append(step(next(numbers), batch))
        seen[0] += int(batch["items"])
        seen[1] += 1
        bench.synchronise()
        seconds[0] += time.perf_counter() - start

    once()  # workers have started
    waited[0], seconds[0], seen[:] = 0.0, 0.0, [0, 0]
    row = bench.measure(once)
    row["items_per_s"] = seen[0] / seconds[0]
    return row | {"waiting": waited[0] / seconds[0], "loss": losses[-1]}


# ---- the plain loop


class PlainData(Dataset[Any]):
    """Item `step`: per modality, float32 images and padded tokens of the captions and shared texts."""

    def __init__(self, pairs: Mapping[str, Pairs], sizes: Mapping[str, int], shared: int) -> None:
        self.pairs, self.sizes, self.shared = pairs, sizes, shared

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, step: int) -> Any:
        random = np.random.default_rng(step)
        common = random.integers(0, len(next(iter(self.pairs.values())).texts.tokens.sizes), self.shared)  # type: ignore[union-attr]
        batch: dict[str, Any] = {"items": len(common)}
        for m, pairs in self.pairs.items():
            chosen = random.choice(len(pairs), self.sizes[m], replace=False)
            captions = np.concatenate([[pairs.captions[i][0] for i in chosen], common]).astype(np.int64)
            batch[m] = {
                "images": pairs.images.rows.expand(pairs.images.rows.packed(chosen)),
                "tokens": pairs.texts.tokens.padded(captions),  # type: ignore[union-attr]
            }
            batch["items"] += len(chosen)
        return batch


def library_texts(model: DualEncoder, tokens: Tokens) -> Tensor:
    """Unit rows by transformers' own forward; other towers by theirs."""
    trunk = model.text_trunk
    if not isinstance(trunk, BertTrunk):
        return model.encode_text(tokens).float()
    last = trunk.states == (len(trunk.bert.encoder.layer),)
    output = trunk.bert(**tokens, output_hidden_states=not last)
    hidden = output.last_hidden_state if last else sum(output.hidden_states[i] for i in trunk.states)
    mask = tokens["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1) if trunk.pooling == "mean" else hidden[:, 0]
    return F.normalize(model.project_text(pooled).float(), dim=-1)


def plain(
    bench: Bench, towers: Mapping[str, DualEncoder], data: PlainData, mse: float, parts: Mapping[str, int]
) -> Row:
    """Autocast, padded texts, Eq. 6 by loops, AdamW. `parts`: images per recomputed pass, where it is limited."""
    bridges = {m: nn.Linear(model.joint_dim, DIM, bias=False).to(bench.device) for m, model in towers.items()}
    trained = [p for module in (*towers.values(), *bridges.values()) for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5)
    pinned = bench.device.type == "cuda"
    batches = iter(DataLoader(data, batch_size=None, num_workers=WORKERS, pin_memory=pinned))

    def images_of(m: str, images: Tensor) -> Tensor:
        if m not in parts:
            return towers[m].encode_image(images).float()
        cut = torch.split(images, parts[m])
        return torch.cat([checkpoint(towers[m].encode_image, part, use_reentrant=False) for part in cut]).float()

    def step(number: int, batch: Any) -> float:
        total, common = torch.zeros((), device=bench.device), []
        for m, model in towers.items():
            images = batch[m]["images"].to(bench.device, non_blocking=True)
            tokens = {k: v.to(bench.device, non_blocking=True) for k, v in batch[m]["tokens"].items()}
            with bench.autocast():
                image, text = images_of(m, images), library_texts(model, tokens)
            image, text = (F.normalize(bridges[m](x.float()), dim=-1) for x in (image, text))
            total = total + clip_loss(image, text[: len(image)], model.logit_scale.detach())
            common.append(text[len(image) :])
        for first, second in itertools.combinations(common, 2):
            total = total + mse * (first - second).square().sum(1).mean()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return float(total.detach())

    return _timed(bench, batches, step)


# ---- sections


def _align(models_: Mapping[str, DualEncoder], settings: AlignConfig, counts: Mapping[str, int]) -> AlignStage:
    texts = 64 if settings.batch < 16 else 2048
    pairs = {m: pairs_of(model, m, counts[m], texts) for m, model in models_.items()}
    pool = {m: np.arange(texts) for m in pairs}
    bridges = {m: Bridge(identity_map(model.joint_dim, settings.dim)) for m, model in models_.items()}
    return AlignStage(BindingInputs(pairs, pool, Path(), 0), bridges, settings)


def _adapted(model: DualEncoder) -> DualEncoder:
    """A copy with peft's adapters in both towers, as stage 1 has them."""
    copied = copy.deepcopy(model).requires_grad_(False)
    for part in ("text", "image"):
        lora.inject(copied, part)  # type: ignore[arg-type]
    return copied.train()


def _compare(
    bench: Bench, names: Mapping[str, str], forms: Mapping[str, AlignConfig], parts: dict[str, int]
) -> list[Row]:
    """Stage 1 of `names` with each of `forms`, and the plain loop with the batch sizes of the first."""
    rows = []
    first = next(iter(forms.values()))
    sizes = {m: first.batches.get(m, first.batch) for m in names}
    counts = {m: 8 if m == "ct" else 2 * size for m, size in sizes.items()}
    built = {m: build(name, bench) for m, name in names.items()}
    for name, settings in forms.items():
        fresh = {m: copy.deepcopy(model) for m, model in built.items()}
        stage = _align(fresh, settings, counts)
        rows.append(bench.guarded(f"m3bind{name}", partial(ours, bench, stage, settings)))
        del stage, fresh
        bench.release()
    adapted = {m: _adapted(model) for m, model in built.items()}
    texts = 64 if bench.tiny else 2048
    data = PlainData(
        {m: pairs_of(model, m, counts[m], texts) for m, model in adapted.items()}, sizes, first.shared_batch
    )
    weight = first.mse_weight if len(names) > 1 else 0.0
    rows.append(bench.guarded("plain loop", partial(plain, bench, adapted, data, weight, parts)))
    return rows


def clip_step(bench: Bench) -> list[Row]:
    """Stage 1 of one CLIP-like model (BERT-base and ViT-B/16, LoRA in both), 72 pairs and 64 shared texts."""
    size = 4 if bench.tiny else 72
    settings = AlignConfig(batch=size, shared_batch=4 if bench.tiny else 64, dim=DIM, text="lora", image="lora")
    whole = settings.model_copy(update={"micro_batch": 0, "micro_tokens": 0})
    return _compare(bench, {"xray": PAPER["xray"]}, {"": whole}, {})


def paper_step(bench: Bench) -> list[Row]:
    """Stage 1 of the paper's five towers at their batch sizes (72, CT 8), LoRA in both sides of each."""
    size = 4 if bench.tiny else 72
    preset = AlignConfig(
        batch=size, batches={"ct": 2 if bench.tiny else 8}, shared_batch=4 if bench.tiny else 64, dim=DIM, text="lora",
        image="lora", micro_batch=8, micro_batches={"ct": 1, "retina": 2}, micro_tokens=2048,
    )  # fmt: skip
    whole = preset.model_copy(update={"micro_batch": 0, "micro_batches": {"ct": 1}, "micro_tokens": 0})
    forms = {", whole batches": whole, ", parts as in the preset": preset}
    return _compare(bench, PAPER, forms, {"ct": 1})


def pretrain_step(bench: Bench) -> list[Row]:
    """Stage 0 of BERT-base and ViT-B/16, everything trained, 72 pairs."""
    size = 4 if bench.tiny else 72
    settings = PretrainConfig(batch=size, lr=1e-5, augment=False)
    model = build(PAPER["xray"], bench)
    twin = copy.deepcopy(model)
    stage = PretrainStage(pairs_of(model, "xray", 2 * size, 64 if bench.tiny else 2048), settings, 0)
    rows = [bench.guarded("m3bind", partial(ours, bench, stage, settings))]
    del stage, model
    pairs = {"xray": pairs_of(twin.requires_grad_(True).train(), "xray", 2 * size, 64 if bench.tiny else 2048)}
    data = PlainData(pairs, {"xray": size}, 0)
    return [*rows, bench.guarded("plain loop", partial(plain, bench, {"xray": twin}, data, 0.0, {}))]


def distill_step(bench: Bench) -> list[Row]:
    """Stage 2, phase B: a BERT-base student of five teachers, 72 pairs of each and 64 shared texts."""
    size, texts = (4, 64) if bench.tiny else (72, 2048)
    settings = DistillConfig(batch=size, shared_batch=4 if bench.tiny else 64, lr=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        train_wordpiece(["normal heart and lung"], 60).save(str(Path(folder) / "tokenizer.json"))
        config = SMALL if bench.tiny else BASE
        student = make_text_encoder("bert", dim=DIM, assets=Path(folder), config=config, max_tokens=256)
    randomise(student.to(bench.device))
    tokens: Any = RandomTokens(texts, 236, student.tokenizer.tokenizer.get_vocab_size())
    random = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        rows = random.standard_normal((count, DIM)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    pairs = {}
    for m in PAPER:
        captions, none = Ragged.of(random.integers(0, texts, (2 * size, 1))), Ragged.of([()] * (2 * size))
        pairs[m] = Pairs(m, None, None, None, captions, none, np.full(len(captions), -1))  # type: ignore[arg-type]
    teachers = Teachers({m: unit(texts) for m in PAPER}, {m: unit(2 * size) for m in PAPER}, dict.fromkeys(PAPER, 14.0))
    pool, shares = {m: np.arange(texts) for m in PAPER}, dict.fromkeys(PAPER, 1 / len(PAPER))
    sampler = DistillSampler("b", pairs, pool, shares, settings, 0)
    stage = DistillStage(sampler, StudentTexts(student, tokens), teachers, settings)
    return [bench.guarded("m3bind", partial(ours, bench, stage, settings))]
