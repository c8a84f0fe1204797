"""All inputs of the paper's suite, in small: every data set in its official layout, and models to evaluate.

python tests/paper_suite.py FOLDER      writes FOLDER/data, FOLDER/models and FOLDER/suite.yaml
m3bind evaluate --suite FOLDER/suite.yaml --out FOLDER/runs

CT-Net and CT-CLIP (CF) predict with a label layer, which no small model has: they are built in full size, with random
weights, and need up to a minute per volume; tests replace them by small models.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from m3bind.evaluate.benchmarks import get, prepare
from m3bind.evaluate.tables import load_tables
from m3bind.experiments.suite import FOLDER, load_suite
from m3bind.models import registry
from m3bind.models.layers.text_encoder import make_text_encoder, train_wordpiece

TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL: dict[str, dict[str, Any]] = {
    "picture": {"model": "compact_2d", "modality": "xray", "image_size": 32, "widths": [8, 16]},
    "volume": {"model": "compact_3d", "modality": "ct", "shape": [8, 16, 16], "spacing": [4.0, 4.0, 4.0]},
    "ecg": {"model": "compact_1d", "modality": "ecg", "rate": 50.0, "seconds": 5.0},
}
PAIRS = 400  # of which at least 128 are in the test split
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "ct_net": {"model": "ct_net", "untrained": True, "settings": {"outputs": 18}},
    "ct_clip_lipro": {"model": "ct_clip", "untrained": True, "settings": {"classifier": True}},
}
KINDS = {"ct": "volume", "ecg": "ecg"}  # of a model, by the modality it is measured on


def datasets() -> list[str]:
    """Data sets of the paper's tables."""
    blocks = [block for table in load_tables("paper").table for block in table.block]
    return sorted({column.dataset for block in blocks for column in block.columns})


def make_data(folder: Path) -> None:
    """Every data set as its publisher distributes it, prepared into folder/data/NAME."""
    for name in datasets():
        size = {"n": PAIRS} if name == "mimic_pair" else {}
        importlib.import_module(f"evaluate.benchmarks.trees.{name}").make(folder / "official" / name, **size)
        prepare(get(name), folder / "official" / name, folder / "data" / name)


def make_models(folder: Path) -> dict[str, Path]:
    """A small dual encoder of each kind with random weights."""
    assets = folder / "assets"
    assets.mkdir(parents=True)
    words = ["normal abnormal present not is observed a photo of the retina lung heart rhythm tissue with and no"]
    (assets / "tokenizer.json").write_text(train_wordpiece(words, minimum=1).to_str())
    made = {}
    for kind, settings in SMALL.items():
        torch.manual_seed(0)
        options = {key: value for key, value in settings.items() if key != "model"}
        model = registry.build(
            settings["model"], assets=assets, joint_dim=12, max_tokens=32, text_config=TEXT, **options
        )
        registry.save(model, folder / kind)
        made[kind] = folder / kind
    return made


def make_space(folder: Path, models: dict[str, Path]) -> Path:
    """A space of five such models."""
    from m3bind.space.bundle import Space, save_space

    names = {"xray": "picture", "retina": "picture", "pathology": "picture", "ct": "volume", "ecg": "ecg"}
    opened = {m: registry.load(models[kind]) for m, kind in names.items()}
    torch.manual_seed(1)
    bridges = {m: torch.linalg.qr(torch.randn(16, 12))[0].T for m in names}
    student = make_text_encoder("bert", dim=16, assets=models["picture"] / "assets", config=TEXT, max_tokens=32)
    return save_space(Space(opened, bridges, student=student.eval()), folder)


def make_suite(folder: Path, classifiers: bool = False, **change: Any) -> Path:
    """All of it, and folder/suite.yaml; with `classifiers` the two in full size."""
    make_data(folder)
    weights = make_models(folder / "models")
    space = make_space(folder / "models" / "space", weights)
    modality = {
        row.model: block.modality for t in load_tables("paper").table for block in t.block for row in block.rows
    }
    models: dict[str, Any] = {}
    for name, source in load_suite("paper").models.items():
        kind = KINDS.get(modality[name], "picture")
        alone = {"model": str(weights[kind]), "untrained": True}
        models[name] = alone if source.model or source.missing else {"space": str(space)}
    models |= CLASSIFIERS if classifiers else {}
    tree = yaml.safe_load((FOLDER / "paper.yaml").read_text())
    tree |= {"data": str(folder / "data"), "cache": str(folder / "cache"), "models": models, "bootstrap": 20}
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(tree | change))
    return path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(make_suite(Path(sys.argv[1]), classifiers=True))
