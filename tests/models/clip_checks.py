"""Checks shared by the models of the CLIP family: all golden outputs, padding, unusual inputs, preprocessing."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, Tokens
from models.golden import Golden, assert_steady, assert_steady_text, pictures

TEXTS = [
    "",
    "!",
    "! !! !",
    "Pneumonia",
    "PNEUMONIA IN THE LEFT LOWER LOBE",
    "No acute cardiopulmonary process.",
    "It's the patient's X-ray; they've seen 2 of 10 (20%)",
    "HER2/neu 3+, ER-/PR-, Ki-67 ~ 35 %",
    "a  b\tc\nd\r\ne",
    "   leading and trailing   ",
    "naïve café, Sjögren's, Ménière",
    "10 µm, 37 °C, ±5 Å, ½ ² ³",
    "心电图正常",
    "ЭКГ в норме",
    "Ελληνικά ΣΑΣ ς",
    "İstanbul ǅ ß ſ ﬁne ﬂow",
    "😀 👩🏽‍⚕️ emoji",
    "&lt;b&gt; &amp;amp; &#39;x&#39; &nbsp;",
    "donâ€™t fix Ã© mojibake",
    "<start_of_text> in between <END_OF_TEXT> and after",
    "a!<end_of_text>b",
    "“curly” ‘quotes’ – — …",
    "zero\u200bwidth and\u00a0hard\u2003spaces \u3000 here",
    "e\u0301 combining, \u1e9b\u0323",
    "tab\x1cseparators\x85and\x0bmore",
    "http://example.org/a_b?c=d&e=f#g",
    "word" * 200,
    "histopathology " * 76,
    "x " * 74 + "the end",
    "x " * 75,
]


def golden_images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


def trimmed(tokens: Tokens) -> Tokens:
    """Without the padding all texts have."""
    longest = int(tokens["attention_mask"].sum(1).max())
    return {key: value[:, :longest] for key, value in tokens.items()}


@contextmanager
def shortened(trunk: nn.Module) -> Iterator[None]:
    """Only the first fourth of a transformer's layers."""
    where, layers = next(
        (name, m) for name, m in trunk.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) >= 12
    )
    parent, _, name = where.rpartition(".")
    setattr(trunk.get_submodule(parent), name, layers[: len(layers) // 4])
    try:
        yield
    finally:
        setattr(trunk.get_submodule(parent), name, layers)


@torch.no_grad()
def assert_golden(golden: Golden, model: DualEncoder) -> None:
    """Every output of the fixture, computed through the adapter; texts padded as the fixture's and as little as can be.

    "txt_pair_emb_raw_nomask" is the same computation for a tower that takes no mask.
    """
    got = {"logit_scale_exp": model.logit_scale, "img_pooled": model.image_features(golden_images(golden))}
    got["img_emb_raw"] = model.project_image(got["img_pooled"])
    got["img_emb"] = image = torch.nn.functional.normalize(got["img_emb_raw"], dim=-1)
    for which in ("pair", "long"):
        full = golden.tokens(which)
        for tokens in (trimmed(full), full):
            pooled = model.text_features(tokens)
            raw = model.project_text(pooled)
            found = {"pooled": pooled, "emb_raw": raw, "emb_raw_nomask": raw, "emb": model.encode_text(tokens)}
            now = {f"txt_{which}_{name}": value for name, value in found.items()}
            golden.compare({name: value for name, value in now.items() if name in golden.fixture.tol})
        got |= now
    texts = torch.cat([got["txt_pair_emb"], got["txt_long_emb"]])
    got["logits"], got["logits_pair"] = model.logits(image, texts), model.logits(image, got["txt_pair_emb"])
    wanted = set(golden.meta["outputs"])
    assert wanted <= set(got)
    golden.compare({name: got[name] for name in wanted})


def assert_batches(golden: Golden, model: DualEncoder) -> None:
    """Alone, in a batch of eight, and again; images through a fourth of the layers, which are all equal."""
    with shortened(model.image_trunk):
        assert_steady(model.encode_image, golden_images(golden))
    tokens = golden.tokens("pair")
    assert_steady_text(model, tokens)
    with torch.no_grad():
        filled = {**tokens, "input_ids": tokens["input_ids"] + 7 * (1 - tokens["attention_mask"])}
        torch.testing.assert_close(model.encode_text(filled), model.encode_text(tokens), atol=2e-6, rtol=0)


def assert_pictures(golden: Golden, model: DualEncoder, prefix: str = "") -> None:
    """The authors' evaluation transform to the pixel, on images that are not in the fixtures."""
    for name, pixels in pictures(golden):
        sample = Sample("pathology", pixels.astype(np.float32) / 255)
        golden.compare_picture(f"{prefix}{name}", model.preprocess(sample))
    for shape in ((10, 10), (300, 1), (1, 300, 3), (224, 224, 3), (2000, 31)):
        made = model.preprocess(Sample("pathology", np.full(shape, 0.5, np.float32)))
        assert made.shape == (3, 224, 224) and made.dtype == torch.float32 and bool(made.isfinite().all())


def assert_norms(golden: Golden, model: DualEncoder) -> None:
    """As many LayerNorms of each eps as the authors' network has."""
    found = [m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)]
    wanted = {float(name.partition("=")[2]): row["count"] for name, row in golden.meta["norm_eps"].items()}
    assert {eps: found.count(eps) for eps in set(found)} == wanted


def activations(module: nn.Module) -> set[str]:
    """Class names of the activation functions among the modules."""
    return {type(m).__name__ for m in module.modules() if "GELU" in type(m).__name__}
