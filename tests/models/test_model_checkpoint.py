import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m3bind.errors import CheckpointError, ConfigError, ReadError
from m3bind.models.checkpoint import (
    drop_position_ids,
    hash_state,
    load_strict,
    read_state,
    rename,
    resolve,
    save_state,
    strip_prefix,
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


class Payload:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("form", ["safetensors", "pt", "legacy", "lightning", "prefixed", "folder", "sharded"])
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
    elif form == "lightning":
        torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, path)
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


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_with_a_payload_is_refused_and_not_run(wrapped, tmp_path):
    flag = tmp_path / "executed"
    path = tmp_path / "model.pt"
    content = {"weight": torch.zeros(2), "extra": Payload(str(flag))}
    if wrapped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Payload(str(flag))))
    with pytest.raises(CheckpointError, match=r"Nothing was executed"):
        read_state(path)
    assert not flag.exists()
    torch.load(path, weights_only=False) if wrapped else pickle.loads(path.read_bytes())
    assert flag.exists(), "the payload works, so the refusal is what stopped it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (b"", "empty file"),
        (b"PK\x03\x04 cut off", "damaged or incomplete"),
        (b"\x80\x02 cut", "damaged, or a pickle"),
        (b"just text", "damaged"),
    ],
)
def test_files_that_are_no_weights(content, message, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_state(path)


def test_a_torchscript_archive_is_named(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("ViT-B-32/data.pkl", "ViT-B-32/constants.pkl", "ViT-B-32/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*convert it once"):
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
    with pytest.raises(CheckpointError, match="no tensors: epoch"):
        read_state(tmp_path / "x.pt")


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside"):
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
    with pytest.raises(CheckpointError, match="own way"):
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
