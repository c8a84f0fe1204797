import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from m3bind.errors import NotFiniteError
from m3bind.models import embedding
from m3bind.models.embedding import PROBES, encode_distinct, text_dtype
from m3bind.models.layers.bert import BertTrunk
from m3bind.models.layers.heads import make_head
from m3bind.models.layers.text_encoder import TextEncoder, train_wordpiece
from m3bind.space import bundle
from reference.texts import encode_one_by_one
from space import tiny

CPU = torch.device("cpu")
words = st.sampled_from(["normal", "heart", "lung", "bright", "no", "effusion", "a"])
texts = st.lists(st.lists(words, min_size=1, max_size=9).map(" ".join), min_size=1, max_size=40)


class Counting:
    """A tokenizer of letters that pads with 7 and counts how often it sees each text."""

    def __init__(self, width=0):
        self.seen, self.width = [], width

    def __call__(self, texts):
        self.seen += texts
        longest = max(self.width, *map(len, texts))
        ids = torch.full((len(texts), longest), 7)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor([ord(letter) for letter in text])
            mask[row, : len(text)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def letters(tokens):
    """Rows that follow from the real letters alone."""
    ids = tokens["input_ids"] * tokens["attention_mask"]
    return F.normalize(torch.stack([ids.sum(1), (ids**2).sum(1) / 100, tokens["attention_mask"].sum(1) * 50.0], 1))


@settings(max_examples=30, deadline=None)
@given(texts, st.integers(1, 12), st.integers(1, 5), st.integers(1, 60))
def test_same_rows_as_one_by_one_for_any_window_chunk_and_budget(texts, window, chunk, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "WINDOW", window)
        patch.setattr(embedding, "CHUNK", chunk)
        patch.setattr(embedding, "TOKEN_BUDGET", budget)
        found = encode_distinct(texts, Counting(), letters, 3, CPU)
    np.testing.assert_allclose(found, encode_one_by_one(texts, Counting(), letters), rtol=1e-6)
    assert found.dtype == np.float32


def test_each_distinct_text_is_tokenised_once_but_for_three_that_tell_the_padding():
    tokenizer = Counting()
    many = [f"text {'x' * (number % 50)} {number}" for number in range(300)]
    encode_distinct(many * 3, tokenizer, letters, 3, CPU)
    assert len(tokenizer.seen) == 303 and set(tokenizer.seen) == set(many)


def test_batches_are_padded_as_the_tokenizer_pads():
    shapes, paddings = [], set()

    def encode(tokens):
        shapes.append(tuple(tokens["input_ids"].shape))
        paddings.update(tokens["input_ids"][tokens["attention_mask"] == 0].tolist())
        return letters(tokens)

    encode_distinct(["a", "abc", "abcde"], Counting(), encode, 3, CPU)
    assert shapes == [(3, 5)] and paddings == {7}
    shapes.clear()
    encode_distinct(["a", "abc"], Counting(width=9), encode, 3, CPU)  # a model that wants its full length gets it
    assert shapes == [(2, 9)]


def test_a_row_that_is_not_finite_is_reported():
    with pytest.raises(NotFiniteError, match="text tower"):
        encode_distinct(["a"], Counting(), lambda tokens: letters(tokens) * float("nan"), 3, CPU)


def test_long_lists_show_progress(monkeypatch, capsys):
    monkeypatch.setenv("M3BIND_PROGRESS", "plain")
    monkeypatch.setattr(embedding, "LONG_JOB", 5)
    encode_distinct([str(number) for number in range(4)], Counting(), letters, 3, CPU)
    assert "encode texts" not in capsys.readouterr().err
    encode_distinct([str(number) for number in range(5)], Counting(), letters, 3, CPU)
    assert "encode texts: done 5/5" in capsys.readouterr().err


def bert(pooling, seed=0):
    tokenizer = train_wordpiece(PROBES * 3, 200)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = BertTrunk(BertConfig(vocab_size=tokenizer.get_vocab_size(), **shape), pooling)
        head = make_head("adapter", 64, 16)
    return TextEncoder(trunk, head, tokenizer, 256, {"kind": "adapter", "dim": 16}).eval()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_half_precision_stays_close_and_gives_unit_rows(pooling):
    encoder = bert(pooling)
    with torch.inference_mode():
        chosen, mean, smallest = text_dtype(encoder.tokenize, encoder.encode, CPU, torch.bfloat16)
        arguments = list(PROBES), encoder.tokenize, encoder.encode, 16, CPU
        exact, half = encode_distinct(*arguments), encode_distinct(*arguments, torch.bfloat16)
    assert chosen is torch.bfloat16 and mean >= 0.9999 and smallest >= 0.999
    assert not np.array_equal(exact, half)  # it was computed in another precision
    cosines = (exact.astype(np.float64) * half).sum(1)
    assert cosines.mean() >= 0.9999 and cosines.min() >= 0.999
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-6)


def lossy(tokens):
    """Rows that bfloat16 ruins: a small signal on a large level, removed afterwards."""
    level = torch.ones(3, 3)
    return F.normalize((letters(tokens) + 300.0) @ level.triu() - 300.0 * level.triu().sum(0), dim=-1)


def test_a_tower_that_half_precision_ruins_is_left_in_float32():
    chosen, mean, _ = text_dtype(Counting(), lossy, CPU, torch.bfloat16)
    assert chosen is torch.float32 and mean < 0.9999
    assert text_dtype(Counting(), lossy, CPU, torch.float32)[0] is torch.float32


def test_a_space_tries_half_precision_once_per_tower(monkeypatch, caplog):
    space, tried = tiny.make_space(), []
    exact = {path: space.encode_text(list(PROBES), path) for path in space.text_encoders}
    space = tiny.make_space()
    monkeypatch.setattr(bundle, "compute_dtype", lambda device: torch.bfloat16)

    def counted(*arguments):
        tried.append(arguments)
        return text_dtype(*arguments)

    monkeypatch.setattr(bundle, "text_dtype", counted)
    for _ in range(2):
        for path, rows in exact.items():
            half = space.encode_text(list(PROBES), path)
            assert (rows.astype(np.float64) * half).sum(1).min() >= 0.999
    assert len(tried) == len(space.text_encoders)
    monkeypatch.setattr(bundle, "text_dtype", lambda *_: (torch.float32, 0.9, 0.8))
    fresh = tiny.make_space()
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(fresh.encode_text(list(PROBES), "grey"), exact["grey"])
    assert "grey" in caplog.text and "0.900000" in caplog.text
