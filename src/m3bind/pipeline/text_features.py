"""Features of texts by frozen text trunks, computed once and cached; no text is tokenised twice.

* `TextFeatures`: features and token ids of texts. * `text_trunk`: the frozen part.

Shapes: n texts, f feature width.
"""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import nn

from m3bind.core.device import device_of
from m3bind.data.batching import IntArray
from m3bind.data.cache import FeatureCache
from m3bind.data.text_table import TextTable
from m3bind.data.tokens import TokenStore, TokenTable
from m3bind.models.base import DualEncoder
from m3bind.models.frozen import FrozenPass
from m3bind.models.layers.text_encoder import TextEncoder

TextModel = DualEncoder | TextEncoder
BATCH = 128  # token sequences encoded together


def text_trunk(model: TextModel) -> nn.Module:
    """The part of a text tower that `features` applies."""
    return model.trunk if isinstance(model, TextEncoder) else model.text_trunk


class TextFeatures:
    """Applies text trunks to texts; token ids and features are cached."""

    def __init__(self, cache: FeatureCache) -> None:
        """Token ids are stored in the folder `tokens` of the cache."""
        self.cache = cache
        self._keys: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._stores: dict[str, TokenStore] = {}  # by the key of their tokenizer

    def tokens(self, model: TextModel, table: TextTable) -> TokenTable:
        """The token ids of all texts of `table` by the tokenizer of a model."""
        if model not in self._keys:
            self._keys[model] = model.tokenizer_key()
        key = self._keys[model]
        if key not in self._stores:
            self._stores[key] = TokenStore(self.cache.folder / "tokens" / key[:32], model.tokenize)
        return self._stores[key].table(table)

    def features(
        self,
        texts: Sequence[str] | TextTable,
        model: TextModel,
        weights_hash: str,
        ids: IntArray | None = None,
        label: str = "texts",
    ) -> NDArray[np.float32]:
        """(n, f): features of texts, or of the given ids of a table, each distinct token sequence once.

        `weights_hash`: that of the `text_trunk`.
        """
        if isinstance(texts, TextTable):
            table, ids = texts, np.arange(len(texts)) if ids is None else ids
        else:
            table = TextTable()
            ids = table.ids(texts)
        tokens = self.tokens(model, table)
        order = np.argsort(-tokens.lengths(ids), kind="stable")  # equal lengths together
        ordered = ids[order]
        trunk, encode = text_trunk(model), model.features if isinstance(model, TextEncoder) else model.text_features

        forward = FrozenPass(encode, device_of(model), name=f"the text tower of {type(model).__name__}")

        def compute(at: list[int]) -> NDArray[np.float32]:
            return forward(tokens.padded(ordered[at])).numpy()

        items = [",".join(map(str, sequence)) for sequence in tokens.lists(ordered)]
        kind = f"text/{type(trunk).__name__}/{getattr(trunk, 'pooling', '')}{forward.kind}"
        size = BATCH * forward.times
        rows = self.cache.get_or_compute(kind, weights_hash, items, compute, size, f"encode {label}")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return np.asarray(rows)[back]
