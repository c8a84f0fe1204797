"""Malicious spaces: code, addresses, unlimited sizes, and forms that no valid space has."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.audit import Action
from hostile.makers import (
    Json,
    changed_space,
    compact,
    hf_folder,
    open_clip_folder,
    read,
    space_of,
    sum_again,
    write,
)

Change = Callable[[Json, Path], None]
MAP = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
MAP |= {"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil"}


def use(path: str) -> None:
    """Open a space and compute with all of it."""
    from m3bind.space.bundle import load

    space = load(path)
    for name in space.text_encoders:
        space.encode_text(["no finding", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"], name)
    for name in space.modalities:
        space.class_embeddings(["normal", "pneumonia {0.__class__}"], name)
    repr(space)


def _set(*keys: str | int, to: Any) -> Change:
    """A change of one value of space.json."""

    def change(content: Json, folder: Path) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return change


def _gone(*keys: str) -> Change:
    def change(content: Json, folder: Path) -> None:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def _asset(name: str, **values: Any) -> Change:
    """A change of a JSON file among the assets of xray; made where it is not there."""

    def change(content: Json, folder: Path) -> None:
        path = folder / "assets" / "xray" / name
        write(path, {**(read(path) if path.exists() else {}), **values})
        content["files"].setdefault(f"assets/xray/{name}", "")

    return change


def _open_clip(part: str, **values: Any) -> Change:
    def change(content: Json, folder: Path) -> None:
        path = folder / "assets" / "xray" / "open_clip_config.json"
        config = read(path)
        config["model_cfg"][part].update(values)
        write(path, config)

    return change


def _link(name: str, target: Path) -> Change:
    def change(content: Json, folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def _tokenizer(normalizer: Json) -> Change:
    return _asset("tokenizer.json", normalizer=normalizer)


TOWER = ("modalities", "xray", "settings")
TEXT = (*TOWER, "text", "config")
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]


def of_compact(secret: Path) -> dict[str, Change]:
    """Changes of a space with a model of our own."""
    student = ("student", "settings")
    growing = {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
    }
    costly = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    return {
        "a prompt of a billion blanks": _set("prompts", "xray", to=["{:>1500000000}"]),
        "a prompt that asks for attributes": _set("prompts", "xray", to=["{0.__class__.__init__.__globals__}"]),
        "a prompt of other fields": _set("prompts", "xray", to=["{label!r} {} {1}"]),
        "a prompt that is endless": _set("prompts", "xray", to=["{}" * 4_000_000]),
        "prompts that are a text": _set("prompts", "xray", to="{}"),
        "a million layers": _set(*student, "config", "num_hidden_layers", to=1_000_000),
        "a thousand layers": _set(*student, "config", "num_hidden_layers", to=1000),
        "a width of a billion": _set(*student, "config", "hidden_size", to=10**9),
        "a vocabulary of 16 million": _set(*student, "config", "vocab_size", to=16_000_000),
        "layers below zero": _set(*student, "config", "num_hidden_layers", to=-3),
        "no heads": _set(*student, "config", "num_attention_heads", to=0),
        "a number of 4,000 digits": _set(*student, "config", "hidden_size", to=10**4000),
        "NaN for a number": _set(*student, "config", "layer_norm_eps", to=float("nan")),
        "an attention kernel": _set(*student, "config", "_attn_implementation", to="kernels-community/flash-attn3"),
        "an attention kernel by its other name": _set(*student, "config", "attn_implementation", to="a/b:evil"),
        "quantisation": _set(*student, "config", "quantization_config", to={"quant_method": "bitsandbytes"}),
        "code of a student": _set(*student, "config", "auto_map", to=MAP),
        "a family of code": _set(*student, "config", "model_type", to="evil"),
        "a family that loads kernels": _set(*student, "config", "model_type", to="mra"),
        "an activation by a path": _set(*student, "config", "hidden_act", to="../../evil.Evil"),
        "a head that is none": _set(*student, "head", "kind", to="__class__"),
        "a head of a billion": _set(*student, "head", to={"kind": "mlp", "dim": 6, "hidden": 10**9}),
        "more tokens than positions": _set(*student, "max_tokens", to=10**7),
        "a text tower from the hub": _set(*TOWER, "text", to="evil/bert"),
        "a text tower from a folder": _set(*TOWER, "text", to=str(secret.parent)),
        "assets elsewhere": _set(*TOWER, "assets", to="/etc"),
        "widths without measure": _set(*TOWER, "widths", to=[10**8, 10**8]),
        "widths by the thousand": _set(*TOWER, "widths", to=[1] * 100_000),
        "a picture of a side of a billion": _set(*TOWER, "image_size", to=10**9),
        "settings that do not exist": _set(*TOWER, "__class__", to="x"),
        "settings of other types": _set(*TOWER, to={"joint_dim": "8", "modality": 3, "widths": None, "text": 7}),
        "settings that are a list": _set(*TOWER, to=[]),
        "a text tower of nothing": _set(*TOWER, "text", to={}),
        "a model of nobody": _set("modalities", "xray", "model", to="os.system"),
        "a modality by a path": lambda c, f: c["modalities"].update({"../../x": c["modalities"].pop("xray")}),
        "no modality": _set("modalities", to={}),
        "a bridge of nobody": _set("modalities", "xray", "bridge", "kind", to="evil"),
        "a bridge of a billion": _set("modalities", "xray", "bridge", "settings", "hidden", to=10**9),
        "a bridge of a million blocks": _set("modalities", "xray", "bridge", "settings", "blocks", to=10**6),
        "a bridge in a bridge in a bridge": _set("modalities", "xray", "bridge", to=_nested(28)),
        "a bridge of texts": _set("modalities", "xray", "bridge", "settings", to={"source": "a", "dim": None}),
        "a scale that is no number": _set("modalities", "xray", "logit_scale", to=float("inf")),
        "weights elsewhere": _set("modalities", "xray", "weights", "image_head", to=str(secret)),
        "weights that are not listed": _set("modalities", "xray", "weights", "image_head", to="weights/x.safetensors"),
        "a part of Python": _set("modalities", "xray", "weights", "__class__", to="x"),
        "a dimension that is a text": _set("dim", to="6"),
        "no student key": _gone("student"),
        "no settings of a student": _gone("student", "settings"),
        "no files": _set("files", to=[]),
        "a file outside": _set("files", to={"../secret": "0" * 64}),
        "an absolute file": _set("files", to={str(secret): "0" * 64}),
        "a link out of the space": _link("assets/xray/tokenizer.json", secret),
        "an unknown key": _set("run_this", to="rm -rf"),
        "nested without end": _set("config", to={"a": DEEP}),
        "a version of texts": _set("version", to="2; import os"),
        "another dimension of the student": _set("student", "settings", "head", "dim", to=7),
        "a normalizer that doubles": _tokenizer(growing),
        "a costly expression": _tokenizer(costly),
        "a tokenizer that is none": _asset("tokenizer.json", model={"type": "Evil"}),
    }  # fmt: skip


def _nested(levels: int) -> Json:
    inner: Json = {"kind": "linear", "source": 8, "dim": 6}
    for _ in range(levels):
        inner = {"kind": "sided", "inner": inner, "image": 10**6, "text": 0, "before": False}
    return {"kind": inner.pop("kind"), "settings": inner}


def of_hf(secret: Path) -> dict[str, Change]:
    """Changes of a space with a model of transformers."""
    return {
        "code in config.json": _asset("config.json", auto_map=MAP, model_type="evil"),
        "code beside a known family": _asset("config.json", auto_map=MAP),
        "code of a tokenizer": _asset("tokenizer_config.json", auto_map=MAP, tokenizer_class="Evil"),
        "code beside a known tokenizer": _asset("tokenizer_config.json", auto_map=MAP, trust_remote_code=True),
        "code of an image processor": _asset("preprocessor_config.json", auto_map=MAP, image_processor_type="Evil"),
        "code beside a known processor": _asset("preprocessor_config.json", auto_map=MAP),
        "a tokenizer's files elsewhere": _asset(
            "tokenizer_config.json", tokenizer_file=str(secret), vocab_file=str(secret)
        ),
        "a chat template": _asset("tokenizer_config.json", chat_template="{{ ''.__class__.__mro__ }}" * 1000),
        "a name that is an address": _asset("config.json", _name_or_path="evil/repo", name_or_path="https://evil/"),
        "a processor of huge pictures": _asset("preprocessor_config.json", size={"shortest_edge": 10**9}),
        "an adapter": _asset("adapter_config.json", base_model_name_or_path="evil/repo", peft_type="LORA"),
        "a source on the hub": _set(*TOWER, "source", to="evil/repo"),
        "a costly expression": _tokenizer({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}),
        "texts of a billion tokens": _asset("tokenizer_config.json", model_max_length=10**30),
    }  # fmt: skip


def of_open_clip(secret: Path) -> dict[str, Change]:
    """Changes of a space with a model of open_clip."""
    trusted = {"trust_remote_code": True}
    return {
        "code by tokenizer_kwargs": lambda c, f: (
            _open_clip("text_cfg", tokenizer_kwargs=trusted)(c, f),
            _asset("tokenizer_config.json", auto_map=MAP, tokenizer_class="Evil")(c, f),
        ),
        "tokenizer_kwargs alone": _open_clip("text_cfg", tokenizer_kwargs=trusted),
        "a vocabulary elsewhere": _open_clip(
            "text_cfg", hf_tokenizer_name="", tokenizer_kwargs={"bpe_path": str(secret)}
        ),
        "a text tower on the hub": _open_clip("text_cfg", hf_model_name="hf-hub:evil/repo"),
        "a tokenizer on the hub": _open_clip("text_cfg", hf_tokenizer_name="hf-hub:evil/repo"),
        "a picture tower on the hub": _open_clip(
            "vision_cfg", timm_model_name="hf-hub:evil/repo", timm_model_pretrained=True
        ),
        "a picture tower in a folder": _open_clip("vision_cfg", timm_model_name=f"local-dir:{secret.parent}"),
        "code of a text tower": _asset("text_config/config.json", auto_map=MAP, model_type="evil"),
        "layers by the million": _open_clip("vision_cfg", layers=1_000_000),
        "a width of pictures": _open_clip("vision_cfg", width=2**24),
        "activations of anything": _open_clip("vision_cfg", act_kwargs={"__class__": "evil"}),
        "a pool of anything": _open_clip("text_cfg", hf_pooler_type="__init__"),
        "a key of nobody": _open_clip("text_cfg", run="evil"),
        "a width that is a text": _open_clip("vision_cfg", width="32"),
    }  # fmt: skip


def items(folder: Path) -> list[Action]:
    """Each hostile space, opened and used; some also by commands."""
    secret = folder / "elsewhere" / "secret.json"
    write(secret, {"secret": 1})
    scratch = folder / "scratch"
    from m3bind.models import registry

    models = {
        "compact": compact(scratch),
        "hf": registry.load("hf_clip_any", hf_folder(scratch / "hf")),
        "open_clip": registry.load("open_clip_any", open_clip_folder(scratch / "open_clip")),
    }
    changes = {"compact": of_compact(secret), "hf": of_hf(secret), "open_clip": of_open_clip(secret)}
    actions = []
    for kind, model in models.items():
        sound = space_of(model, folder / f"sound-{kind}", scratch)
        actions.append(Action(f"{kind}: sound", call="hostile.spaces:use", args=[str(sound)], codes=[0]))
        for name, change in changes[kind].items():
            made = changed_space(sound, folder / f"{kind}-{len(actions)}", change)
            actions.append(_used(f"{kind}: {name}", made, secret))
    sound = folder / "sound-compact"
    actions += [_used(name, made, secret) for name, made in _raw(folder, sound).items()]
    return actions + _commands(folder)


def _used(name: str, made: Path, secret: Path) -> Action:
    return Action(name, call="hostile.spaces:use", args=[str(made)], private=[secret])


def _raw(folder: Path, sound: Path) -> dict[str, Path]:
    """space.json as no JSON of ours, and files that are none."""
    made = {}
    texts = {
        "a list": "[]", "nothing": "", "deep": "[" * 100_000, "half": (sound / "space.json").read_text()[:200],
        "a key twice": '{"format": "m3bind-space", "format": "m3bind-space", "version": 1, "checksum": ""}',
        "digits": '{"version": ' + "9" * 10_000 + "}", "bytes": "\x00\xff",
    }  # fmt: skip
    for number, (name, text) in enumerate(texts.items()):
        made[f"space.json: {name}"] = place = folder / f"raw-{number}"
        place.mkdir()
        (place / "space.json").write_text(text)
    made["space.json: a pipe"] = place = folder / "raw-pipe"
    place.mkdir()
    os.mkfifo(place / "space.json")
    made["weights: a pipe"] = place = changed_space(sound, folder / "raw-weights", lambda content, folder: None)
    file = next((place / "weights").iterdir())
    file.unlink()
    os.mkfifo(file)
    return made


def _commands(folder: Path) -> list[Action]:
    """Commands that open a space: the refusal is a line and an exit code."""
    sound = folder / "sound-open_clip"
    made = changed_space(sound, folder / "commanded", of_open_clip(folder)["code by tokenizer_kwargs"])
    (folder / "m.csv").write_text("path,modality,label\na.png,xray,normal\n")
    out, space = folder / "out", str(made)
    found = {
        "encode": ["encode", str(folder / "m.csv"), "--space", space, "--out", str(out)],
        "search": ["search", str(folder), "--space", space, "--text", "a"],
        "serve": ["serve", "--space", space, "--index", str(folder)],
        "evaluate": ["evaluate", space, "--manifest", str(folder / "m.csv")],
        "export hf": ["export", space, "--to", "hf", "--out", str(out)],
        "export hub": ["export", space, "--to", "hub", "--out", str(out)],
        "export onnx": ["export", space, "--to", "onnx", "--out", str(out)],
    }
    return [Action(f"command: {name}", command=command, writes=[out], codes=[1, 2]) for name, command in found.items()]


__all__ = ["items", "sum_again", "use"]
