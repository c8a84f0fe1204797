import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m3bind.errors import CheckpointError, ConfigError, ReadError
from m3bind.modalities.formats import archive as _archive
from m3bind.modalities.formats import limits
from m3bind.models.weights import weight_files
from m3bind.models.weights.checkpoint import (
    drop_position_ids,
    hash_state,
    load_strict,
    rename,
    save_state,
    strip_prefix,
)
from m3bind.models.weights.hub import resolve
from m3bind.models.weights.weight_files import read_state


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


class Payload:
    """Runs a shell command where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


FORMS = [
    *("safetensors", "pt", "pth", "bin", "tar", "legacy", "lightning", "model", "prefixed", "parameters", "compressed"),
    *(
        "mistaken",
        "mistaken_zip",
        "folder",
        "open_clip",
        "one_odd_name",
        "sharded",
        "zip",
        "zip_legacy",
        "zip_safetensors",
    ),
]


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return path


def saved(content: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(form, tmp_path):
    state = dict(net().state_dict())
    path = tmp_path / "file.pt"
    if form == "safetensors":
        path = tmp_path / "file.safetensors"
        save_state(state, path)
    elif form == "pt":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form in ("pth", "bin", "tar"):
        path = tmp_path / f"file.{form}"
        torch.save(state, path)
    elif form == "lightning":
        path = tmp_path / "epoch=3.ckpt"
        torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, path)
    elif form == "model":
        torch.save({"model": state, "optimizer": {}, "config": {"name": "x"}}, path)
    elif form == "parameters":
        torch.save({key: nn.Parameter(v) if v.is_floating_point() else v for key, v in state.items()}, path)
    elif form == "compressed":
        with zipfile.ZipFile(io.BytesIO(saved(state))) as plain:
            packed(path, **{name: plain.read(name) for name in plain.namelist()})
    elif form == "mistaken":  # the content decides
        path = tmp_path / "file.bin"
        save_state(state, path)
    elif form == "mistaken_zip":
        path = tmp_path / "file.safetensors"
        torch.save(state, path)
    elif form in ("open_clip", "one_odd_name"):
        path = tmp_path
        (path / "config.json").write_text("{}")
        torch.save(state, path / ("open_clip_pytorch_model.bin" if form == "open_clip" else "flair_resnet.pth"))
    elif form.startswith("zip"):
        path = tmp_path / "file.zip"
        if form == "zip_safetensors":
            save_state(state, tmp_path / "a.safetensors")
            packed(path, a__safetensors=(tmp_path / "a.safetensors").read_bytes())
        else:
            content = saved(state, _use_new_zipfile_serialization=form == "zip")
            notes = {"__MACOSX/._a.pth": b"junk", "readme.txt": b"text", "inner/": b""}
            packed(path, **{"inner/a.pth": content}, **notes)
    elif form == "prefixed":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    elif form == "folder":
        path = tmp_path
        torch.save(state, path / "pytorch_model.bin")
    else:
        keys = list(state)
        parts = {"a.safetensors": keys[:3], "b.safetensors": keys[3:]}
        for name, chosen in parts.items():
            save_state({key: state[key] for key in chosen}, tmp_path / name)
        index = {"weight_map": {key: name for name, chosen in parts.items() for key in chosen}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        path = tmp_path
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    load_strict(other, read_state(path))
    assert hash_state(other.state_dict()) == hash_state(state)


@pytest.mark.parametrize("form", ["torch", "legacy", "plain", "zip"])
def test_a_pickle_with_a_payload_is_refused_and_not_run(form, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / ("model.zip" if form == "zip" else "my model.pt")
    content = {"weight": torch.zeros(2), "extra": Payload(marker)}
    if form == "plain":
        path.write_bytes(pickle.dumps(content["extra"]))
    elif form == "zip":
        packed(path, **{"model.pt": saved(content)})
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError, match=r"Nothing was executed") as caught:
        read_state(path)
    assert re.search(r"m3bind convert \S*(model.zip|my model.pt'?) \S*.* --i-trust-this-file", str(caught.value))
    assert not marker.exists()
    if form != "zip":
        pickle.loads(path.read_bytes()) if form == "plain" else torch.load(path, weights_only=False)
        assert marker.exists(), "the payload works, so the refusal is what stopped it"


class Callback:
    """Objects that Lightning stores in hyper_parameters and callbacks."""


def test_a_lightning_file_with_foreign_classes_names_the_command(tmp_path):
    path = tmp_path / "vit_base.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hyper_parameters": {"callback": Callback()}}, path)
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    message = str(caught.value)
    assert "Callback" in message and "run code stored in the file" in message
    assert f"m3bind convert {path} vit_base.safetensors --i-trust-this-file" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"<?xml version='1.0'?><Error>", "web page"),
        (b"", "empty file"),
        (b'{"weight_map": {}}', "a JSON text"),
        (b"[1, 2]", "a JSON text"),
        (b"just text", "a text, not weights"),
        (b"\x1f\x8b\x08\x00", "gzip archive"),
        (b"a.pt".ljust(257, b"\0") + b"ustar\x0000", "tar archive"),
        (b"PK\x03\x04 cut off", "damaged or incomplete"),
        (b"\x80\x02 cut", "damaged, or a pickle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "damaged"),
        (b"\x10\0\0\0\0\0\0\0{}", "damaged or incomplete"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_files_that_are_no_weights(content, message, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state(path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    state = {"weight": torch.randn(64, 64)}
    save_state(state, path) if suffix == "safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_state(path)


def test_no_file_no_weights_no_tensors(tmp_path):
    with pytest.raises(ReadError, match="no such file"):
        read_state(tmp_path / "absent.pt")
    with pytest.raises(ReadError, match="without weights"):
        read_state(tmp_path)
    torch.save({"weight": torch.zeros(1), "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not tensors: epoch"):
        read_state(tmp_path / "x.pt")
    torch.save({0: torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not tensors: 0"):
        read_state(tmp_path / "x.pt")
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds list"):
        read_state(tmp_path / "x.pt")


def test_several_files_in_a_folder_are_named(tmp_path):
    for name in ("b.pt", "a.ckpt"):
        torch.save({"weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"several files of weights \(a\.ckpt, b\.pt\); name one"):
        read_state(tmp_path)
    assert set(read_state(tmp_path / "a.ckpt")) == {"weight"}
    torch.save({"known": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert set(read_state(tmp_path)) == {"known"}


def test_a_zip_is_unpacked_safely(tmp_path):
    path, weights = tmp_path / "x.zip", saved({"weight": torch.ones(3)})
    for members, message in (
        ({"a.pt": weights, "b/c.ckpt": weights}, r"several files of weights \(a\.pt, b/c\.ckpt\)"),
        ({"readme.txt": b"x", "a.nii": b"x"}, r"without a file of weights; it holds readme\.txt, a\.nii"),
        ({"../a.pt": weights}, "leads out of the archive; malicious"),
        ({"a.pt": weights, "/etc/x": b"x"}, "leads out of the archive"),
        ({"a.pt": b"<html>"}, r"x\.zip \(a\.pt\): a web page"),
        ({"a.pt": packed(tmp_path / "in.zip", b__pt=weights).read_bytes()}, "archive inside an archive"),
        ({"a.pt": weights[:-200]}, r"x\.zip \(a\.pt\): damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_state(packed(path, **members))
    path.write_bytes(packed(path, **{"a.pt": os.urandom(5000)}).read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read_state(path)
    info = zipfile.ZipInfo("a.pt")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(CheckpointError, match="link or a device"):
        read_state(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = packed(tmp_path / "x.zip", **{"a.pt": bytes(70 << 20)})
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(_archive, "unpack_member", None)
    with pytest.raises(CheckpointError, match="would unpack to 73,400,320 bytes"):
        read_state(path)
    monkeypatch.undo()
    monkeypatch.setattr(limits, "LIMITS", limits.Limits(bytes=1000))
    with pytest.raises(CheckpointError, match=r"2,000 bytes, more than 1,000; unpack it yourself"):
        read_state(packed(path, **{"a.pt": os.urandom(2000)}))


def test_nothing_of_a_zip_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "in").mkdir()
    state = read_state(packed(tmp_path / "in" / "x.zip", **{"a.pt": saved({"weight": torch.arange(1000.0)})}))
    assert [file.name for file in tmp_path.iterdir()] == ["in"]
    assert torch.equal(state["weight"], torch.arange(1000.0)), "mapped tensors outlive the unpacked file"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_reading_holds_no_copy_in_memory(tmp_path):
    def anonymous() -> int:
        line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
        return int(line.split()[1]) << 10

    big = torch.zeros(40 << 20, dtype=torch.uint8)
    torch.save({"weight": big}, tmp_path / "x.pt")
    save_state({"weight": big}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        before = anonymous()
        state = read_state(tmp_path / name)
        assert int(state["weight"].sum()) == 0 and anonymous() - before < 10 << 20


def test_torchscript_names_the_command(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(CheckpointError, match=r"TorchScript.*m3bind convert .*ViT-B-32\.safetensors --i-trust"):
        read_state(tmp_path / "ViT-B-32.pt")


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
        read_state(tmp_path)


def test_shards_that_are_not_there_or_go_in_circles(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, message in (
        ({"a": "b.safetensors"}, "shard b.safetensors is not there"),
        ({"a": index.name}, "refused"),
        ({"a": 3}, "shard 3 is not there"),
        (["a"], "damaged"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            read_state(tmp_path)
    save_state({"c": torch.zeros(1)}, tmp_path / "b.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match="shards lack a"):
        read_state(tmp_path)


def test_strictness_lists_every_name():
    state = dict(net().state_dict())
    state["9.gone"] = torch.zeros(1)
    del state["1.running_mean"]
    state["0.weight"] = torch.zeros(4, 5)
    before = hash_state((module := net()).state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, state, source="some.pt")
    for part in ("some.pt", "1 missing: 1.running_mean", "1 unexpected: 9.gone", "0.weight (4, 5)", "(4, 3)"):
        assert part in str(caught.value)
    assert hash_state(module.state_dict()) == before


def test_unexpected_keys_pass_only_when_named():
    state = dict(net().state_dict()) | {"cls.bias": torch.zeros(1), "cls.weight": torch.zeros(1)}
    assert load_strict(net(), state, ignore=("cls.*",)).ignored == ("cls.bias", "cls.weight")
    with pytest.raises(CheckpointError, match=r"1 unexpected: cls\.weight"):
        load_strict(net(), state, ignore=("cls.bias",))


def test_position_ids_go_only_if_they_count():
    good = {"e.position_ids": torch.arange(5)[None], "w": torch.zeros(1)}
    assert set(drop_position_ids(good, frozenset())) == {"w"}
    assert set(drop_position_ids(good, frozenset({"e.position_ids"}))) == set(good)
    with pytest.raises(CheckpointError, match="another way"):
        drop_position_ids({"e.position_ids": torch.arange(5).flip(0)[None]}, frozenset())


def test_prefixes_and_renaming():
    state = {"module.a": torch.zeros(1), "module.b": torch.zeros(1)}
    assert set(strip_prefix("module.")(state, frozenset({"a", "b"}))) == {"a", "b"}
    assert strip_prefix("module.")(state, frozenset({"module.a"})) == state
    assert strip_prefix("module.")({**state, "c": torch.zeros(1)}, frozenset()) == {**state, "c": torch.zeros(1)}
    assert set(rename("^module", "x")(state, frozenset())) == {"x.a", "x.b"}
    with pytest.raises(CheckpointError, match="one name"):
        rename("[ab]$", "same")(state, frozenset())


@given(st.permutations(["a", "b", "c"]), st.booleans())
def test_hash_ignores_order_and_layout_but_no_content(order, strided):
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1), "c": torch.zeros(0)}
    same = {key: base[key] for key in order}
    if strided:
        same["a"] = base["a"].t().contiguous().t()
    assert hash_state(same) == hash_state(base)
    changed = [
        {**base, "a": base["a"] + 1e-7 * base["a"].abs().clamp(min=1)},
        {**base, "a": base["a"].view(3, 2)},
        {**base, "b": torch.tensor(1, dtype=torch.int32)},
        {"A": base["a"], "b": base["b"], "c": base["c"]},
    ]
    assert len({hash_state(base), *(hash_state(other) for other in changed)}) == 5


def test_tied_weights_are_saved_twice_and_equal(tmp_path):
    weight = torch.randn(3, 3)
    save_state({"a": weight, "b": weight, "c": weight.t()}, tmp_path / "x.safetensors")
    state = read_state(tmp_path / "x.safetensors")
    assert torch.equal(state["a"], weight) and torch.equal(state["b"], weight) and torch.equal(state["c"], weight.t())


def test_resolve(tmp_path):
    assert resolve(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(tmp_path / "absent")
    with pytest.raises(ConfigError, match="pin it"):
        resolve("owner/name")
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        resolve("owner/name-that-does-not-exist", revision="0" * 40)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository; requests are recorded."""
    import huggingface_hub

    asked: dict[str, object] = {"files": ["config.json", "vocab.txt"]}

    def listing(self, name, revision):
        if asked["files"] is None:
            raise OSError("offline")
        return asked["files"]

    def snapshot(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", listing)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def test_only_the_weights_that_will_be_read_are_downloaded(hub, tmp_path):
    small = ["*.json", "*.txt", "*.model"]
    for files, wanted in (
        (["pytorch_model.bin", "model.safetensors", "flax_model.msgpack"], ["model.safetensors"]),
        (["open_clip_pytorch_model.bin", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], ["*.safetensors"]),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], ["*.bin"]),
        (["flair_resnet.zip", "README.md"], ["flair_resnet.zip"]),
        (None, [f"*{suffix}" for suffix in (*weight_files.SUFFIXES, ".zip")]),
    ):
        hub["files"] = files
        assert resolve("owner/name", "abc") == tmp_path
        assert hub["patterns"] == small + wanted and (hub["name"], hub["revision"]) == ("owner/name", "abc")
    resolve("owner/name", "abc", weights=False)
    assert hub["patterns"] == small


def test_one_of_several_files_of_the_hub(hub, tmp_path):
    hub["files"] = ["b.pt", "a.pt"]
    with pytest.raises(
        CheckpointError, match=r"several files of weights \(a\.pt, b\.pt\); name one: 'owner/name:FILE'"
    ):
        resolve("hf-hub:owner/name", "abc")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.pt").touch()
    assert resolve("owner/name:sub/b.pt", "abc") == tmp_path / "sub" / "b.pt"
    assert hub["patterns"][-1] == "sub/b.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        resolve("owner/name:c.pt", "abc")
    for wrong in ("owner/name:../b.pt", "owner/name:/b.pt", "owner/name:"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            resolve(wrong, "abc")


def test_a_network_of_more_than_its_weights_is_stopped_before_it_is_made():
    from torch import nn

    from m3bind.models.weights.checkpoint import bounded

    weights = [{"a": torch.zeros(8, 8)}]
    with bounded(weights, "here"):
        nn.Linear(8, 8)
    for make in (
        lambda: nn.Linear(10**6, 10**6),
        lambda: [nn.Linear(1, 1) for _ in range(10**6)],
        lambda: torch.arange(10**12),
        lambda: nn.Embedding(10**9, 64),
    ):
        with pytest.raises(CheckpointError, match="many more"), bounded(weights, "here"):
            make()
