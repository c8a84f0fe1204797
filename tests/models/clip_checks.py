"""Checks that the models of the CLIP family share: all golden outputs, padding, odd inputs, preprocessing."""

import numpy as np
import torch
from torch import nn

from m3bind.modalities.base import Sample
from m3bind.models.base import DualEncoder, Tokens
from models.golden import Golden, assert_steady, assert_steady_text, pictures


def golden_images(golden: Golden) -> torch.Tensor:
    return torch.from_numpy(golden.inputs.image("a", "image", (2, 3, 224, 224)))


def trimmed(tokens: Tokens) -> Tokens:
    """Without the padding all texts have."""
    longest = int(tokens["attention_mask"].sum(1).max())
    return {key: value[:, :longest] for key, value in tokens.items()}


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
    """Alone, in a batch of eight, and again."""
    assert_steady(model.encode_image, golden_images(golden))
    tokens = golden.tokens("pair")
    assert_steady_text(model, tokens)
    with torch.no_grad():
        filled = {**tokens, "input_ids": tokens["input_ids"] + 7 * (1 - tokens["attention_mask"])}
        torch.testing.assert_close(model.encode_text(filled), model.encode_text(tokens), atol=2e-6, rtol=0)


def assert_pictures(golden: Golden, model: DualEncoder, prefix: str = "") -> None:
    """The authors' evaluation transform to the pixel, and pictures no fixture holds."""
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
