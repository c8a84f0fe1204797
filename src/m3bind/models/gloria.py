"""GLoRIA (chest X-ray): ResNet-50 and BioClinicalBERT, 768 joint dimensions, global and local comparison.

n images, k texts, L tokens, R = 361 regions (19 x 19), W words.

    image: the input upsampled to 299 x 299, ResNet-50, average pool 2048, Linear. Regions: layer 3, Linear.
    text:  BioClinicalBERT, sum of the last 4 hidden states, summed over tokens, divided by 97. Words: the same sums,
           pieces of one word added up.

The authors' zero-shot score is the mean of the cosine (`logits`) and of `local_similarities`. In their
code the latter reads as many words as the text has characters (padding then enters as words of zeros); here the default
is the number of its words, and another count can be given. Training multiplied cosines by 10
(`logit_scale`). Huang et al. 2021, ICCV, pages 3942-3951.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.layers.chest import clean_report, radiograph, upsample
from m3bind.models.published import BIOCLINICALBERT, Common, PublishedModel, bert_trunk, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

MAX_TOKENS = 97
ATTENTION, SHARPNESS, SCALE = 4.0, 5.0, 10.0  # temp1, temp2, temp3 of the authors' settings


class Gloria(PublishedModel):
    """GLoRIA as its authors published it, with ResNet-50."""

    name = "gloria_resnet50"
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        rename(r"^.*gloria\.", ""),
        rename(r"^img_encoder\.model\.", "image_trunk."),
        rename(r"^img_encoder\.global_embedder\.", "image_head."),
        rename(r"^img_encoder\.local_embedder\.", "region_head."),
        rename(r"^text_encoder\.model\.", "text_trunk.bert."),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)
    card = ModelCard(
        source="https://github.com/marshuang80/gloria (Huang et al. 2021, ICCV)",
        revision="416466a",
        licence_code="Apache-2.0",
        licence_weights="none stated",
        joint_dim=768,
        input="3x224x224, grey repeated, -1..1; longest side 256, zeros around, centre crop; upsampled to 299 inside",
        lora_text=("query", "value"),
        lora_image=("conv1", "conv2", "conv3"),
        training_data=(
            "CheXpert v1.0 with its impressions",
            "ImageNet-1k (the image tower's start)",
            "MIMIC-III notes (BioClinicalBERT)",
        ),
        notes=(
            "Lightning checkpoint chexpert_resnet50.ckpt; it holds an OmegaConf object and must be converted to "
            "safetensors once (the error message says how)."
        ),
    )

    def __init__(self, **common: Unpack[Common]) -> None:
        """Build with random weights; arguments as for `PublishedModel`."""
        super().__init__(**common)
        self.max_tokens = MAX_TOKENS
        self.image_trunk = resnet50_trunk()
        self.image_head = nn.Linear(2048, self.joint_dim)
        self.region_head = nn.Conv2d(1024, self.joint_dim, 1, bias=False)
        self.text_trunk = bert_trunk(28996, "mean", states=(-4, -3, -2, -1), combine="sum")
        self.text_head = nn.Identity()
        self._finish()

    @property
    def logit_scale(self) -> Tensor:
        """Fixed, 10: the factor on cosines in the authors' training."""
        return torch.tensor(SCALE)

    def clean(self, text: str) -> str:
        """The authors' report cleaning; see `clean_report`."""
        return clean_report(text)

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W) or (H, W, 3) -> (3, 224, 224) in -1..1."""
        return radiograph(sample)

    def image_features(self, batch: Tensor) -> Tensor:
        """(n, 3, 224, 224) -> (n, 2048)."""
        return super().image_features(upsample(batch))

    def text_features(self, tokens: Tokens) -> Tensor:
        """Tokens -> (n, 768), the sum over a text's tokens divided by 97 whatever their number."""
        counts = tokens["attention_mask"].sum(1, keepdim=True)
        return super().text_features(tokens) * (counts / MAX_TOKENS)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Unit rows (n, 768) and (k, 768) -> cosines (n, k), without a factor."""
        return images @ texts.T

    # ---- regions and words

    def regions(self, batch: Tensor) -> Tensor:
        """(n, 3, 224, 224) -> (n, 361, 768), the regions that words are compared with, row by row of the image."""
        net: Any = self.image_trunk
        x = net.maxpool(net.relu(net.bn1(net.conv1(upsample(batch)))))
        x = self.region_head(net.layer3(net.layer2(net.layer1(x))))
        return x.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def words(self, tokens: Tokens, continues: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens -> (k, L, 768): [CLS], words, [SEP], zeros; and the number of words (k,) without these two.

        `continues` is bool (k, L), true where a token continues a word; default: `continuing`.
        """
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        trunk: Any = self.text_trunk
        joined, counts = join_pieces(
            trunk.hidden(ids, mask), mask, self.continuing(ids) if continues is None else continues
        )
        return joined, (counts - 2).clamp(min=1)

    def continuing(self, ids: Tensor) -> Tensor:
        """Which tokens continue a word (their piece begins with "##"): (k, L) -> bool (k, L).

        Raises:
            ConfigError: no tokenizer is available.
        """
        vocabulary = self.tokenizer.tokenizer.get_vocab()
        inner = [row for piece, row in vocabulary.items() if piece.startswith("##")]
        return torch.isin(ids, torch.tensor(inner, dtype=ids.dtype, device=ids.device))

    def local_similarities(self, regions: Tensor, words: Tensor, counts: Tensor | Sequence[int]) -> Tensor:
        """(n, R, 768), (k, W, 768), (k,) -> (n, k): the best word's cosine with the regions it attends to, times 5.

        Words 1 to `counts` of a text are compared, the 0th being [CLS].
        """
        scores = []
        for text, count in zip(words, counts):
            own = text[1 : int(count) + 1]
            shares = (regions @ own.T).softmax(-1)  # (n, R, W)
            context = (ATTENTION * shares).softmax(1).transpose(1, 2) @ regions  # (n, W, 768)
            scores.append(SHARPNESS * F.cosine_similarity(context, own, dim=-1).amax(1))
        return torch.stack(scores, 1)

    def similarities(self, batch: Tensor, tokens: Tokens) -> Tensor:
        """Inputs of n images and k texts -> (n, k), the mean of global and local: the authors' zero-shot score."""
        words, counts = self.words(tokens)
        local = self.local_similarities(self.regions(batch), words, counts)
        return (self.logits(self.encode_image(batch), self.encode_text(tokens)) + local) / 2


def join_pieces(hidden: Tensor, mask: Tensor, continues: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the pieces of each word: (k, L, H), (k, L), bool (k, L) -> (k, L, H), zeros after, and their number (k,).

    `hidden` is zero where `mask` is.
    """
    begins = mask.bool() & ~continues
    place = (begins.cumsum(1) - 1).clamp(min=0)
    joined = torch.zeros_like(hidden).scatter_add(1, place[..., None].expand_as(hidden), hidden)
    return joined, begins.sum(1)
