"""Small stand-ins for tests: a dual encoder of linear towers and pairs of three modalities with shared texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m3bind.align.methods.base import BindingInputs
from m3bind.data.ragged import Ragged
from m3bind.data.text_table import TextTable
from m3bind.data.tokens import TokenStore
from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, ModelCard, Tokens
from m3bind.training.pairs import Images, Pairs, Texts

WORDS = ["heart", "lung", "normal", "large", "small", "left", "right", "nodule", "block", "mild", "severe", "no"]


class BagOfWords(nn.Module):
    """Mean of word vectors, then query and value projections for LoRA to find."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 1, width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        mean = (self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return mean + torch.tanh(self.query(mean)) * self.value(mean)


class ToyEncoder(DualEncoder):
    """Linear image tower, bag-of-words text tower."""

    card = ModelCard("test", "none", "none", 0, "a vector", lora_text=("query", "value"), lora_image=("0",))
    max_tokens = 16

    def __init__(self, inputs: int = 10, joint_dim: int = 6, width: int = 8) -> None:
        super().__init__()
        self.joint_dim, self.inputs, self.width = joint_dim, inputs, width
        self.image_trunk = nn.Sequential(nn.Linear(inputs, width), nn.Tanh())
        self.image_head = nn.Linear(width, joint_dim, bias=False)
        self.text_trunk = BagOfWords(width)
        self.text_head = nn.Linear(width, joint_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    def preprocess(self, sample: Sample) -> Tensor:
        return torch.from_numpy(sample.array.reshape(-1)[: self.inputs].copy())

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        rows = [[WORDS.index(w) + 1 for w in text.split() if w in WORDS][: self.max_tokens] or [1] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def text_features(self, tokens: Tokens) -> Tensor:
        return self.text_trunk(**tokens)  # type: ignore[no-any-return]

    def settings(self) -> dict[str, Any]:
        return {"inputs": self.inputs, "joint_dim": self.joint_dim, "width": self.width}


def toy_pairs(
    sizes: dict[str, int], seed: int = 0, image: str = "input", text: str = "input", joint_dim: int | None = None
) -> dict[str, Pairs]:
    """Pairs of several modalities whose images depend on their texts."""
    random = np.random.default_rng(seed)
    table = TextTable()
    captions: dict[str, list[str]] = {}
    for m, size in sizes.items():
        captions[m] = [" ".join(random.choice(WORDS, random.integers(2, 5), replace=False)) for _ in range(size)]
        table.ids(captions[m])
    table.ids(["normal", "large heart"])
    pairs = {}
    for number, (m, size) in enumerate(sizes.items()):
        torch.manual_seed(seed + number)
        model = ToyEncoder(joint_dim=joint_dim or 6 + number)
        hot = np.array([[w in c.split() for w in WORDS[:10]] for c in captions[m]], dtype=np.float32)
        array = hot + 0.1 * random.standard_normal(hot.shape).astype(np.float32)
        with torch.no_grad():
            features = model.image_features(torch.from_numpy(array))
            finished = torch.nn.functional.normalize(model.project_image(features), dim=-1)
            rows = {"input": array, "features": features.numpy(), "embedding": finished.numpy()}[image]
            text_rows = None
            token_ids = TokenStore(Path("unused"), model.tokenize).table(table) if text == "input" else None
            if text != "input":
                tokens = model.tokenize(list(table))
                hidden = model.text_features(tokens)
                text_rows = (hidden if text == "features" else model.encode_text(tokens)).numpy()
        pairs[m] = Pairs(
            m,
            model,
            Images(model, image, rows),  # type: ignore[arg-type]
            Texts(model, text, table, token_ids, lambda ids, all_rows=text_rows: all_rows[ids]),  # type: ignore
            Ragged.of(table.ids([c]) for c in captions[m]),
            Ragged.of(table.ids(["normal"] if "normal" in c else []) for c in captions[m]),
            np.array([len(c.split()) for c in captions[m]], dtype=np.int64),
            [f"p{i}" for i in range(size)],
        )
    return pairs


def toy_inputs(pairs: dict[str, Pairs], folder: Path, seed: int = 0) -> BindingInputs:
    """What a binding method is given."""
    pool = {m: np.unique(np.concatenate(p.captions)) for m, p in pairs.items()}
    return BindingInputs(pairs, pool, folder, seed)
