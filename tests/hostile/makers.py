"""Small valid spaces and model folders, and how an attacker changes them: JSON edited, sums recomputed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hostile.audit import HARM
from models.tiny_models import TEXTS, TOWER, VISION, bert_folder, clip_tokenizer_files, image_processor_files

Json = dict[str, Any]
EVIL = ("evil.py", "modeling_evil.py", "__init__.py", "numpy.py", "tokenizers.py", "clip.py")


def plant(folder: Path) -> None:
    """Python files that must never run, under names that settings and imports would look for."""
    for name in EVIL:
        (folder / name).write_text(HARM + "\nclass Evil:\n    pass\n")


def hf_folder(folder: Path) -> Path:
    """A CLIP of transformers."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    size = clip_tokenizer_files(folder)
    image_processor_files(folder)
    text = {"vocab_size": size, "max_position_embeddings": 32, "bos_token_id": size - 2, "eos_token_id": size - 1}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=TOWER | text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    return folder


def open_clip_folder(folder: Path) -> Path:
    """A model of open_clip with a Hugging Face BERT inside."""
    import open_clip
    from transformers import BertConfig, PreTrainedTokenizerFast

    from m3bind.models.layers.tokenizer import wordpiece

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]
    tokenizer = wordpiece({word: row for row, word in enumerate(words)})
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=20)
    own.save_pretrained(str(folder))
    BertConfig(**TOWER, vocab_size=21, max_position_embeddings=20).save_pretrained(str(folder / "text_config"))
    text = {"hf_model_name": str(folder / "text_config"), "hf_tokenizer_name": "a/b", "context_length": 20}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}, "preprocess_cfg": {}}
    write(folder / "open_clip_config.json", config)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    text["hf_model_name"] = "some/bert"
    write(folder / "open_clip_config.json", config)
    return folder


def text_folder(folder: Path) -> Path:
    """A BERT for a text tower."""
    return bert_folder(folder)


def compact(folder: Path) -> Any:
    """A model trained from scratch, with a text tower as small as the student's."""
    from m3bind.models import registry
    from m3bind.models.layers.tokenizer import train_wordpiece

    folder.mkdir(parents=True, exist_ok=True)
    train_wordpiece(TEXTS, 120, minimum=1).save(str(folder / "tokenizer.json"))
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return registry.build(
        "compact_2d", assets=folder, modality="xray", joint_dim=8, image_size=32, widths=[8, 8], max_tokens=24,
        text_config=bert, image_head={"kind": "linear"},
    )  # fmt: skip


def space_of(model: Any, folder: Path, scratch: Path) -> Path:
    """A space of one modality with a student and a head for a bridge."""
    from m3bind.models.bridges import Head
    from m3bind.models.layers.text_encoder import make_text_encoder
    from m3bind.space.bundle import Space, save_space
    from m3bind.space.folder import SpaceInfo

    compact(scratch)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student = make_text_encoder("bert", 6, assets=scratch, max_tokens=24, config=small)
    info = SpaceInfo(prompts={"xray": ["a picture of {}", "{}"]}, records={"xray": {"train": 3}})
    bridges = {"xray": Head(model.joint_dim, 6, 4).eval()}
    return save_space(Space({"xray": model.eval()}, bridges, {}, student.eval(), info), folder)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def changed(source: Path, target: Path, name: str, change: Callable[[Json], None]) -> Path:
    """A copy of a folder with one of its JSON files changed."""
    shutil.copytree(source, target)
    plant(target)
    content = read(target / name)
    change(content)
    write(target / name, content)
    return target


def changed_space(source: Path, target: Path, change: Callable[[Json, Path], None]) -> Path:
    """A copy of a space, changed, with all sums made again."""
    shutil.copytree(source, target)
    content = read(target / "space.json")
    for assets in (target / "assets").iterdir():
        plant(assets)
    change(content, target)
    sum_again(content, target)
    return target


def sum_again(content: Json, folder: Path) -> None:
    """Sums of the files that are there, and of space.json itself."""
    from m3bind.core.files import sha256_file
    from m3bind.space.folder import manifest_checksum

    content.pop("checksum", None)
    if isinstance(content.get("files"), dict):
        for name in content["files"]:
            if (folder / name).is_file():
                content["files"][name] = sha256_file(folder / name)
    write(folder / "space.json", {**content, "checksum": manifest_checksum(content)})
