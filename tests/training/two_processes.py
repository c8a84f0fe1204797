"""Run by test_parallel.py in one or two processes: 20 steps of each stage, weights and losses saved by rank 0."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from m3bind.align import methods
from m3bind.config import AlignConfig, DistillConfig, LoraConfig, PretrainConfig, StudentConfig
from m3bind.core.device import pick
from m3bind.data.tokens import TokenStore
from m3bind.distill.stage import DistillSampler, DistillStage, Teachers
from m3bind.distill.student import StudentTexts
from m3bind.models.layers.text_encoder import TextEncoder, make_text_encoder, train_wordpiece
from m3bind.pretrain.stage import PretrainStage
from m3bind.training.loop import train
from m3bind.training.parallel import join, world
from toys import toy_inputs, toy_pairs

SIZES = {"xray": 37, "ct": 21, "ecg": 50}


def student_of(folder: Path, texts: list[str]) -> TextEncoder:
    if not (folder / "tokenizer.json").exists():
        train_wordpiece(texts, vocab_size=200).save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return make_text_encoder("bert", dim=16, assets=folder, config=config)


def main(folder: Path) -> None:
    compute = pick("cpu", "float32")
    join(compute.device)
    steps = {"steps": 20, "batch": 9, "lr": 1e-2}
    pre = PretrainConfig(**steps, augment=False)
    pairs = toy_pairs(SIZES)
    train(PretrainStage(pairs["xray"], pre, 1), pre, folder / "pretrain", 1, compute)
    align = AlignConfig(
        **steps, dim=16, shared_batch=7, pool=40, image="lora", text_contrastive=0.5, lora=LoraConfig(dropout=0.0)
    )
    inputs = toy_inputs(pairs, folder / "align", seed=1)
    bridges = methods.get("m3bind").bind(inputs, align)
    table = pairs["xray"].texts.table
    everything = torch.arange(len(table))
    texts = {m: bridges[m](inputs.embed_texts(m, everything)).detach().numpy() for m in pairs}
    with torch.no_grad():
        images = {m: bridges[m](p.images.embed(np.arange(len(p)))).numpy() for m, p in pairs.items()}
    settings = DistillConfig(**steps, shared_batch=7, student=StudentConfig(text="bert"))
    student = student_of(folder, table)
    wrapped = StudentTexts(student, TokenStore(folder / "tokens", student.tokenize).table(table))
    teachers = Teachers(texts, images, dict.fromkeys(pairs, 10.0))
    shares = inputs.pool_probabilities(settings.balance)
    for phase in "ab":
        sampler = DistillSampler(phase, pairs, inputs.pool, shares, settings, 1)
        stage = DistillStage(sampler, wrapped, teachers, settings)
        train(stage, settings, folder / phase, 1, compute)
    if world()[0] == 0:
        state = {f"bridge.{m}": b.weight.detach().clone() for m, b in bridges.items()}
        state |= {f"student.{k}": v.clone() for k, v in student.state_dict().items()}
        for m, p in pairs.items():
            state |= {f"{m}.{k}": v.clone() for k, v in p.model.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "weights.safetensors")
        np.save(folder / "world.npy", int(os.environ.get("WORLD_SIZE", "1")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
