"""ECG-CLIP of the paper: a transformer over the 12-lead ECG and a BioClinicalBERT text tower, trained in stage 0.

n records, T samples, P patches, H width. 6 layers, width 512, 8 heads, feed-forward 2048, ReLU, first-token output,
joint dimension 512, learned logit scale: the sizes the paper's repository states. That code cannot run (its position
table and value embedding are unused), so the embedding of the signal is our own: one linear map per patch of 0.1 s over
all leads (a strided convolution), with learned positions. 10 s give P = 100 tokens; one token per sample would
give 1,000 to 5,000, at 100 to 2,500 times the attention cost. A checkpoint with the repository's own keys is recognised
and loaded as `ecg_clip_repository`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.models import registry
from m3bind.models.base import ModelCard
from m3bind.models.layers.augment import ItemRandom, vary
from m3bind.models.layers.heads import make_head
from m3bind.models.layers.pair import TowerPair
from m3bind.models.layers.preprocess import signal_tensor
from m3bind.models.layers.text_encoder import make_text_encoder
from m3bind.models.weights.weight_files import read_state

LEADS = 12
_REPOSITORY_KEY = "ecg_encoder.value_embedding.weight"  # of the repository's layout only, which embeds single samples


@dataclass(frozen=True)
class EcgShape:
    """Input and size of the ECG tower; see `EcgClip`."""

    rate: float  # Hz
    seconds: float
    patch_ms: float
    width: int
    layers: int
    heads: int
    feed_forward: int
    dropout: float


class EcgTransformer(nn.Module):
    """Post-norm transformer encoder over patches of an ECG with a first token: (n, 12, T) -> (n, H).

    transformers' BertModel is this network (with ReLU); its one-word vocabulary is the first token.
    """

    def __init__(self, shape: EcgShape) -> None:
        """T is rate * seconds, a multiple of the patch.

        Raises:
            ConfigError: it is not.
        """
        from transformers import BertConfig, BertModel

        super().__init__()
        samples, patch = round(shape.rate * shape.seconds), round(shape.rate * shape.patch_ms / 1000)
        if samples % patch:
            raise ConfigError(f"{samples} samples are no multiple of the patch of {patch}; change seconds or patch_ms.")
        config = BertConfig(
            vocab_size=1,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.feed_forward,
            hidden_act="relu",
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            max_position_embeddings=samples // patch + 1,
            type_vocab_size=1,
            pad_token_id=None,
            layer_norm_eps=1e-5,
        )
        self.patches = nn.Conv1d(LEADS, shape.width, patch, patch)
        self.encoder: Any = BertModel(config, add_pooling_layer=False)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, 12, T) -> (n, H), the first token of the last layer."""
        tokens = self.patches(batch).transpose(1, 2)  # (n, P, H)
        first = self.encoder.embeddings.word_embeddings.weight.expand(batch.shape[0], 1, -1)
        hidden: Tensor = self.encoder(inputs_embeds=torch.cat([first, tokens], dim=1)).last_hidden_state
        return hidden[:, 0]


class EcgClip(TowerPair):
    """The paper's ECG-CLIP; both towers are trained."""

    name = "ecg_clip"
    card = ModelCard(
        source="Multimodal Medical Image Binding via Shared Text Embeddings (M3Bind), section on ECG-CLIP",
        licence_code="Apache-2.0",
        licence_weights="none published; text tower: that of the folder or repository given",
        joint_dim=512,
        input="12 x (rate * seconds), units of 0.5 mV, median of each lead subtracted",
        lora_text=("query", "value"),
        lora_image=("query", "value"),
        training_data=("MIMIC-III notes (BioClinicalBERT)",),
        notes="Patch embedding of 0.1 s is ours; the paper's repository does not run (see ecg_clip_repository).",
    )

    def __init__(
        self,
        text: str | Path | Mapping[str, Any] = "emilyalsentzer/Bio_ClinicalBERT",
        revision: str = "",
        joint_dim: int = 512,
        rate: float = 100.0,
        seconds: float = 10.0,
        patch_ms: float = 100.0,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        pooling: str = "cls",
        max_tokens: int | None = None,
        text_config: Mapping[str, Any] | None = None,
        frozen: Sequence[str] = (),
        modality: str = "ecg",
        assets: Path | str | None = None,
    ) -> None:
        """Build with a random ECG tower; the text tower has its own weights unless text="bert" or settings.

        Args:
            text: text tower, see `make_text_encoder`: BioClinicalBERT's folder or hub id (pin `revision`), or "bert".
            revision: commit, when `text` is a hub id.
            joint_dim: d_m.
            rate: Hz after resampling.
            seconds: length used around the centre.
            patch_ms: length of one token in milliseconds.
            width: H.
            layers: transformer layers.
            heads: attention heads.
            feed_forward: inner width.
            dropout: of both kinds, in the ECG tower.
            pooling: of the text tower, "cls" or "mean".
            max_tokens: longest text in tokens.
            text_config: for text="bert": fields of BertConfig.
            frozen: parts that stage 0 does not train.
            modality: name of its modality.
            assets: folder with tokenizer.json, for text="bert".

        Raises:
            ConfigError: lengths that do not divide, or a missing setting of the text tower.
        """
        if pooling not in ("cls", "mean"):
            raise ConfigError(f"pooling={pooling!r} is unknown; choose 'cls' or 'mean'.")
        encoder = make_text_encoder(
            text,
            joint_dim,
            head={"kind": "linear", "bias": True},
            assets=assets,
            max_tokens=max_tokens,
            pooling="cls" if pooling == "cls" else "mean",
            revision=revision,
            config=text_config,
        )
        shape = EcgShape(rate, seconds, patch_ms, width, layers, heads, feed_forward, dropout)
        trunk = EcgTransformer(shape)
        own = {"joint_dim": joint_dim, **asdict(shape), "pooling": pooling, "modality": modality}
        super().__init__(trunk, make_head("linear", width, joint_dim, bias=True), encoder, own, frozen)

    @classmethod
    def from_checkpoint(cls, path: Path | str, settings: Mapping[str, Any], variant: str = "") -> Self:
        """As the base class; a file of the paper's repository is loaded as an `EcgClipRepository`, with its settings.

        Raises:
            CheckpointError: damaged, unsafe to read, or of neither layout.
            UnknownNameError: a setting that the model of the file's layout does not have.
        """
        if any(key.endswith(_REPOSITORY_KEY) for key in read_state(path)):
            return registry.load("ecg_clip_repository", path, **settings)  # type: ignore[return-value]
        return super().from_checkpoint(path, settings, variant)

    def preprocess(self, sample: Sample) -> Tensor:
        """(12, T) in mV -> (12, rate * seconds), units of 0.5 mV."""
        return signal_tensor(sample, self._own["rate"], self._own["seconds"], LEADS)

    def augment(self, batch: Tensor, random: ItemRandom) -> Tensor:
        """Shift in time up to 5 %, amplitude +-10 %, a little noise; never mirrored."""
        return vary(batch, random, shift=0.05, noise=0.05)
