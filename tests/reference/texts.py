"""Encoding texts naively: one at a time, every repeat again."""

import torch


@torch.no_grad()
def encode_one_by_one(texts, tokenize, encode):
    """(n, d) float32."""
    return torch.cat([encode(tokenize([text])).float() for text in texts]).numpy()
