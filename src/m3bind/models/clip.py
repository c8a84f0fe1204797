"""CLIP of OpenAI (ViT-B/32), and the base of its descendants: QuiltNet, PLIP, the image tower of UniMed-CLIP.

n items, L tokens, f width of a tower.

    image: ViT without biases in the patches; class token after the last LayerNorm, 768; Linear without bias.
    text:  causal transformer; state of the end-of-text token after the last LayerNorm, 512; Linear without bias.

Files come in two forms, that of OpenAI and open_clip and that of transformers; the network has the names of the latter,
in which LoRA can adapt query and value alone (`clip_keys`). The weights of neither form state the GELU they were
trained with, and a wrong one costs accuracy without any error: it is read from a configuration in the weights' folder,
by default as published; `quick_gelu` overrides both. Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from m3bind.core.files import sha256_text
from m3bind.data.tokens import probe_key
from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models.base import ModelCard, Tokens
from m3bind.models.layers.preprocess import rgb_image
from m3bind.models.layers.transforms import clip_transform
from m3bind.models.published import Common, LearnedScale, PublishedModel
from m3bind.models.weights.checkpoint import LoadReport, load_strict
from m3bind.models.weights.clip_keys import CLIP_PARTS, huggingface_keys, is_open_clip, read_quick_gelu
from m3bind.models.weights.weight_files import read_state

SIZE = 224
MAX_SCALE = 100.0  # upper limit of the scale
VOCABULARY, CONTEXT = 49408, 77
_ACTIVATIONS = {True: "quick_gelu", False: "gelu"}


class ClipImageTrunk(nn.Module):
    """transformers' CLIP vision tower, pooled; `model` holds it under CLIPModel's own keys."""

    def __init__(self, patch: int, quick_gelu: bool) -> None:
        """ViT-B for 224 x 224 pixels in patches of `patch`."""
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        config = CLIPVisionConfig(patch_size=patch, image_size=SIZE, hidden_act=_ACTIVATIONS[quick_gelu])
        model = CLIPVisionModel(config)
        self.model: nn.Module = getattr(model, "vision_model", model)  # one level deeper in older releases

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 3, 224, 224) -> (n, 768)."""
        return self.model(pixel_values=batch).pooler_output  # type: ignore[no-any-return]


class ClipTextTrunk(nn.Module):
    """transformers' CLIP text tower, pooled at the end-of-text token.

    A causal tower's state at a token does not depend on what follows, so no mask is needed; padding common to all texts
    is cut off.
    """

    def __init__(
        self, quick_gelu: bool, width: int = 512, heads: int = 8, layers: int = 12, context: int = CONTEXT
    ) -> None:
        """`context` is the number of positions."""
        from transformers import CLIPTextConfig, CLIPTextModel

        super().__init__()
        self.width, self.context = width, context
        config = CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=context,
            hidden_act=_ACTIVATIONS[quick_gelu],
        )
        model = CLIPTextModel(config)
        self.model: nn.Module = getattr(model, "text_model", model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 (n, L) and a 0/1 mask (n, L) -> (n, f). The end of a text is its highest id.

        Raises:
            ConfigError: a text longer than the tower's context or, on the host, one that does not begin in the first
                column (on another device its row is NaN, since to look for one the host would wait).
        """
        if len(input_ids) == 0:
            return torch.zeros(0, self.width, device=input_ids.device)
        on_host, length = input_ids.device.type == "cpu", input_ids.shape[1]
        if length == 0 or (on_host and not bool(attention_mask[:, 0].all())):
            raise ConfigError(
                "a text has no token in the first column (attention_mask is zero there): texts need at least one token "
                "each and are padded on the right."
            )
        ends = input_ids.masked_fill(attention_mask == 0, -1).argmax(1)
        if on_host:
            length = int(ends.max()) + 1
        if length > self.context:
            raise ConfigError(f"a text of {length} tokens for a CLIP of {self.context} positions; use `tokenize`.")
        hidden: Tensor = self.model(input_ids=input_ids[:, :length]).last_hidden_state  # (n, length, f)
        rows = hidden[torch.arange(len(ends), device=ends.device), ends]
        return rows if on_host else rows.masked_fill(attention_mask[:, :1] == 0, torch.nan)


class ClipModel(PublishedModel):
    """A ViT-B CLIP with CLIP's text tower; a subclass declares names, cards, `patches` and `published_quick_gelu`."""

    own_settings: ClassVar[tuple[str, ...]] = ("quick_gelu",)
    patches: ClassVar[Mapping[str, int]] = {}  # registered name -> side of a patch
    published_quick_gelu: ClassVar[bool] = True
    migrations = (huggingface_keys, *CLIP_PARTS)

    def __init__(self, variant: str = "", quick_gelu: bool | None = None, **common: Unpack[Common]) -> None:
        """Build with random weights.

        Args:
            variant: registered name, for a class with several.
            quick_gelu: x * sigmoid(1.702 x) instead of GELU; None: as in the configuration beside the weights, without
                one as published.
            common: see `PublishedModel`.
        """
        super().__init__(variant, **common)
        self._gelu_given = quick_gelu is not None
        self.quick_gelu = self.published_quick_gelu if quick_gelu is None else quick_gelu
        self.max_tokens = CONTEXT
        self.image_trunk = ClipImageTrunk(self.patches[self.variant], self.quick_gelu)
        self.image_head = nn.Linear(768, self.joint_dim, bias=False)
        self.text_trunk = ClipTextTrunk(self.quick_gelu)
        self.text_head = nn.Linear(512, self.joint_dim, bias=False)
        self.scale = LearnedScale(limit=MAX_SCALE)
        self._finish()

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Load published weights strictly, in either form, with the GELU of their folder's configuration.

        Raises:
            CheckpointError: the file is damaged, unsafe to read, or does not fit; or its configuration is not a CLIP's.
        """
        state = read_state(path)
        if not self._gelu_given:
            stored = read_quick_gelu(Path(path), is_open_clip(state))
            self._set_gelu(self.published_quick_gelu if stored is None else stored)
        return load_strict(self, state, self.migrations, self.ignored_keys, source=str(path))

    def _set_gelu(self, quick: bool) -> None:
        from transformers.activations import ACT2FN

        self.quick_gelu = quick
        for module in self.modules():
            if hasattr(module, "activation_fn"):
                module.activation_fn = ACT2FN[_ACTIVATIONS[quick]]

    def preprocess(self, sample: Sample) -> Tensor:
        """(H, W), (H, W, 3) or (D, H, W) -> (3, 224, 224): shortest side 224, centre crop, CLIP's mean and std."""
        return clip_transform(SIZE)(rgb_image(sample))


class BpeTexts(PublishedModel):
    """Texts tokenized by open_clip's copy of CLIP's BPE, which needs no file; a base beside the network's."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """open_clip's ids, truncated to `max_tokens` before the end-of-text token; padded to the longest of `texts`."""
        return bpe_tokens(texts, self.max_tokens)

    def tokenizer_key(self) -> str:
        """Hash of the maximum length and, since the vocabulary comes with open_clip, of the ids of some texts."""
        return sha256_text("bpe", version("open_clip_torch"), str(self.max_tokens), probe_key(self.tokenize))

    def _read_tokenizer(self) -> Tokenizer:
        raise ConfigError(f"{self.variant} has no tokenizer file of its own; call its tokenize(texts).")

    def save_assets(self, folder: Path) -> None:
        """Writes nothing: the vocabulary comes with open_clip."""


class Clip(BpeTexts, ClipModel):
    """CLIP ViT-B/32 as OpenAI published it."""

    name = "clip"
    patches: ClassVar[Mapping[str, int]] = {"clip": 32}
    ignored_keys: ClassVar[tuple[str, ...]] = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archive
    card = ModelCard(
        source="https://github.com/openai/CLIP (Radford et al. 2021, arXiv:2103.00020)",
        revision="open_clip 89fb801",
        licence_code="MIT",
        licence_weights="MIT",
        joint_dim=512,
        input="3x224x224: shortest side 224 bicubic, centre crop, CLIP mean and std",
        lora_text=("q_proj", "v_proj"),
        lora_image=("q_proj", "v_proj"),
        training_data=("400 million image-text pairs from the web (WIT, not public)",),
        notes=(
            "hub id openai/clip-vit-base-patch32, an open_clip file of ViT-B-32, or the state dict of OpenAI's "
            "ViT-B-32.pt. quick_gelu unless the folder's configuration says otherwise."
        ),
        use="general images",
        verified="open_clip's and transformers' code, generated weights",
    )

    def __init__(self, variant: str = "", quick_gelu: bool | None = None, frozen: Sequence[str] = ()) -> None:
        """Build with random weights; arguments as for `ClipModel`, without a tokenizer."""
        super().__init__(variant, quick_gelu, frozen=frozen)


def repaired(text: str) -> str:
    """A text as open_clip passes it to any tokenizer: broken encodings and HTML entities repaired, single spaces."""
    from open_clip.tokenizer import basic_clean, whitespace_clean

    return whitespace_clean(basic_clean(text))  # type: ignore[no-any-return]


@cache
def _bpe() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def bpe_tokens(texts: Sequence[str], context: int = CONTEXT) -> Tokens:
    """Texts as open_clip tokenizes them for CLIP, up to `context` ids each.

    Ids are padded with 0, which is also the token "!", so the mask ends at the end-of-text token.
    """
    bpe = _bpe()
    ids: Tensor = bpe(list(texts), context_length=context)
    ends = (ids == bpe.eot_token_id).int().argmax(1)
    longest = int(ends.max()) + 1 if len(ids) else 0
    mask = (torch.arange(longest) <= ends[:, None]).long()
    return {"input_ids": ids[:, :longest], "attention_mask": mask}
