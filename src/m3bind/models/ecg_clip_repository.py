"""ECG-CLIP in the layout of the paper's repository: a transformer over single samples of one lead, and BioClinicalBERT.

n items, T samples (at most 5000), w = 512 width.

    ecg:  Linear(1, 512) on each sample + learned position, a first token without position, 6 post-norm layers with
          8 heads, 2048 inner width and ReLU; the first token's output, Linear to 512.
    text: BioClinicalBERT, first token (or BERT's tanh layer on it), Linear to 512.

The repository (silent618/M3Bind, 1aff015) holds constructors of these sizes, no weights, and a forward pass that cannot
run. What is computed here is the declared network, repaired: the declared value embedding and position table are used,
positions count samples, and the text output's first token is projected. For the paper's experiments m3bind trains
`ecg_clip` instead (patches of 12 leads, 50 times shorter sequences); this layout is for files with these keys.

The repository does not define how 12 leads become one sequence, nor rate, units or filter. Here: one lead (default II),
10 s at 500 Hz, so that the whole position table is used; units of 0.5 mV with the median subtracted, as in `ecg_clip`.

5001 tokens make an attention matrix of 800 MB for one record and layer. The records per pass are limited so that their
matrices together are no larger (one record at 5000 samples); in eval mode, and without dropout, torch does not allocate
a whole matrix. In training, each layer is recomputed for its gradient instead of being stored: one record of 5000
samples takes 1 GB, with dropout 4 GB.
"""

from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m3bind.errors import ConfigError
from m3bind.modalities.base import Sample
from m3bind.modalities.ecg import LEADS
from m3bind.models.base import ModelCard
from m3bind.models.layers.augment import ItemRandom, vary
from m3bind.models.layers.preprocess import signal_tensor
from m3bind.models.published import BIOCLINICALBERT, Common, LearnedScale, PublishedModel, bert_trunk
from m3bind.models.weights.checkpoint import rename

SAMPLES, WIDTH, LAYERS, HEADS, FEED_FORWARD = 5000, 512, 6, 8, 2048


class SampleTransformer(nn.Module):
    """Post-norm transformer over the samples of one signal: (n, T) or (n, 1, T) -> (n, 512)."""

    def __init__(self, dropout: float) -> None:
        """`dropout` of both kinds, in train mode."""
        super().__init__()
        # Tokens first: with the batch first, torch's fast path would allocate the whole attention matrix.
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, dropout, "relu", batch_first=False)
        self.value_embedding = nn.Linear(1, WIDTH)
        self.position_embedding = nn.Parameter(torch.empty(1, SAMPLES, WIDTH))
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.transformer_encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, batch: Tensor) -> Tensor:
        """(n, T) or (n, 1, T) -> (n, 512), the first token.

        Raises:
            ConfigError: several leads, no sample, or more than 5000.
        """
        signal = batch[:, 0] if batch.ndim == 3 and batch.shape[1] == 1 else batch
        if signal.ndim != 2 or not 0 < signal.shape[1] <= SAMPLES:
            raise ConfigError(
                f"ecg_clip_repository takes one lead of at most {SAMPLES} samples, (n, T) or (n, 1, T), not "
                f"{tuple(batch.shape)}; its preprocess selects a lead (setting lead) and resamples."
            )
        if torch.compiler.is_exporting():  # an exported graph for any n cannot loop over parts
            return self._first_token(signal)
        rows = (SAMPLES // signal.shape[1]) ** 2
        return torch.cat([self._first_token(part) for part in torch.split(signal, rows)])

    def _first_token(self, signal: Tensor) -> Tensor:
        """(m, T) -> (m, 512)."""
        x = self.value_embedding(signal[..., None]) + self.position_embedding[:, : signal.shape[1]]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x.transpose(0, 1).contiguous()  # (1 + T, m, 512)
        for layer in self.transformer_encoder.layers:
            x = checkpoint(layer, x, use_reentrant=False) if torch.is_grad_enabled() else layer(x)
        return x[0]  # type: ignore[no-any-return]


class EcgClipRepository(PublishedModel):
    """ECG-CLIP as in the paper's repository; `m3bind.models.load("ecg_clip", FILE)` returns it for its files."""

    name = "ecg_clip_repository"
    check_shape = (1, 600)
    own_settings = ("pooling", "lead", "rate", "seconds", "dropout")
    tokenizer_source = BIOCLINICALBERT
    migrations = (
        rename(r"^ecg_encoder\.", "image_trunk."),
        rename(r"^ecg_proj\.", "image_head."),
        rename(r"^text_encoder\.", "text_trunk.bert."),
        rename(r"^text_proj\.", "text_head."),
        rename(r"^logit_scale$", "scale.log"),
    )
    ignored_keys = ("text_trunk.bert.pooler.*",)
    card = ModelCard(
        source="https://github.com/silent618/M3Bind, folder ECG_CLIP (constructors; their forward pass cannot run)",
        revision="1aff015",
        licence_code="Apache-2.0 (this file is ours; the repository states none)",
        licence_weights="none published",
        joint_dim=512,
        input="1 x at most 5000 samples of one lead, units of 0.5 mV, median subtracted (lead, rate and unit are ours)",
        lora_text=("query", "value"),
        lora_image=("linear1", "linear2"),
        training_data=("MIMIC-III notes (BioClinicalBERT)",),
        notes="One token per sample: 5001 tokens for 10 s, seconds of CPU per record. ecg_clip is what m3bind trains.",
        use="ECG",
        verified="authors' code as repaired for it to run, generated weights",
    )

    def __init__(
        self,
        pooling: Literal["cls", "pooler"] = "cls",
        lead: str = "II",
        rate: float = 500.0,
        seconds: float = 10.0,
        dropout: float = 0.1,
        **common: Unpack[Common],
    ) -> None:
        """Build with random weights.

        Args:
            pooling: of the text tower, "cls" (first token) or "pooler" (BERT's tanh layer on it).
            lead: the lead, of 12, that is the sequence.
            rate: Hz after resampling.
            seconds: length used around the centre; `rate` times `seconds` is at most 5000.
            dropout: of the ECG tower in train mode; with 0, training at 5000 samples takes far less memory.
            common: see `PublishedModel`.

        Raises:
            ConfigError: an unknown `pooling` or `lead`, or more samples than positions.
        """
        super().__init__(**common)
        self._check_choice("pooling", pooling, ("cls", "pooler"))
        self._check_choice("lead", lead, LEADS)
        if not 1 <= round(rate * seconds) <= SAMPLES:
            raise ConfigError(
                f"{seconds:g} s at {rate:g} Hz are {round(rate * seconds)} samples, but {self.name} has {SAMPLES} "
                "positions; lower rate or seconds."
            )
        self.pooling, self.lead, self.rate, self.seconds = pooling, lead, rate, seconds
        self.dropout, self.max_tokens = dropout, 256
        self.image_trunk = SampleTransformer(dropout)
        self.image_head = nn.Linear(WIDTH, self.joint_dim)
        self.text_trunk = bert_trunk(28996, pooling)
        self.text_head = nn.Linear(768, self.joint_dim)
        self.scale = LearnedScale()
        self._finish()

    def preprocess(self, sample: Sample) -> Tensor:
        """(12, T') in mV -> (1, rate * seconds) of one lead, units of 0.5 mV."""
        row = LEADS.index(self.lead)
        return signal_tensor(sample, self.rate, self.seconds, len(LEADS))[row : row + 1]

    def augment(self, batch: Tensor, random: ItemRandom) -> Tensor:
        """As `ecg_clip`: shift in time up to 5 %, amplitude +-10 %, a little noise; (n, 1, T)."""
        return vary(batch, random, shift=0.05, noise=0.05)
