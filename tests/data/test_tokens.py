"""Token ids are computed once, stored, and read back; a naive list of lists is the oracle."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.data import tokens
from m3bind.data.text_table import TextTable
from m3bind.data.tokens import TokenStore, probe_key


class Letters:
    """One id per letter; counts the texts it was given."""

    seen = 0

    def __call__(self, texts):
        self.seen += len(texts)
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(c) for c in text] + [7] * (longest - len(text)) for text in texts]).reshape(
            -1, longest
        )
        mask = torch.arange(longest) < torch.tensor([[len(text)] for text in texts])
        return {"input_ids": ids, "attention_mask": mask.long()}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tokens, "FEW", 3)
    monkeypatch.setattr(tokens, "BLOCK", 5)
    monkeypatch.setattr(tokens, "CHUNK", 2)


WORDS = [f"{'x' * (i % 7)}{i}" for i in range(23)] + [""]


def check(table, texts, ids):
    sequences = [[ord(c) for c in texts[i]] for i in ids]
    longest = max(map(len, sequences), default=0)
    padded = table.padded(ids)
    assert padded["input_ids"].dtype == padded["attention_mask"].dtype == torch.int64
    assert padded["input_ids"].tolist() == [s + [0] * (longest - len(s)) for s in sequences]
    assert padded["attention_mask"].tolist() == [[1] * len(s) + [0] * (longest - len(s)) for s in sequences]
    assert table.lists(ids) == sequences and table.lengths(ids).tolist() == list(map(len, sequences))


@settings(deadline=None)
@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=12), st.integers(0, 24))
def test_any_texts_in_any_order(tmp_path_factory, chosen, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "FEW", few)
        patch.setattr(tokens, "BLOCK", 5)
        store = TokenStore(tmp_path_factory.mktemp("t"), Letters())
        texts = TextTable(WORDS[::-1])
        check(store.table(TextTable(WORDS[:9])), WORDS, np.arange(9))
        table = store.table(texts)
        check(table, texts, np.array(chosen, np.int64))
        check(pickle.loads(pickle.dumps(table)), texts, np.array(chosen, np.int64))


def test_no_text_is_tokenised_twice(tmp_path, small):
    tokenize, texts = Letters(), TextTable(WORDS)
    store = TokenStore(tmp_path, tokenize)
    table = store.table(texts)
    assert len(table) == len(WORDS) == tokenize.seen and store.table(texts) is table
    assert len(list(tmp_path.glob("*.tokens"))) == 5
    texts.ids(["new", *WORDS[:3]])
    check(store.table(texts), texts, np.arange(len(texts)))  # one new text is only in memory
    assert tokenize.seen == len(WORDS) + 1 and len(list(tmp_path.glob("*.tokens"))) == 5
    again = Letters()
    check(TokenStore(tmp_path, again).table(texts), texts, np.arange(len(texts))[::-1])
    assert again.seen == 1
    assert len(pickle.dumps(table)) < 20 * len(texts) + 200 * 5 + 2000  # names of files, not their content


def test_a_damaged_file_is_quarantined(tmp_path, small, caplog):
    TokenStore(tmp_path, Letters()).table(TextTable(WORDS))
    damaged, cut, *_ = sorted(tmp_path.glob("*.tokens"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # always another byte
    cut.write_bytes(cut.read_bytes()[:20])
    tokenize, texts = Letters(), TextTable(WORDS)
    check(TokenStore(tmp_path, tokenize).table(texts), texts, np.arange(len(texts)))
    assert 2 < tokenize.seen <= 10 and len(list(tmp_path.glob("*.damaged"))) == 2 and "damaged" in caplog.text


def test_a_damaged_file_that_cannot_be_renamed_is_not_used(tmp_path, small):
    TokenStore(tmp_path, Letters()).table(TextTable(WORDS))
    damaged = min(tmp_path.glob("*.tokens"))
    damaged.write_bytes(b"")
    (damaged.with_suffix(".damaged") / "in the way").mkdir(parents=True)
    texts = TextTable(WORDS)
    check(TokenStore(tmp_path, Letters()).table(texts), texts, np.arange(len(texts)))


def test_a_killed_run_keeps_its_finished_blocks(tmp_path, small):
    class Killed(Letters):
        def __call__(self, texts):
            if self.seen >= 10:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        TokenStore(tmp_path, Killed()).table(TextTable(WORDS))
    tokenize, texts = Letters(), TextTable(WORDS)
    check(TokenStore(tmp_path, tokenize).table(texts), texts, np.arange(len(texts)))
    assert tokenize.seen == len(WORDS) - 10


def test_processes_share_the_work(tmp_path):
    """Two at the same time: each text is tokenised by one of them."""
    code = f"""if True:
        import sys; sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
        import test_tokens as t
        t.tokens.FEW, t.tokens.BLOCK = 3, 5
        letters = t.Letters()
        assert len(t.TokenStore(t.tokens.Path({str(tmp_path)!r}), letters).table(t.TextTable(t.WORDS))) == len(t.WORDS)
        print(letters.seen)"""
    jobs = [subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(job.communicate()[0].split()[-1]) for job in jobs) == len(WORDS)


def test_the_key_of_probes_follows_the_rules():
    letters = Letters()

    def lower(texts):
        return letters([text.lower() for text in texts])

    def short(texts):
        return {name: value[:, :500] for name, value in letters(texts).items()}

    assert probe_key(letters) == probe_key(Letters()) and len({probe_key(t) for t in (letters, lower, short)}) == 3
