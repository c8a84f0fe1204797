"""Makers of tiny folders in other libraries' formats, from configurations: no network, no downloads."""

import json
from pathlib import Path

import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "no acute findings in the chest",
    "normal sinus rhythm with left axis deviation",
    "a malignant nodule in the right upper lobe of the lung",
    "mild diabetic retinopathy with a few microaneurysms",
    "atrial fibrillation",
]


def clip_tokenizer_files(folder: Path) -> int:
    """A byte-level BPE without merges, as CLIP's tokenizer; returns the size of its vocabulary."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: row for row, name in enumerate(names)}, merges=[], model_max_length=32)
    tokenizer.save_pretrained(str(folder))
    return len(names)


def image_processor_files(folder: Path, kind: str = "CLIPImageProcessor") -> None:
    import transformers

    size = {"shortest_edge": 32} if kind.startswith("CLIP") else {"height": 32, "width": 32}
    options = {"crop_size": {"height": 32, "width": 32}} if kind.startswith("CLIP") else {}
    getattr(transformers, kind)(size=size, **options).save_pretrained(str(folder))


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert_folder(folder: Path, **config: int) -> Path:
    """A tiny BERT with vocab.txt, as BioClinicalBERT is published (no tokenizer configuration)."""
    from transformers import BertConfig, BertForMaskedLM

    words = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(1)
    settings = TOWER | {"vocab_size": len(words), "max_position_embeddings": 40} | config
    model = BertForMaskedLM(BertConfig(**settings))
    model.config.save_pretrained(str(folder))
    state = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in model.state_dict().items()}
    state["bert.embeddings.position_ids"] = torch.arange(settings["max_position_embeddings"])[None]
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def open_clip_folder(folder: Path, text_cfg: dict[str, object], vision_cfg: dict[str, object]) -> Path:
    """A random open_clip model with its configuration and weights."""
    import open_clip

    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision_cfg, "text_cfg": text_cfg},
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(2)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
