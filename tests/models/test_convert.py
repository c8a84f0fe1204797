"""`convert`: which tensors are written and dropped; nothing in a hostile file runs."""

import io
import json
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from m3bind.errors import CheckpointError, ConfigError, ReadError
from m3bind.models.weights import convert, safe_unpickle
from m3bind.models.weights.checkpoint import hash_state, save_state
from m3bind.models.weights.weight_files import WRAPPERS, read_state


class Payload:
    """Runs a shell command where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


class Config(dict):
    """As OmegaConf's or Lightning's: a class of another library with whatever inside."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.parent = {"list": [1, {2}], "set": frozenset({3})}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2, bias=False)
        self.register_buffer("positions", torch.arange(3), persistent=False)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def inert(content: bytes, tmp_path: Path, form: str = "torch") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What the child does, in this process."""
    (tmp_path / "inert.pt").write_bytes(content)
    return safe_unpickle.tensors(safe_unpickle.read(form, str(tmp_path / "inert.pt")))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work in this process, without its limits: quicker."""

    def run(command: list[str], **options: Any) -> Any:
        return SimpleNamespace(stdout=json.dumps(safe_unpickle.answer(*command[-3:])), returncode=0)

    monkeypatch.setattr(
        convert, "subprocess", SimpleNamespace(run=run, DEVNULL=None, TimeoutExpired=subprocess.TimeoutExpired)
    )


@pytest.mark.parametrize("form", ["ckpt", "legacy", "zip", "torchscript"])
def test_a_file_that_is_refused_is_read_after_convert(
    form: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if form != "ckpt":
        request.getfixturevalue("here")
    torch.manual_seed(0)
    net, marker = Net(), tmp_path / "executed"
    state, path, out = net.state_dict(), tmp_path / "my file.ckpt", tmp_path / "out" / "x.safetensors"
    content = {"state_dict": state, "epoch": 3, "hyper_parameters": Config(a=1), "callbacks": [Payload(marker)]}
    if form == "torchscript":
        torch.jit.save(torch.jit.script(nn.Sequential(OrderedDict(trunk=net.trunk, head=net.head))), path)
    elif form == "zip":
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner/a.ckpt", saved(content))
    else:
        path.write_bytes(saved(content, _use_new_zipfile_serialization=form == "ckpt"))
    with pytest.raises(CheckpointError, match=r"m3bind convert .* --i-trust-this-file"):
        read_state(path)
    found = convert.convert(path, out, trusted=True)
    assert hash_state(read_state(out)) == hash_state(state) and not marker.exists()
    assert set(found.kept) == set(state) and found.kept["head.weight"] == ("float32", (2, 4))
    assert found.bytes == out.stat().st_size
    if form != "torchscript":
        kind = f"{Config.__module__}.Config"
        assert found.dropped == {"epoch": "int", "hyper_parameters": kind, "callbacks": "list"}
        assert f"dropped hyper_parameters ({kind})" in found.as_text() and "converted 8 tensors" in found.as_text()
        pickle.loads(pickle.dumps(Payload(marker)))
        assert marker.exists(), "the payload works, so the child is what stopped it"


def test_what_a_converted_file_looks_like_is_the_same_in_every_wrapper(tmp_path: Path) -> None:
    assert WRAPPERS == safe_unpickle.WRAPPERS
    net = Net()
    state = net.state_dict()
    for content in (
        state,
        dict(state),
        *({wrapper: state} for wrapper in WRAPPERS),
        {"model": net},
        net,
        {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in state.items()},
        defaultdict(list, state),
    ):
        for new in (True, False):
            kept, _ = inert(saved(content, _use_new_zipfile_serialization=new), tmp_path, "torch" if new else "pickle")
            assert hash_state(kept) == hash_state(state)


def test_numpy_arrays_are_converted_and_other_objects_named(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {
        "a": numbers,
        "big": numbers.astype(">f8"),
        "f": np.asfortranarray(numbers),
        "i": numbers.astype(np.int64),
    }
    others = {"s": np.float64(1), "o": np.array([None]), "t": np.array(["x"]), 3: numbers, "none": None, "n": 1.0}
    for protocol in range(2, 6):
        kept, dropped = inert(pickle.dumps({"model": arrays | others}, protocol=protocol), tmp_path, "pickle")
        assert set(kept) == set(arrays) and set(dropped) == {"s", "o", "t", "3", "none", "n"}
        assert all(np.array_equal(kept[name].numpy(), value) for name, value in arrays.items())


def test_tied_and_strided_tensors(here: None, tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "tied": base, "t": base.t(), "part": base[1:], "half": base.half(), "b16": base.bfloat16()}
    path, out = tmp_path / "x.pt", tmp_path / "x.safetensors"
    torch.save(state, path)
    convert.convert(path, out, trusted=True)
    assert all(torch.equal(read_state(out)[name], value) for name, value in state.items())


# ---- hostile files

_CALLS = {
    "os.system": (os.system, ("touch {}",)),
    "eval": (eval, ("open('{}', 'w')",)),
    "exec": (exec, ("open('{}', 'w')",)),
    "open": (open, ("{}", "w")),
    "from_file": (torch.UntypedStorage.from_file, ("{}", True, 10)),
    "subprocess": (subprocess.run, (["touch", "{}"],)),
    "Path.touch": (Path.touch, (Path("{}"),)),
    "torch.save": (torch.save, (1, "{}")),
}


@pytest.mark.parametrize("name", _CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_function_of_a_pickle_is_called(name: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    function, arguments = _CALLS[name]

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(item) for item in value]
        return type(value)(str(value).format(marker)) if isinstance(value, (str, Path)) else value

    class Call:
        def __reduce__(self) -> Any:
            return function, tuple(filled(value) for value in arguments)

    content = {"a": np.zeros(2, np.float32), "call": Call()}
    kept, dropped = inert(pickle.dumps(content, protocol=protocol), tmp_path, "pickle")
    assert not marker.exists() and set(kept) | set(dropped) == {"a", "call"} and "call" in dropped
    pickle.loads(pickle.dumps(content, protocol=protocol))
    assert marker.exists()


def test_a_name_in_a_pickle_leads_nowhere_else() -> None:
    unpickler = safe_unpickle.Unpickler(io.BytesIO())
    for module, name in (
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch", "hub.load"),
        ("torch", "Tensor"),
        ("torch.storage", "UntypedStorage.from_file"),
        ("collections", "OrderedDict.fromkeys"),
        ("numpy", "load"),
        ("m3bind.models.weights.safe_unpickle", "main"),
    ):
        found = unpickler.find_class(module, name)
        assert issubclass(found, safe_unpickle.Stub) and found.origin == f"{module}.{name}"
    assert unpickler.find_class("torch", "float32") is torch.float32


_STATE = {"weight": torch.randn(64, 64)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: saved(_STATE)[:-5000], "damaged or incomplete"),
        (lambda: saved(_STATE, _use_new_zipfile_serialization=False)[:-5000], "damaged or incomplete"),
        (lambda: b"\x80\x02 cut", "damaged or incomplete"),
        (lambda: b"<html>404</html>", "web page"),
        (lambda: b"", "empty file"),
        (lambda: pickle.dumps([1, 2]), "no tensors under names"),
        (lambda: saved({"epoch": 3, "config": Config()}), r"no tensors under names were found; it holds epoch, config"),
        (lambda: saved({"w": torch.zeros(1).expand(1 << 20, 1 << 20)}), "bytes of tensors in .* malicious"),
        (lambda: pickle.dumps(Payload(Path("/tmp/never"))), "no tensors under names"),
    ],
)
def test_files_that_cannot_be_converted(here: None, content: Any, message: str, tmp_path: Path) -> None:
    path, out = tmp_path / "x.ckpt", tmp_path / "x.safetensors"
    path.write_bytes(content())
    out.write_bytes(b"before")
    with pytest.raises(CheckpointError, match=message):
        convert.convert(path, out, trusted=True)
    assert out.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 2
    assert not Path("/tmp/never").exists()


def test_memory_is_limited(tmp_path: Path) -> None:
    """A storage declared with 2**40 numbers in a file of a few hundred bytes."""
    path = tmp_path / "x.ckpt"
    legacy = saved({"w": torch.zeros(0x0A0B0C)}, _use_new_zipfile_serialization=False)
    small, large = b"J\x0c\x0b\x0a\x00", b"\x8a\x06" + (1 << 40).to_bytes(6, "little")  # BININT, LONG1
    assert small in legacy
    path.write_bytes(legacy.replace(small, large)[: 1 << 12])
    with pytest.raises(CheckpointError, match=r"memory|damaged|harm"):
        convert.convert(path, tmp_path / "x.safetensors", trusted=True)


def test_a_child_that_hangs_or_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, worker = tmp_path / "x.ckpt", tmp_path / "worker.py"
    torch.save(_STATE, path)
    monkeypatch.setattr(convert, "_WORKER", worker)
    monkeypatch.setattr(convert, "_SECONDS", 0.5)
    for code, message in (
        ("import time; time.sleep(60)", "longer than"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("raise SystemExit(3)", r"crashed \(exit code 3\)"),
    ):
        worker.write_text(code)
        with pytest.raises(CheckpointError, match=message):
            convert.convert(path, tmp_path / "x.safetensors", trusted=True)


def test_the_child_sees_no_secrets_and_nothing_of_the_users_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, sys\n"
        "seen = {'env': sorted(os.environ), 'isolated': sys.flags.isolated, 'path': sys.path}\n"
        "open(sys.argv[3], 'w').write(json.dumps(seen)); print(json.dumps({'error': json.dumps(seen)}))"
    )
    monkeypatch.setattr(convert, "_WORKER", worker)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch.save(_STATE, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError) as caught:
        convert.convert(tmp_path / "x.ckpt", tmp_path / "x.safetensors", trusted=True)
    assert "HF_TOKEN" not in str(caught.value) and f'"{tmp_path}"' not in str(caught.value)
    assert '"isolated": 1' in str(caught.value)


def test_wrong_use(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(_STATE, path)
    with pytest.raises(ConfigError, match="add --i-trust-this-file"):
        convert.convert(path, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=r"name it x\.safetensors"):
        convert.convert(path, tmp_path / "x.pt", trusted=True)
    with pytest.raises(ReadError, match="no such file"):
        convert.convert(tmp_path / "absent.ckpt", tmp_path / "x.safetensors", trusted=True)
    save_state(_STATE, tmp_path / "y.safetensors")
    with pytest.raises(ConfigError, match="nothing to convert"):
        convert.convert(tmp_path / "y.safetensors", tmp_path / "x.safetensors", trusted=True)
    assert not (tmp_path / "x.safetensors").exists()


def test_the_child_needs_nothing_of_this_package() -> None:
    source = Path(safe_unpickle.__file__).read_text()
    assert "m3bind" not in source.split('"""', 2)[2], "it runs isolated, perhaps where the package is not installed"
