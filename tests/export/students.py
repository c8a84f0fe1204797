"""Small students of every shape that can be exported."""

import torch
from torch import nn
from transformers import BertConfig, DistilBertConfig

from m3bind.models.embedding import PROBES
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.heads import Mlp, make_head
from m3bind.models.layers.text_encoder import HFTrunk, TextEncoder, train_wordpiece

TEXTS = [*PROBES, "UPPER case", "x", "lung\nheart  ", "word " * 90]
HEADS = {
    "identity": (24, {}),
    "linear": (16, {"bias": True}),
    "adapter": (16, {"hidden": 20}),
    "wide": (40, {"hidden": 20}),  # an adapter to more dimensions than features
    "mlp": (16, {"hidden": 20}),
}


def student(head="adapter", pooling="mean", family="bert", seed=0):
    """A TextEncoder of random weights; none of them zero, as training leaves them."""
    tokenizer = train_wordpiece(PROBES * 3, 160)
    dim, options = HEADS[head]
    kind = "adapter" if head == "wide" else head
    words = tokenizer.get_vocab_size()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "bert":
            shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            trunk = BertTrunk(BertConfig(vocab_size=words, max_position_embeddings=64, **shape), pooling)
        else:
            shape = {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
            trunk = HFTrunk(DistilBertConfig(vocab_size=words, max_position_embeddings=64, **shape), pooling)
        made = make_head(kind, 24, dim, **options)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.3)
        if isinstance(made, Mlp):
            made.calibrate(torch.randn(50, 24) * 3 + 1)
    return TextEncoder(trunk, made, tokenizer, 48, {"kind": kind, "dim": dim, **options}).eval()
