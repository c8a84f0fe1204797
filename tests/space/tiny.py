"""A tiny dual encoder, student and modality for tests of the space; also imported by processes the tests start."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from m3bind import modalities
from m3bind.errors import ReadError
from m3bind.modalities.base import Modality, Sample
from m3bind.models import registry
from m3bind.models.base import DualEncoder, ModelCard
from m3bind.models.layers.heads import make_head
from m3bind.models.layers.text_encoder import TextEncoder, train_wordpiece


class Grey(Modality):
    """Grey PNG pictures of any size; those 33 pixels wide are doubted."""

    name = "grey"
    suffixes = (".png",)

    def read(self, path):
        try:
            array = np.asarray(Image.open(path).convert("L"), np.float32) / 255
        except FileNotFoundError as error:
            raise ReadError(path, "no such file") from error
        except OSError as error:
            raise ReadError(path, "not a picture") from error
        doubts = [f"{len(array)} rows of 33 pixels", "odd"] if array.shape[1] == 33 else []
        return Sample(self.name, array, warnings=doubts)

    def thumbnail(self, sample, size=160):
        return Image.fromarray((sample.array * 255).astype(np.uint8)).convert("RGB").resize((size, size))


class Other(Grey):
    """The same under another name."""

    name = "other"


class WordTrunk(nn.Module):
    """Letters to counts of letters: (n, L) -> (n, 32)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, 32)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids, mask):
        rows = self.table(ids) * mask.unsqueeze(-1)
        return rows.sum(1) / mask.sum(1, keepdim=True)


class Tiny(DualEncoder):
    """Linear towers on an 8x8 picture and on letters."""

    name = "tiny"
    card = ModelCard("here", "Apache-2.0", "CC0-1.0", 0, "8x8")
    max_tokens = 40

    def __init__(self, joint_dim=6, seed=0, prompt=""):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)  # the same trunks whatever the seed
            self.image_trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())
            self.text_trunk = WordTrunk()
            torch.manual_seed(seed)
            self.image_head = nn.Linear(32, joint_dim, bias=False)
            self.text_head = nn.Linear(32, joint_dim, bias=False)
            self.log_scale = nn.Parameter(torch.tensor(2.0 + seed))
        self.joint_dim, self.seed, self.prompt = joint_dim, seed, prompt

    @property
    def logit_scale(self):
        return self.log_scale.exp()

    def settings(self):
        return {
            "joint_dim": self.joint_dim,
            "seed": 50,
            "prompt": self.prompt,
        }  # weights must come from disk

    def preprocess(self, sample):
        if sample.array.max() == sample.array.min():
            raise ValueError("empty picture")
        picture = Image.fromarray((sample.array * 255).astype(np.uint8)).resize((8, 8))
        return torch.from_numpy(np.asarray(picture, np.float32) / 255)

    def tokenize(self, texts):
        codes = [[min(ord(c), 127) for c in self.prompt + t][: self.max_tokens] for t in texts]
        longest = max(map(len, codes))
        ids = torch.tensor([c + [0] * (longest - len(c)) for c in codes])
        mask = torch.tensor([[1] * len(c) + [0] * (longest - len(c)) for c in codes])
        return {"input_ids": ids, "attention_mask": mask}

    def text_features(self, tokens):
        return self.text_trunk(tokens["input_ids"], tokens["attention_mask"])


def register():
    """Make the tiny model and modalities known without looking for others."""
    registry._registry._classes = {"tiny": Tiny}
    modalities.base._registry._classes = {"grey": Grey, "other": Other}


def student(dim):
    """A real text encoder, as small as it gets."""
    from transformers import BertConfig

    from m3bind.models.layers.bert import BertTrunk

    words = train_wordpiece(["normal picture of a heart", "abnormal lung", "bright dark grey"], 60)
    config = BertConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        trunk = BertTrunk(config)
        return TextEncoder(trunk, make_head("linear", 16, dim), words, 16, {"kind": "linear", "dim": dim}).eval()


def make_space(dim=8, seed=0, distilled=True, **info):
    """A space of two modalities with bridges of orthonormal rows."""
    from m3bind.space.bundle import Space
    from m3bind.space.folder import SpaceInfo

    rng = np.random.default_rng(seed)
    models = {"grey": Tiny(6, seed), "other": Tiny(5, seed + 1, "a ")}
    for model in models.values():
        model.registered_name = "tiny"
    bridges = {m: np.linalg.qr(rng.normal(size=(dim, model.joint_dim)))[0].T for m, model in models.items()}
    means = {m: rng.normal(size=dim) / 9 for m in models}
    return Space(models, bridges, means, student(dim) if distilled else None, SpaceInfo(**info))


def pictures(folder: Path, n, seed=0):
    """n random PNG files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (16, 12), dtype=np.uint8)).save(path)
    return paths


def measured_space(folder):
    """A space with measures of unlike inputs and temperatures, and 40 usual files."""
    from m3bind.space.bundle import Space
    from m3bind.space.folder import SpaceInfo
    from m3bind.space.input_statistics import input_statistics
    from m3bind.space.unlike import fit_unlike

    space, paths = make_space(), pictures(folder, 40)
    measures = {}
    for name in space.modalities:
        inputs = torch.stack([space.read(path, name) for path in paths])
        with torch.no_grad():
            features = space.model(name).image_features(inputs).flatten(1).numpy()
        halves = [part[at] for at in (slice(30), slice(30, None)) for part in (features, input_statistics(inputs))]
        measures[name] = fit_unlike(*halves, inputs[:10])
    contents = space._contents
    info = SpaceInfo(temperatures={"grey": 2.0})
    return Space(contents.models, contents.bridges, contents.means, contents.student, info, measures), paths
