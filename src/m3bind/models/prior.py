"""PRIOR (chest X-ray): grey ResNet-50 with attention pooling, BioClinicalBERT with a bank of sentence prototypes.

n images, k texts, R = 49 regions (7 x 7), d = 768 joint dimensions.

    image: ResNet-50 of one channel, attention pool 2048, Linear. Regions: the last map, Linear.
    text:  BioClinicalBERT, mean over tokens without [CLS], Linear: the sentence. The bank replaces it by the mean of
           its 512 prototypes, weighted by softmax(sentence . prototype / 0.9); attention pool over sentences.

A text is one sentence here, as in the authors' zero-shot test. Their bank adds Gumbel noise to the weights, also at
inference, so that every call embeds the same text differently: bank="soft", the default, omits the noise,
bank="gumbel" draws it, bank="none" skips the bank (their first training stage). Their zero-shot test multiplies cosines
by the learned logarithm itself (`logits`), their training by its exponential (`logit_scale`); the test adds half the
softmax of `local_scores` (`zero_shot`). Their regions come from reading the map (2048, 7, 7) as 49 rows of 2048
without transposing it, in training and after; this is reproduced here. Cheng et al. 2023, https://arxiv.org/abs/2307.12577.
"""

import math
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.layers.transforms import grey_image, standardize
from m3bind.models.published import BIOCLINICALBERT, Common, LearnedScale, PublishedModel, bert_trunk, resnet50_trunk
from m3bind.models.weights.checkpoint import rename

SIZE, MAX_TOKENS = 224, 256
MEAN, STD = (0.5062731200407803,), (0.28946775394688107,)
PROTOTYPES, SOFTNESS = 512, 0.9
LOCAL_WEIGHT = 0.5
Bank = Literal["soft", "gumbel", "none"]


class PriorImageTower(nn.Module):
    """ResNet-50 of one channel with CLIP's attention pool: (n, 1, 224, 224) -> (n, 2048)."""

    def __init__(self) -> None:
        from open_clip.modified_resnet import AttentionPool2d

        super().__init__()
        self.net: Any = resnet50_trunk()
        self.net.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        self.pool = AttentionPool2d(7, 2048, 8)

    def maps(self, batch: Tensor) -> Tensor:
        """(n, 1, 224, 224) -> (n, 2048, 7, 7)."""
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(batch))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))  # type: ignore[no-any-return]

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 1, 224, 224) -> (n, 2048)."""
        return self.pool(self.maps(batch))  # type: ignore[no-any-return]


class SentencePool(nn.Module):
    """Attention of the mean sentence over itself and the sentences of a text: (n, s, d) -> (n, d)."""

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.c_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, sentences: Tensor) -> Tensor:
        """(n, s, d) -> (n, d)."""
        mean = sentences.mean(1, keepdim=True)
        x = torch.cat([mean, sentences], 1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(mean), self.k_proj(x), self.v_proj(x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # (n, heads, 1, d / heads)
        return self.c_proj(mixed.flatten(1))  # type: ignore[no-any-return]


class SentenceHead(nn.Module):
    """From the mean of a sentence's tokens to its embedding: (k, 768) -> (k, d)."""

    def __init__(self, in_dim: int, dim: int, kind: Bank) -> None:
        super().__init__()
        self.kind = kind
        self.projection = nn.Linear(in_dim, dim)
        self.bank = nn.Embedding(PROTOTYPES, dim)
        self.pool = SentencePool(dim)

    def affinities(self, features: Tensor) -> Tensor:
        """(k, 768) -> (k, 512), each sentence's product with each prototype."""
        return self.projection(features) @ self.bank.weight.T  # type: ignore[no-any-return]

    def sentences(self, features: Tensor) -> Tensor:
        """(k, 768) -> (k, d), replaced by the bank."""
        if self.kind == "none":
            return self.projection(features)  # type: ignore[no-any-return]
        affinities = self.affinities(features)
        soft = self.kind == "soft"
        weights = (affinities / SOFTNESS).softmax(-1) if soft else F.gumbel_softmax(affinities, SOFTNESS)
        return weights @ self.bank.weight

    def forward(self, features: Tensor) -> Tensor:
        """(k, 768) -> (k, d), not normalised."""
        return self.pool(self.sentences(features)[:, None])  # type: ignore[no-any-return]


class LocalAttention(nn.Module):
    """How much regions and sentences attend to each other, by sigmoids: (n, R, d) and (k, d) -> (n, k)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query1, self.key1 = nn.Linear(dim, dim), nn.Linear(dim, dim)  # of regions
        self.query2, self.key2 = nn.Linear(dim, dim), nn.Linear(dim, dim)  # of sentences

    def forward(self, regions: Tensor, sentences: Tensor) -> Tensor:
        """(n, R, d), (k, d) -> (n, k), the mean over regions and both directions."""
        root = math.sqrt(regions.shape[-1])
        to_regions: Tensor = (self.key1(regions) @ self.query2(sentences).T / root).sigmoid()  # (n, R, k)
        to_sentences: Tensor = (self.query1(regions) @ self.key2(sentences).T / root).sigmoid()
        return (to_regions.mean(1) + to_sentences.mean(1)) / 2


class Prior(PublishedModel):
    """PRIOR as its authors published it (the whole image-text checkpoint)."""

    name = "prior"
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        rename(r"^image_encoder\.encoder\.", "image_trunk.net."),
        rename(r"^image_encoder\.atten_pool\.", "image_trunk.pool."),
        rename(r"^global_image_projection\.", "image_head."),
        rename(r"^local_image_projection\.", "region_head."),
        rename(r"^text_encoder\.encoder\.", "text_trunk.bert."),
        rename(r"^local_text_projection\.", "text_head.projection."),
        rename(r"^sentence_bank\.embed\.", "text_head.bank."),
        rename(r"^global_text_attention\.", "text_head.pool."),
        rename(r"^local_cross_attention\.", "local_attention."),
        rename(r"^logit_scale$", "scale.log"),
    )
    ignored_keys = (
        "text_trunk.bert.pooler.*",
        "local_attention.value?.*",
        "global_text_projection.*",
        "predictor.*",
        "prototype_queries",
        "local_logit_scale",
        "sentence_decoder.*",
        "image_decoder.*",
    )
    card = ModelCard(
        source="https://github.com/QtacierP/PRIOR (Cheng et al. 2023, arXiv:2307.12577)",
        revision="086bf2e",
        licence_code="Apache-2.0",
        licence_weights="none stated for the whole model (the repository is Apache-2.0)",
        joint_dim=768,
        input="1x224x224, both sides resized, mean 0.5063, std 0.2895",
        lora_text=("query", "value"),
        lora_image=("conv1", "conv2", "conv3"),
        training_data=(
            "MIMIC-CXR-JPG 2.0.0, AP and PA views",
            "ImageNet-1k (the image tower's start)",
            "MIMIC-III notes (BioClinicalBERT)",
        ),
        notes=(
            "the whole image-text checkpoint of the README's drive link; pretrained/prior_resnet50.pt in the "
            "repository is, by the README, the image tower alone and does not load. bank='gumbel': the authors' noise."
        ),
    )

    def __init__(self, bank: Bank = "soft", **common: Unpack[Common]) -> None:
        """Build with random weights.

        Args:
            bank: "soft", the prototypes' mean without noise; "gumbel", with the authors' noise (every call differs);
                "none", the sentence itself.
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `bank`.
        """
        super().__init__(**common)
        self._check_choice("bank", bank, get_args(Bank))
        self.max_tokens = MAX_TOKENS
        self.image_trunk = PriorImageTower()
        self.image_head = nn.Linear(2048, self.joint_dim)
        self.region_head = nn.Linear(2048, self.joint_dim)
        self.text_trunk = bert_trunk(28996, "mean")
        self.text_head = SentenceHead(768, self.joint_dim, bank)
        self.local_attention = LocalAttention(self.joint_dim)
        self.scale = LearnedScale(initial=100.0)
        self._finish()

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return super().settings() | {"bank": self.text_head.kind}

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W) or (H, W, 3) -> (1, 224, 224)."""
        from torchvision.transforms.functional import resize

        pixels = np.array(resize(grey_image(sample), [SIZE, SIZE]), dtype=np.float32)
        return standardize(torch.from_numpy(pixels[None] / np.float32(255)), MEAN, STD)

    def text_features(self, tokens: Tokens) -> Tensor:
        """Tokens -> (k, 768), the mean over tokens 1 to 254, so without [CLS]."""
        trunk: Any = self.text_trunk
        mask = tokens["attention_mask"]
        hidden = trunk.hidden(tokens["input_ids"], mask)[:, 1 : MAX_TOKENS - 1]
        return hidden.sum(1) / mask[:, 1 : MAX_TOKENS - 1].sum(1, keepdim=True).clamp(min=1)  # type: ignore[no-any-return]

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Unit rows (n, 768) and (k, 768) -> (n, k), cosines times the scale's logarithm, as in the authors' test."""
        scale: Any = self.scale
        return scale.log * images @ texts.T  # type: ignore[no-any-return]

    # ---- regions

    def regions(self, batch: Tensor) -> Tensor:
        """(n, 1, 224, 224) -> (n, 49, 768)."""
        trunk: Any = self.image_trunk
        maps = trunk.maps(batch)
        return self.region_head(maps.reshape(len(maps), -1, maps.shape[1]))  # type: ignore[no-any-return]

    def local_scores(self, regions: Tensor, sentences: Tensor) -> Tensor:
        """(n, 49, 768) and sentences (k, 768) of `text_head.sentences` -> (n, k), 0..1."""
        return self.local_attention(regions, sentences)  # type: ignore[no-any-return]

    def zero_shot(self, batch: Tensor, tokens: Tokens) -> Tensor:
        """Inputs of n images, one prompt for each of k classes -> (n, k), the authors' score; its maximum decides."""
        head: Any = self.text_head
        features = self.text_features(tokens)
        cosines = self.logits(self.encode_image(batch), F.normalize(self.project_text(features), dim=-1))
        local = self.local_scores(self.regions(batch), head.sentences(features))
        return cosines.softmax(1) + LOCAL_WEIGHT * local.softmax(1)
