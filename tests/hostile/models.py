"""Malicious model folders, text towers and checkpoints, opened as by registry.load and settings.source."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hostile.audit import Action
from hostile.makers import Json, changed, compact, hf_folder, open_clip_folder, plant, read, text_folder, write
from hostile.spaces import MAP


def load(name: str, folder: str | None = None) -> None:
    """Load a model and read a text with it."""
    from m3bind.models import registry

    model = registry.load(name, folder) if folder else registry.load(name)
    model.encode_text(model.tokenize(["a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"]))


def load_text(folder: str) -> None:
    """A text tower of a folder."""
    from m3bind.models.layers.text_encoder import make_text_encoder

    encoder = make_text_encoder(folder, 8)
    encoder.encode(encoder.tokenize(["a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"]))


def load_state(path: str) -> None:
    """A checkpoint of a stage."""
    from m3bind.training.checkpoint import load_state as read_checkpoint

    read_checkpoint(Path(path))


def _merge(**values: Any) -> Callable[[Json], None]:
    return lambda content: content.update(values)


def _in(part: str, **values: Any) -> Callable[[Json], None]:
    return lambda content: content[part].update(values)


CONFIG, TOKENIZER, PROCESSOR = "config.json", "tokenizer_config.json", "preprocessor_config.json"
HF: dict[str, tuple[str, Callable[[Json], None]]] = {
    "code": (CONFIG, _merge(auto_map=MAP, model_type="evil")),
    "code beside a known family": (CONFIG, _merge(auto_map=MAP)),
    "code on the hub": (CONFIG, _merge(auto_map={"AutoConfig": "evil/repo--evil.Evil"}, model_type="evil")),
    "code of a tokenizer": (TOKENIZER, _merge(auto_map=MAP, tokenizer_class="Evil")),
    "code of a tokenizer in a list": (TOKENIZER, _merge(auto_map=["evil.Evil", None])),
    "code of a processor": (PROCESSOR, _merge(auto_map=MAP, image_processor_type="Evil")),
    "a slow tokenizer of another package": (TOKENIZER, _merge(tokenizer_class="BertJapaneseTokenizer")),
    "an attention kernel": (CONFIG, _merge(_attn_implementation="evil/repo:kernel", attn_implementation="evil/repo")),
    "an attention kernel of a part": (CONFIG, _in("text_config", attn_implementation="kernels-community/x")),
    "kernels of experts": (CONFIG, _merge(experts_implementation="evil/repo", use_kernels=True)),
    "quantisation": (CONFIG, _merge(quantization_config={"quant_method": "gptq", "bits": 4})),
    "a type by name": (CONFIG, _merge(dtype="__class__", torch_dtype="os.system")),
    "an activation by name": (CONFIG, _in("text_config", hidden_act="os.system")),
    "a million layers": (CONFIG, _in("text_config", num_hidden_layers=1_000_000)),
    "a thousand layers": (CONFIG, _in("text_config", num_hidden_layers=1000)),
    "a width of 16 million": (CONFIG, _in("vision_config", hidden_size=2**24)),
    "a picture of a million": (CONFIG, _in("vision_config", image_size=1_000_000, patch_size=1)),
    "no patches": (CONFIG, _in("vision_config", patch_size=0)),
    "half a head": (CONFIG, _in("vision_config", num_attention_heads=7)),
    "a billion labels": (CONFIG, _merge(num_labels=10**9)),
    "parts that are none": (CONFIG, _merge(text_config=[], vision_config="x")),
    "a part of nothing": (CONFIG, _merge(text_config=None)),
    "a family that is a list": (CONFIG, _merge(model_type=["clip"])),
    "a decoder": (CONFIG, _merge(model_type="llama")),
    "layers of their own": (CONFIG, _merge(per_layer_config={"0": {"hidden_size": 10**9}})),
    "an end of texts that is none": (CONFIG, _in("text_config", eos_token_id=[1, "x", None])),
    "no padding token": (TOKENIZER, _merge(pad_token=None)),
    "padding that is code": (TOKENIZER, _merge(pad_token={"__type": "AddedToken", "content": ["x"], "evil": {}})),
    "tokens by the billion": (TOKENIZER, _merge(added_tokens_decoder={"1000000000": {"content": "x"}})),
    "a side that is none": (TOKENIZER, _merge(padding_side="middle")),
    "pictures of a billion": (PROCESSOR, _merge(crop_size={"height": 10**9, "width": 10**9})),
    "a mean of texts": (PROCESSOR, _merge(image_mean="evil", image_std=[0, 0, 0])),
}
OPEN_CLIP: dict[str, Callable[[Json], None]] = {
    "trust": lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": True}),
    "an index": lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="https://evil.example/x"),
    "a decoder of captions": lambda c: c["model_cfg"].update(multimodal_cfg={"layers": 2}),
    "no vision": lambda c: c["model_cfg"].pop("vision_cfg"),
    "model_cfg is a list": _merge(model_cfg=[]),
    "pictures": lambda c: c["preprocess_cfg"].update(size=10**9),
    "kinds of pictures": lambda c: c["preprocess_cfg"].update(mode="../evil"),
    "a scale": lambda c: c["model_cfg"].update(init_logit_scale="x"),
    "timm on the hub": lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="hf_hub:evil/repo"),
}  # fmt: skip


def items(folder: Path) -> list[Action]:
    """Each folder opened; what is wrong in it is said by a typed error."""
    folder.mkdir(parents=True, exist_ok=True)
    hf, clip = hf_folder(folder / "sound-hf"), open_clip_folder(folder / "sound-open-clip")
    text, secret = text_folder(folder / "sound-text"), folder / "secret.bin"
    secret.write_bytes(b"secret")
    actions = [
        Action("hf: sound", call="hostile.models:load", args=["hf_clip_any", str(hf)], codes=[0]),
        Action("open_clip: sound", call="hostile.models:load", args=["open_clip_any", str(clip)], codes=[0]),
        Action("text: sound", call="hostile.models:load_text", args=[str(text)], codes=[0]),
    ]

    def add(name: str, kind: str, made: Path) -> None:
        call = "hostile.models:load_text" if kind == "text" else "hostile.models:load"
        arguments = [str(made)] if kind in ("text", "saved") else [kind, str(made)]
        actions.append(Action(name, call=call, args=arguments, private=[secret]))

    for name, (file, change) in HF.items():
        add(f"hf: {name}", "hf_clip_any", changed(hf, folder / f"hf-{len(actions)}", file, change))
    for name, change in OPEN_CLIP.items():
        made = changed(clip, folder / f"open-clip-{len(actions)}", "open_clip_config.json", change)
        add(f"open_clip: {name}", "open_clip_any", made)
    for name, (file, change) in HF.items():
        if file == CONFIG and "config" not in name and name not in ("a part of nothing", "parts that are none"):
            config = {**read(text / CONFIG), "text_config": {}, "vision_config": {}}
            made = changed(text, folder / f"text-{len(actions)}", CONFIG, lambda c, v=config: c.update(v))
            values = read(made / CONFIG)
            change(values)
            write(made / CONFIG, values | values.pop("text_config", {}) | values.pop("vision_config", {}))
            add(f"text: {name}", "text", made)
    for name, made in _saved(folder).items():
        add(f"saved: {name}", "saved", made)
    for name, made in _weights(folder, hf, secret).items():
        add(f"weights: {name}", "hf_clip_any", made)
    for name, made in _stages(folder).items():
        actions.append(Action(f"stage: {name}", call="hostile.models:load_state", args=[str(made)], codes=[1]))
    return [*actions, _fit(folder, hf)]


def _fit(folder: Path, hf: Path) -> Action:
    """A run whose settings name a hostile folder."""
    made = changed(hf, folder / "sourced", TOKENIZER, _merge(auto_map=MAP, tokenizer_class="Evil"))
    Image.new("L", (32, 32)).save(folder / "a.png")
    (folder / "m.csv").write_text("path,modality,text,patient\na.png,xray,normal,1\n")
    settings = folder / "settings.yaml"
    settings.write_text(
        f"data: {{manifest: {folder / 'm.csv'}}}\n"
        f"modalities: {{xray: {{model: hf_clip_any, settings: {{source: {made}}}}}}}\n"
    )
    command = ["fit", str(settings), "--out", str(folder / "runs")]
    return Action("command: fit", command=command, writes=[folder / "runs"], codes=[1, 2])


def _saved(folder: Path) -> dict[str, Path]:
    """Folders of registry.save."""
    from m3bind.models import registry

    sound = folder / "sound-saved"
    registry.save(compact(folder / "scratch"), sound)
    changes: dict[str, Callable[[Json], None]] = {
        "a model of nobody": _merge(model="evil"),
        "a model that is a list": _merge(model=[]),
        "a text tower on the hub": _in("settings", text="evil/bert"),
        "assets elsewhere": _in("settings", assets="/etc"),
        "widths": _in("settings", widths=[2**24, 2**24]),
        "no settings": lambda c: c.pop("settings"),
        "a source": lambda c: c.update(model="hf_clip_any", settings={"source": "evil/repo", "revision": "main"}),
        "a tokenizer": lambda c: c.update(model="flair", settings={"tokenizer": "evil/repo", "revision": "x"}),
    }
    return {
        name: changed(sound, folder / f"saved-{number}", "model.json", change)
        for number, (name, change) in enumerate(changes.items())
    }


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def _weights(folder: Path, hf: Path, secret: Path) -> dict[str, Path]:
    """Weights that would run, lead elsewhere, or grow."""
    made = {}

    def copy(name: str, weights: str = "pytorch_model.bin") -> Path:
        made[name] = place = folder / f"weights-{len(made)}"
        shutil.copytree(hf, place)
        plant(place)
        (place / "model.safetensors").unlink()
        return place / weights

    copy("a pickle that runs").write_bytes(pickle.dumps({"x": _Harm()}))
    torch.save({"x": _Harm()}, copy("a file of torch that runs"))
    copy("a link", "model.safetensors").symlink_to(secret)
    index = copy("shards elsewhere", "model.safetensors.index.json")
    write(index, {"weight_map": {"x": "../secret.bin"}})
    index = copy("a shard that is a link", "model.safetensors.index.json")
    write(index, {"weight_map": {"x": "model-1.safetensors"}})
    (index.parent / "model-1.safetensors").symlink_to(secret)
    copy("an index without end", "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    torch.save(torch.zeros(1).expand(10**12), copy("a tensor of a billion"))
    torch.save({"logit_scale": torch.eye(3).to_sparse()}, copy("a sparse tensor"))
    os.mkfifo(copy("a pipe"))
    copy("a program").write_bytes(b"#!/bin/sh\ntouch harmed\n")
    return made


def _stages(folder: Path) -> dict[str, Path]:
    """Checkpoints of a stage."""
    from safetensors.torch import save_file

    made = {}
    for name, text in {"deep": "[" * 100_000, "a list": "[1]", "no number": '{"step": "x"}'}.items():
        made[name] = path = folder / f"{len(made)}.safetensors"
        save_file({"x": torch.zeros(1)}, path, metadata={"description": text})
    made["nothing"] = folder / "nothing.safetensors"
    made["nothing"].write_bytes(b"")
    return made
