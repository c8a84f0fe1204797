"""QuiltNet (histopathology): CLIP ViT-B/32 and ViT-B/16 trained on Quilt-1M, and the variant with PubMedBERT.

    quiltnet_b32, quiltnet_b16: CLIP's two towers (`clip`), with plain GELU, as in their open_clip configuration.
    quiltnet_b16_pmb:           BiomedCLIP's network (`biomedclip`) with other weights.

A folder that holds both of the published forms is read in transformers' form, with the activation of its config.json.
 Ikezogwo et al. 2023, https://arxiv.org/abs/2306.11207.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from m3bind.models.base import ModelCard
from m3bind.models.biomedclip import BiomedClip
from m3bind.models.clip import Clip

_CARD = ModelCard(
    source="https://github.com/wisdomikezogwo/quilt1m (Ikezogwo et al. 2023, arXiv:2306.11207)",
    revision="20a5824",
    licence_code="MIT",
    licence_weights="MIT (hub card); the data Quilt-1M is for research only",
    joint_dim=512,
    input="3x224x224: shortest side 224 bicubic, centre crop, CLIP mean and std",
    lora_text=("q_proj", "v_proj"),
    lora_image=("q_proj", "v_proj"),
    training_data=("Quilt-1M (YouTube, Twitter, PubMed, LAION histopathology)", "400 million pairs (CLIP of OpenAI)"),
    notes=(
        "hub id wisdomik/QuiltNet-B-32 or -B-16: open_clip_pytorch_model.bin, or pytorch_model.bin (transformers' "
        "form). Plain GELU unless the folder's configuration says otherwise."
    ),
)


class QuiltNet(Clip):
    """QuiltNet with CLIP's text tower."""

    name = ""
    names = ("quiltnet_b32", "quiltnet_b16")
    patches: ClassVar[Mapping[str, int]] = {"quiltnet_b32": 32, "quiltnet_b16": 16}
    published_quick_gelu = False
    ignored_keys = ()
    cards: ClassVar[Mapping[str, ModelCard]] = dict.fromkeys(names, _CARD)


class QuiltNetPmb(BiomedClip):
    """QuiltNet with PubMedBERT: BiomedCLIP's network and keys, QuiltNet's weights."""

    name = "quiltnet_b16_pmb"
    card = replace(
        _CARD,
        lora_text=("query", "value"),
        lora_image=("qkv",),
        training_data=("Quilt-1M (YouTube, Twitter, PubMed, LAION histopathology)", "PubMed abstracts (BiomedBERT)"),
        notes="hub id wisdomik/QuiltNet-B-16-PMB: open_clip_pytorch_model.bin.",
    )
