"""ConVIRT (chest X-ray) in the unofficial ConVIRT-pytorch: ResNet-50 and BioClinicalBERT, 512 joint dimensions.

n items.

    image: ResNet-50, average pool 2048, Linear to 2048, ReLU, Linear to 512.
    text:  BioClinicalBERT, mean over real tokens, Linear to 768, ReLU, Linear to 512.

No weights are published; a checkpoint of that code's own training run loads. It differs in two respects: its images
passed only a random training transform (here: both sides to 224, as that transform starts, ImageNet mean and
deviation), and its texts were random sentences of a report (here: the unchanged text). Zhang et al. 2020,
https://arxiv.org/abs/2010.00747.
"""

from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import IMAGENET_MEAN, IMAGENET_STD, standardize
from m3bind.models.published import BIOCLINICALBERT, Common, PublishedModel, bert_trunk, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

SIZE = 224
TEMPERATURE = 0.1
_STAGES = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}  # places in their nn.Sequential


class Convirt(PublishedModel):
    """ConVIRT as edreisMD/ConVIRT-pytorch wrote it."""

    name = "convirt"
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        *(rename(rf"^res_features\.{place}\.", f"image_trunk.{stage}.") for place, stage in _STAGES.items()),
        rename(r"^res_l1\.", "image_head.0."),
        rename(r"^res_l2\.", "image_head.2."),
        rename(r"^bert_model\.", "text_trunk.bert."),
        rename(r"^bert_l1\.", "text_head.0."),
        rename(r"^bert_l2\.", "text_head.2."),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)
    card = ModelCard(
        source="https://github.com/edreisMD/ConVIRT-pytorch (unofficial; Zhang et al. 2020, arXiv:2010.00747)",
        revision="c99ca5f",
        licence_code="MIT",
        licence_weights="no weights published",
        joint_dim=512,
        input="3x224x224, both sides resized, ImageNet mean/std",
        lora_text=("query", "value"),
        lora_image=("conv1", "conv2", "conv3"),
        training_data=("MIMIC-CXR (what the code reads)", "MIMIC-III notes (BioClinicalBERT)"),
        notes="model.pth of your own run of that code.",
    )

    def __init__(self, **common: Unpack[Common]) -> None:
        """Build with random weights; arguments as for `PublishedModel`."""
        super().__init__(**common)
        self.max_tokens = 512
        self.image_trunk = resnet50_trunk()
        self.image_head = _head(2048, self.joint_dim)
        self.text_trunk = bert_trunk(28996, "mean")
        self.text_head = _head(768, self.joint_dim)
        self._finish()

    @property
    def logit_scale(self) -> Tensor:
        """Fixed, 1 / 0.1."""
        return torch.tensor(1 / TEMPERATURE)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W) or (H, W, 3) -> (3, 224, 224), ImageNet mean and standard deviation."""
        from torchvision.transforms.functional import resize

        pixels = np.array(resize(rgb_image(sample), [SIZE, SIZE]), dtype=np.float32)
        return standardize(
            torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255)), IMAGENET_MEAN, IMAGENET_STD
        ).contiguous()


def _head(in_dim: int, out_dim: int) -> nn.Sequential:
    """(n, f) -> (n, 512)."""
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.ReLU(), nn.Linear(in_dim, out_dim))
