"""Texts to token ids: a trained WordPiece, or the tokenizer of any Hugging Face folder.

* `TextTokenizer`: texts -> `Tokens`. * `read_tokenizer`: the tokenizer of a folder.
* `wordpiece`: BERT's tokenizer over a vocabulary. `train_wordpiece`: with a vocabulary learned from texts.

n texts, L tokens of the longest of them.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from m3bind.core.files import sha256_text
from m3bind.core.stored import inside
from m3bind.errors import CheckpointError, ConfigError, ReadError
from m3bind.models.base import Tokens
from m3bind.models.weights import external
from m3bind.models.weights.external_tokenizer import TOKENIZER_CONFIG, check_tokenizer, open_tokenizer

TOKENIZER_FILE = "tokenizer.json"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece(vocab: dict[str, int], lowercase: bool = True) -> Tokenizer:
    """BERT's tokenizer ([CLS] text [SEP]) over a given vocabulary, word piece -> id.

    Raises:
        ConfigError: a special token is missing from the vocabulary.
    """
    if absent := [token for token in _SPECIAL if token not in vocab]:
        raise ConfigError(f"the vocabulary lacks {', '.join(absent)}; it is not a BERT vocabulary.")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.enable_padding(pad_id=vocab["[PAD]"], pad_token="[PAD]")
    return tokenizer


def train_wordpiece(
    texts: Iterable[str], vocab_size: int = 4000, lowercase: bool = True, minimum: int = 3
) -> Tokenizer:
    """A WordPiece vocabulary learned from `texts`; the same texts in any order give the same tokenizer.

    The trainer numbers continuation characters ("##a") in the order of a hash map, and ties between merges follow that
    numbering. These characters are given to it in sorted order, which makes it repeatable.

    Args:
        texts: the corpus; only counts matter, not order.
        vocab_size: upper limit, special tokens and single characters included.
        lowercase: fold case and strip accents.
        minimum: words in fewer distinct texts are excluded, since a name in a report must not become a token of a
            shared vocabulary; they are spelled by characters and pieces of more common words.

    Raises:
        ConfigError: no text, or `vocab_size` is smaller than the number of characters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise ConfigError("cannot train a tokenizer: the corpus has no text.")
    alphabet = sorted({c for text in corpus for c in normalizer.normalize_str(text) if not c.isspace()})
    if len(_SPECIAL) + 2 * len(alphabet) > vocab_size:
        raise ConfigError(f"vocab_size {vocab_size} is too small for {len(alphabet)} characters; use more.")
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*_SPECIAL, *alphabet, *(f"##{c}" for c in alphabet)],
        show_progress=False,
    )
    words = []
    for text in corpus:
        pieces = learner.pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
        words.append(tuple(word for word, _ in pieces))
    counts = Counter(word for text in set(words) for word in set(text))  # distinct texts with a word
    common = [" ".join(filter(lambda word: counts[word] >= minimum, text)) for text in words]
    learner.train_from_iterator(common, trainer)
    return wordpiece(learner.get_vocab(), lowercase)


def read_tokenizer(folder: Path | str, lowercase: bool | None = None) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.json`, else BERT's from `vocab.txt`, else by transformers.

    Args:
        folder: a Hugging Face folder or an assets folder.
        lowercase: for `vocab.txt` alone; None: as in the folder's `tokenizer_config.json`, by default lower case (as
            in transformers; BioClinicalBERT was used so although its vocabulary is cased).

    Raises:
        ReadError: no tokenizer in the folder.
    """
    folder = Path(folder)
    if (folder / TOKENIZER_FILE).is_file():
        with _readable(folder / TOKENIZER_FILE):
            check_tokenizer(folder)
            return Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    if (folder / "vocab.txt").is_file():
        with _readable(folder / "vocab.txt"):
            lines = inside(folder, "vocab.txt").read_text(encoding="utf-8").splitlines()
        if lowercase is None:
            configured = (folder / TOKENIZER_CONFIG).is_file()
            settings = external.settings_of(folder, TOKENIZER_CONFIG) if configured else {}
            lowercase = bool(settings.get("do_lower_case", True))
        return wordpiece({piece: row for row, piece in enumerate(lines)}, lowercase)
    with _readable(folder, "no fast tokenizer here"):
        fast = open_tokenizer(folder)
        backend: Tokenizer = fast.backend_tokenizer
        if fast.pad_token_id is not None:
            backend.enable_padding(pad_id=fast.pad_token_id, pad_token=fast.pad_token)
        return backend


@contextlib.contextmanager
def _readable(path: Path, reason: str = "not a tokenizer") -> Iterator[None]:
    """Raise errors of reading a tokenizer as a ReadError of `path`."""
    try:
        with external.library(path, "a tokenizer"):
            yield
    except CheckpointError as error:
        hint = f"expected {TOKENIZER_FILE} or vocab.txt in it; models.layers.text_encoder.train_wordpiece makes one"
        detail = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise ReadError(path, f"{reason} ({detail[:200]})", hint if path.is_dir() else "save it again") from error


class TextTokenizer:
    """Texts -> Tokens: truncated to `max_tokens` (special tokens included), padded to the longest of the batch."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """`tokenizer` is copied; the copy truncates and pads."""
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.max_tokens = max_tokens
        padding = self.tokenizer.padding or {}
        self.pad_id = int(padding.get("pad_id") or 0)
        self.tokenizer.enable_padding(pad_id=self.pad_id, pad_token=padding.get("pad_token", "[PAD]"))
        self.tokenizer.enable_truncation(max_tokens)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """n texts -> {"input_ids": int64 (n, L), "attention_mask": int64 (n, L)}.

        Raises:
            CheckpointError: the tokenizer's own rules fail on a text.
        """
        if not texts:
            empty = torch.zeros(0, 0, dtype=torch.int64)
            return {"input_ids": empty, "attention_mask": empty.clone()}
        with external.library(TOKENIZER_FILE, "rules that can split every text"):
            encoded = self.tokenizer.encode_batch_fast(list(texts))
        return {
            "input_ids": torch.tensor([row.ids for row in encoded], dtype=torch.int64),
            "attention_mask": torch.tensor([row.attention_mask for row in encoded], dtype=torch.int64),
        }

    @cached_property
    def key(self) -> str:
        """Hash of the vocabulary, the rules, padding and truncation."""
        return sha256_text(type(self).__qualname__, self.tokenizer.to_str())

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into an existing folder."""
        (folder / TOKENIZER_FILE).write_text(self.tokenizer.to_str(), encoding="utf-8")
