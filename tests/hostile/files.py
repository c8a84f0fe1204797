"""Model folders with a special file, weights with false headers, and unlimited tokenizers.

* `items`: each opened as by `registry.load`, `settings.source` and `evaluate`; checkpoints as by a resumed stage.
"""

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hostile.audit import HARM, WARM, Action
from hostile.makers import compact, hf_folder, open_clip_folder, plant, read, space_of, text_folder, write

LIBRARIES = (*WARM, "open_clip", "timm", "transformers.models.clip.modeling_clip", "m3bind.models.hf_clip_any")
TERABYTE = 1 << 40


# --- in the child -----------------------------------------------------------------------------------------------------


def resume(folder: str) -> None:
    """What a stage does that was trained before."""
    from m3bind.training.checkpoint import Checkpoints, load_state

    files = Checkpoints(Path(folder))
    if files.final.exists():
        load_state(files.final)
    files.newest()


def load_saved(folder: str) -> None:
    """A folder of registry.save."""
    from m3bind.models import registry

    registry.load(folder)


# --- one file that is none --------------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name has 107 letters at most
        try:
            channel.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path, size: int = TERABYTE) -> None:
    """Zeros that take no disk."""
    with open(path, "wb") as file:
        file.truncate(size)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a secret": lambda path: path.symlink_to("/etc/passwd"),
    "a socket": _socket,
    "a terabyte": sparse,
    "itself": lambda path: path.symlink_to(path.name),
    "nothing": Path.touch,
}


def _replaced(
    sound: Path, folder: Path, only: Callable[[Path], bool] = lambda path: True
) -> Iterator[tuple[str, Path]]:
    """A copy for each file and each thing in its place."""
    files = sorted(path.relative_to(sound) for path in sound.rglob("*") if path.is_file() and only(path))
    for number, name in enumerate(files):
        for kind, make in INSTEAD.items():
            copy = folder / f"{sound.name}-{number}-{kind.split()[-1]}"
            shutil.copytree(sound, copy)
            (copy / name).unlink()
            make(copy / name)
            yield f"{name} is {kind}", copy


# --- safetensors ------------------------------------------------------------------------------------------------------


def tensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes}


def _many(count: int) -> bytes:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(b'"k%d":%s' % (n, entry) for n in range(count)) + b"}"


SAFETENSORS: dict[str, bytes | Callable[[Path], object]] = {
    "a header of exabytes": tensors(one(), length=1 << 60),
    "a header below zero": tensors(one(), length=(1 << 64) - 1),
    "a header as long as the file": tensors(one(), length=len(json.dumps(one())) + 64),
    "a header of 100 MB": lambda path: path.write_bytes(tensors(b"{" + b" " * 100_000_000 + b"}")),
    "a header that is nested": tensors(b'{"a":' + b"[" * 200_000),
    "a header of notes": tensors({"__metadata__": {f"k{n}": "x" * 1000 for n in range(2000)}, **one()}),
    "notes that are numbers": tensors({"__metadata__": {"format": 5}, **one()}),
    "notes that are nested": tensors({"__metadata__": {"a": {"b": {}}}, **one()}),
    "a key twice": tensors(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[15],"data_offsets":[4,64]}}'
    ),
    "tensors that overlap": tensors(one() | {"y": one()["x"]}),
    "tensors with a hole": tensors(
        {"x": one(shape=[1], data_offsets=[0, 4])["x"], "y": one(shape=[1], data_offsets=[60, 64])["x"]}
    ),
    "offsets beyond": tensors(one(data_offsets=[0, 1 << 50])),
    "offsets below zero": tensors(one(data_offsets=[-64, 0])),
    "offsets turned": tensors(one(data_offsets=[64, 0])),
    "offsets of texts": tensors(one(data_offsets=["0", "64"])),
    "a type of twice the size": tensors(one(dtype="F64")),
    "a type that is none": tensors(one(dtype="os.system")),
    "a type of half bytes": tensors(one(dtype="F4")),
    "a shape without end": tensors(one(shape=[1 << 40, 1 << 40])),
    "a shape that wraps": tensors(one(shape=[1 << 32, 1 << 32, 16])),
    "a shape below zero": tensors(one(shape=[-4, -4])),
    "a shape of many axes": tensors(one(shape=[1] * 5000 + [16])),
    "300,000 empty tensors": lambda path: path.write_bytes(tensors(_many(300_000), b"")),
    "a name of megabytes": tensors({"k" * 5_000_000: one()["x"]}),
    "a name of a path": tensors({"../../etc/passwd": one()["x"]}),
    "cut": tensors(one(), bytes(10)),
    "more behind": tensors(one(), bytes(5000)),
    "NaN": tensors(one(), b"\xff" * 64),
}


def _weights(path: Path, content: bytes | Callable[[Path], object]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


# --- tokenizers -------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]
COSTLY = {"Regex": "(a+)+$"}


def _set(**values: Any) -> Change:
    return lambda content: content.update(values)


def _model(**values: Any) -> Change:
    return lambda content: content["model"].update(values)


def _nested(kind: str, inner: str, levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "Whitespace"} if inner == "pretokenizers" else {"type": "Lowercase"}
    for _ in range(levels):
        found = {"type": kind, inner: [found]}
    return found


def _split(pattern: Any) -> Change:
    return _set(pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})


def _added(count: int, content: str = "t{}") -> Change:
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return lambda found: found.update(
        added_tokens=[{"id": 1000 + n, "content": content.format(n), **token} for n in range(count)]
    )


TOKENIZERS: dict[str, Change] = {
    "splits by a costly expression": _split(COSTLY),
    "splits by one of alternatives": _split({"Regex": "(a|a)*b"}),
    "splits by one that looks behind": _split({"Regex": "(?<=(a|b){0,50})c+(\\1)*"}),
    "splits by one of depth": _split({"Regex": "(" * 2000 + "a" + ")" * 2000}),
    "splits by one that is none": _split({"Regex": "((("}),
    "splits by one of counts": _split({"Regex": "((a{0,1000}){0,1000}){0,1000}b"}),
    "splits by one that calls itself": _split({"Regex": "(?<x>a\\g<x>*)+$"}),
    "splits at nothing": _split({"String": ""}),
    "splits at a secret": _split({"Evil": "/etc/passwd"}),
    "replaces by a costly expression": _set(normalizer={"type": "Replace", "pattern": COSTLY, "content": "b"}),
    "replaces nothing by much": _set(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x" * 4000}),
    "decodes by a costly expression": _set(decoder={"type": "Replace", "pattern": COSTLY, "content": "b"}),
    "prepends much": _set(normalizer={"type": "Prepend", "prepend": "x" * 1_000_000}),
    "a map of characters of noise": _set(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA////"}),
    "a map of characters that lies": _set(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"}
    ),
    "sequences of sequences": _set(normalizer=_nested("Sequence", "normalizers", 200)),
    "splits of splits": _set(pre_tokenizer=_nested("Sequence", "pretokenizers", 200)),
    "200,000 added tokens": _added(200_000),
    "added tokens of nothing": _added(50, ""),
    "added tokens of one text": _added(50, "a"),
    "an added token of a megabyte": _added(1, "a" * 1_000_000),
    "added tokens with huge numbers": lambda content: (
        _added(2)(content),
        content["added_tokens"][1].update(id=2**32 - 1),
    ),
    "added tokens below zero": lambda content: (_added(2)(content), content["added_tokens"][1].update(id=-1)),
    "a vocabulary of numbers without end": lambda content: content["model"]["vocab"].update(evil=2**40),
    "a vocabulary of holes": lambda content: content["model"]["vocab"].update(evil=2**31),
    "a vocabulary of 400,000": lambda content: content["model"]["vocab"].update(
        {f"w{n}": 1000 + n for n in range(400_000)}
    ),
    "a vocabulary that is a list": _model(vocab=[]),
    "merges that are none": _model(merges=[["x", "y"], "z"]),
    "merges of merges": _model(merges=["a a"] * 100_000),
    "a cache of exabytes": _model(cache_capacity=2**60),
    "words of any length": _model(max_input_chars_per_word=2**62),
    "scores that are none": _set(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e308], ["b", -1e308]]}),
    "scores and no unknown": _set(model={"type": "Unigram", "unk_id": 99, "vocab": [["a", 0]]}),
    "words alone": _set(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[NONE]"}),
    "a model of nobody": _set(model={"type": "os.system"}),
    "pads to a billion": _set(
        padding={
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
    ),
    "pads to a multiple of a billion": _set(
        padding={
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_id": 0,
            "pad_to_multiple_of": 10**9,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "cuts below zero": _set(
        truncation={"max_length": -5, "stride": 0, "strategy": "LongestFirst", "direction": "Left"}
    ),
    "cuts with a stride": _set(
        truncation={"max_length": 5, "stride": 9, "strategy": "LongestFirst", "direction": "Left"}
    ),
    "templates of tokens": _set(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"[X]": {"id": "[X]", "ids": [1] * 2_000_000, "tokens": ["a"] * 2_000_000}},
        }
    ),
    "templates of tokens that are not there": _set(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[Y]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "a version of tomorrow": _set(version="9.0"),
}
BESIDE: dict[str, Callable[[Path], object]] = {
    "sentence-transformers with modules of the system": lambda folder: write(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "os.system"},
            {"idx": 1, "name": "1", "path": "1_Evil", "type": "evil.Evil"},
        ],
    ),
    "sentence-transformers with a router": lambda folder: (
        write(
            folder / "modules.json",
            [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}],
        ),
        write(folder / "router_config.json", {"types": {"0": "evil.Evil"}, "structure": {"query": ["0"]}}),
    ),
    "sentence-transformers with its own code": lambda folder: (
        write(folder / "config_sentence_transformers.json", {"model_type": "evil.Evil", "__version__": {}}),
        write(
            folder / "sentence_bert_config.json", {"model_args": {"trust_remote_code": True}, "max_seq_length": 10**12}
        ),
        write(folder / "config.json", read(folder / "config.json") | {"auto_map": {"AutoModel": "evil.Evil"}}),
    ),
    "sentencepiece of noise": lambda folder: [
        (folder / name).write_bytes(os.urandom(3000))
        for name in ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
    ],
    "a chat template": lambda folder: (folder / "chat_template.jinja").write_text(
        "{{ cycler.__init__.__globals__.os.popen('x') }}"
    ),
    "a network of ONNX": lambda folder: (
        (folder / "model.onnx").write_bytes(onnx()),
        (folder / "onnx").mkdir(),
        (folder / "onnx" / "model.onnx").write_bytes(onnx()),
    ),
    "a library": lambda folder: [
        (folder / name).write_bytes(b"\x7fELF" + bytes(100)) for name in ("libevil.so", "_C.so", "tokenizers.abi3.so")
    ],
    "a hook of Python": lambda folder: [
        (folder / name).write_text(HARM) for name in ("sitecustomize.py", "conftest.py", "setup.py", "evil.pth")
    ],
    "settings of generation": lambda folder: write(folder / "generation_config.json", {"custom_generate": "evil/repo"}),
    "an adapter": lambda folder: write(
        folder / "adapter_config.json",
        {"base_model_name_or_path": "evil/repo", "peft_type": "LORA", "auto_mapping": {"parent_library": "evil"}},
    ),
}


def onnx() -> bytes:
    """A network that asks for an operator of nobody and for data outside its folder."""
    import onnx as library
    from onnx import TensorProto, helper

    lead = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    lead.ClearField("float_data")
    lead.data_location = TensorProto.EXTERNAL
    lead.external_data.append(library.StringStringEntryProto(key="location", value="../../../../etc/passwd"))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1 << 40])
    node = helper.make_node("Evil", ["x", "w"], ["y"], domain="evil.example")
    graph = helper.make_graph(
        [node], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])], [lead]
    )
    return bytes(helper.make_model(graph).SerializeToString())


# --- all --------------------------------------------------------------------------------------------------------------


def items(folder: Path) -> Iterator[Action]:
    """Everything, with what opens it."""
    folder.mkdir(parents=True)
    scratch = folder / "scratch"
    from m3bind.models import registry

    hf, clip, text = hf_folder(folder / "hf"), open_clip_folder(folder / "clip"), text_folder(folder / "text")
    saved, space = folder / "saved", space_of(compact(scratch), folder / "space", scratch)
    registry.save(compact(scratch), saved)
    secret = [Path("/etc/passwd")]

    def action(name: str, call: str, *args: Any) -> Action:
        return Action(name, call=call, args=[str(arg) for arg in args], private=secret)

    opened = {
        hf: ("hostile.models:load", "hf_clip_any"),
        clip: ("hostile.models:load", "open_clip_any"),
        text: ("hostile.models:load_text",),
        saved: ("hostile.files:load_saved",),
        space: ("hostile.spaces:use",),
    }
    for sound, (call, *first) in opened.items():
        yield action(f"{sound.name}: sound", call, *first, sound)
        for name, made in _replaced(sound, folder):
            yield action(f"{sound.name}: {name}", call, *first, made)
    for number, (name, content) in enumerate(SAFETENSORS.items()):
        made = folder / f"weights{number}"
        shutil.copytree(hf, made)
        _weights(made / "model.safetensors", content)
        yield action(f"safetensors: {name}: hf", "hostile.models:load", "hf_clip_any", made)
        stage = folder / f"stage{number}"
        stage.mkdir()
        for file in ("final", "step_00000001", "step_00000002"):
            _weights(stage / f"{file}.safetensors", content)
        yield Action(f"safetensors: {name}: stage", call="hostile.files:resume", args=[str(stage)], writes=[stage])
    for kind, make in INSTEAD.items():
        stage = folder / f"stage of {kind}"
        stage.mkdir()
        make(stage / "step_00000001.safetensors")
        yield Action(f"stage: {kind}", call="hostile.files:resume", args=[str(stage)], writes=[stage])
    for number, (name, change) in enumerate(TOKENIZERS.items()):
        for sound, call in ((text, ["hostile.models:load_text"]), (hf, ["hostile.models:load", "hf_clip_any"])):
            made = folder / f"{sound.name}-tokenizer{number}"
            shutil.copytree(sound, made)
            plant(made)
            tokenizer = _tokenizer_of(made)
            change(tokenizer)
            write(made / "tokenizer.json", tokenizer)
            yield action(f"tokenizer: {sound.name}: {name}", *call, made)
    for number, (name, add) in enumerate(BESIDE.items()):
        for sound, call in ((text, ["hostile.models:load_text"]), (hf, ["hostile.models:load", "hf_clip_any"])):
            made = folder / f"{sound.name}-beside{number}"
            shutil.copytree(sound, made)
            plant(made)
            add(made)
            yield action(f"beside: {sound.name}: {name}", *call, made)
    yield from _onnx(folder, space)


def _tokenizer_of(folder: Path) -> dict[str, Any]:
    """tokenizer.json, made of the other files where there is none."""
    if not (folder / "tokenizer.json").exists():
        from m3bind.models.layers.tokenizer import read_tokenizer

        (folder / "tokenizer.json").write_text(read_tokenizer(folder).to_str())
    return dict(read(folder / "tokenizer.json"))


def _onnx(folder: Path, space: Path) -> Iterator[Action]:
    """A network of ONNX wherever a file or a folder of weights is named."""
    place = folder / "onnx"
    place.mkdir()
    (place / "model.onnx").write_bytes(onnx())
    (place / "model.pt").write_bytes(onnx())
    torch.save({"x": torch.zeros(1)}, place / "other.txt")
    names = {
        "check-model": ["check-model", "flair", str(place / "model.onnx")],
        "check-model of a folder": ["check-model", "flair", str(place)],
        "convert": ["convert", str(place / "model.pt"), str(place / "out.safetensors"), "--i-trust-this-file"],
        "search": ["search", str(place), "--space", str(place), "--text", "a"],
        "check": ["check", str(place / "model.onnx")],
        "encode": ["encode", str(place), "--space", str(space), "--out", str(folder / "encoded")],
    }
    for name, command in names.items():
        yield Action(
            f"onnx: {name}",
            command=command,
            codes=[1, 2],
            writes=[folder / "encoded", folder / "encoded.parts", *([place] if name == "convert" else [])],
        )
