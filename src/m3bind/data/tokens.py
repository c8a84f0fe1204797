"""Token ids of texts, computed once per tokenizer and memory-mapped.

* `TokenStore`: a folder with the token ids of any texts by one tokenizer; `table` adds those that are missing.
* `TokenTable`: the token ids of all texts of a `TextTable`; loader workers get the names of its files, not the data.
* `probe_key`: what a tokenizer makes of texts that show its rules, as part of its key.

A file holds, for n texts: n (int64), their digests (n, 2) uint64, offsets (n + 1,) int64, and values, int32. It is
written once, under the hash of its bytes; a killed run loses at most one block of texts. Processes may share a folder:
one of them computes what is missing, the others wait. Few texts stay in memory.

Shapes: n texts, K texts of a table, L tokens of the longest of n texts.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3bind.core.files import alone, atomic_path, sha256_file
from m3bind.core.progress import progress
from m3bind.data.batching import IntArray
from m3bind.data.text_table import DigestIndex, Digests, TextTable

log = logging.getLogger(__name__)
Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
BLOCK = 1 << 16  # texts of a file
CHUNK = 512  # texts tokenised together
FEW = 4096  # texts whose token ids are not worth a file
_PROBES = ("", "Heart size is normal.", "ÄRZTLICHER Befund: keine Auffälligkeit;  1,5 cm (II°)", "No. 1\n2) <b>&</b>",
           "pneumothorax " * 700, "!", "[CLS] [SEP] <|endoftext|> ## \u4f60\u597d \U0001f600")  # fmt: skip


def probe_key(tokenize: Tokenize) -> str:
    """Hash of the token ids of some texts with capitals, accents, markup, and more words than any model reads."""
    values, lengths = _tokenised(tokenize, _PROBES)
    return hashlib.sha256(values.tobytes() + lengths.tobytes()).hexdigest()


class _Values:
    """The values of one file, memory-mapped where they are used, or an array in memory."""

    def __init__(self, path: Path | None, offset: int, array: NDArray[np.int32]) -> None:
        self.path, self.offset, self.array = path, offset, array

    def __reduce__(self) -> Any:
        return (_Values, (None, 0, self.array)) if self.path is None else (_mapped, (self.path, self.offset))


def _mapped(path: Path, offset: int) -> _Values:
    empty = path.stat().st_size == offset
    array = np.zeros(0, np.int32) if empty else np.memmap(path, np.int32, "r", offset=offset)
    return _Values(path, offset, array)


class TokenTable:
    """Token ids of K texts without padding: values of all files one after the other, and each text's place in them."""

    def __init__(self, files: Sequence[_Values], starts: IntArray, lengths: NDArray[np.int32]) -> None:
        self._files, self._starts, self._lengths = list(files), starts, lengths
        self._bases = np.cumsum([0, *(len(file.array) for file in files)])

    def __len__(self) -> int:
        return len(self._starts)

    def lengths(self, ids: IntArray) -> IntArray:
        """(n,) number of tokens of texts."""
        return self._lengths[ids].astype(np.int64)

    def padded(self, ids: IntArray) -> dict[str, Tensor]:
        """{"input_ids", "attention_mask"}, int64 (n, L), of texts, padded with zeros to the longest of them."""
        lengths = self.lengths(ids)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        padded = np.zeros(mask.shape, np.int64)
        padded[mask] = self._concatenated(ids, lengths)
        return {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def lists(self, ids: IntArray) -> list[list[int]]:
        """The token ids of each of n texts."""
        lengths = self.lengths(ids)
        values, ends = self._concatenated(ids, lengths).tolist(), np.cumsum(lengths).tolist()
        return [values[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

    def _concatenated(self, ids: IntArray, lengths: IntArray) -> NDArray[np.int32]:
        """The values of n texts, one after the other."""
        shift = self._starts[ids] - (np.cumsum(lengths) - lengths)
        at = np.arange(lengths.sum()) + np.repeat(shift, lengths)
        file = np.searchsorted(self._bases, at, side="right") - 1
        values = np.empty(len(at), np.int32)
        for number in np.unique(file):
            own = file == number
            values[own] = self._files[number].array[at[own] - self._bases[number]]
        return values


class TokenStore:
    """The token ids that one tokenizer makes of texts, in one folder."""

    def __init__(self, folder: Path, tokenize: Tokenize) -> None:
        """`folder` belongs to this tokenizer alone; it is created with the first file and may be deleted."""
        self.folder, self._tokenize = folder, tokenize
        self._index = DigestIndex()
        self._files: list[_Values] = []
        self._names: set[str] = set()
        self._starts, self._lengths = np.zeros(0, np.int64), np.zeros(0, np.int32)  # by number in `_index`
        self._tables: WeakKeyDictionary[TextTable, TokenTable] = WeakKeyDictionary()

    def table(self, texts: TextTable) -> TokenTable:
        """The token ids of `texts`; missing ones are computed and, if they are many, stored."""
        table = self._tables.get(texts)
        if table is None or len(table) != len(texts):
            rows = self._rows(texts)
            table = self._tables[texts] = TokenTable(self._files, self._starts[rows], self._lengths[rows])
        return table

    def _rows(self, texts: TextTable) -> IntArray:
        digests = texts.digests
        if (self._index.find(digests) < 0).any():
            self._read_new()
            missing = np.flatnonzero(self._index.find(digests) < 0)
            if len(missing) > FEW:
                self.folder.mkdir(parents=True, exist_ok=True)
                with alone(self.folder):
                    self._read_new()
                    missing = np.flatnonzero(self._index.find(digests) < 0)
                    self._compute(texts, digests, missing)
            elif len(missing):
                values, lengths = _tokenised(self._tokenize, texts.take(missing))
                self._add(digests[missing], lengths, _Values(None, 0, values))
        return self._index.find(digests)

    def _compute(self, texts: TextTable, digests: Digests, missing: IntArray) -> None:
        """Tokenise texts in blocks, one file each."""
        with progress("tokenise", len(texts), done=len(texts) - len(missing)) as bar:
            for start in range(0, len(missing), BLOCK):
                block = missing[start : start + BLOCK]
                values, lengths = _tokenised(self._tokenize, texts.take(block))
                self._read(_write(self.folder, digests[block], lengths, values))
                bar.advance(len(block))

    def _read_new(self) -> None:
        for path in sorted(self.folder.glob("*.tokens")):
            if path.stem not in self._names:
                self._read(path)

    def _read(self, path: Path) -> None:
        """Add a file; one whose bytes do not match its name is quarantined."""
        try:
            if sha256_file(path) != path.stem:
                raise ValueError("damaged")
            with open(path, "rb") as handle:
                count = int(np.fromfile(handle, np.int64, 1)[0])
                digests = np.fromfile(handle, np.uint64, 2 * count).reshape(count, 2)
                offsets = np.fromfile(handle, np.int64, count + 1)
                values = _mapped(path, handle.tell())
            lengths = offsets[1:] - offsets[:-1]
            if lengths.min(initial=0) < 0 or lengths.sum() != len(values.array):
                raise ValueError("offsets that do not fit")
        except FileNotFoundError:
            return  # another process quarantined it
        except (OSError, ValueError, IndexError):
            log.warning("token file %s is damaged; it is quarantined and its texts are tokenised again", path.name)
            with contextlib.suppress(OSError):  # gone, read-only, or the name is taken by a folder: it stays, unused
                os.replace(path, path.with_suffix(".damaged"))
            return
        self._names.add(path.stem)
        self._add(digests, lengths, values)

    def _add(self, digests: Digests, lengths: IntArray, values: _Values) -> None:
        base = sum(len(file.array) for file in self._files)
        _, new = self._index.add(digests)
        starts = base + np.cumsum(lengths) - lengths
        self._starts = np.append(self._starts, starts[new])
        self._lengths = np.append(self._lengths, lengths[new].astype(np.int32))
        self._files.append(values)


def _tokenised(tokenize: Tokenize, texts: Sequence[str]) -> tuple[NDArray[np.int32], IntArray]:
    """The token ids of texts, one after the other, and the number of each."""
    values, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(texts), CHUNK):
        tokens = tokenize(texts[start : start + CHUNK])
        mask = tokens["attention_mask"].bool()
        values.append(tokens["input_ids"][mask].numpy().astype(np.int32))
        lengths.append(mask.sum(1).numpy())
    return np.concatenate(values), np.concatenate(lengths)


def _write(folder: Path, digests: Digests, lengths: IntArray, values: NDArray[np.int32]) -> Path:
    offsets = np.append(0, np.cumsum(lengths))
    pieces = [np.array([len(digests)], np.int64), digests, offsets, values]
    content = b"".join(piece.tobytes() for piece in pieces)
    path = folder / f"{hashlib.sha256(content).hexdigest()}.tokens"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path
