"""Allow-lists for folders in another library's format; `tests/hostile` has the complete folders."""

import json

import pytest

from m3bind.errors import CheckpointError
from m3bind.models.weights.external_tokenizer import check_tokenizer


def test_a_tokenizer_has_as_many_tokens_and_as_large_numbers_as_tokenizers_have(tmp_path):
    def check(**content):
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        check_tokenizer(tmp_path)

    check(model={"vocab": {"a": 0, "b": 1}}, added_tokens=[{"id": 2, "content": "x"}])
    check(model={"vocab": [["a", 0.0], ["b", -1.5]]})
    for content, reason in (
        ({"model": {"vocab": {"a": 0, "b": 2**31}}}, "a token has the number 2147483648"),
        ({"model": {"vocab": {"a": "0"}}}, "a token has the number 0"),
        ({"added_tokens": [{"id": -1}]}, "a token has the number -1"),
        ({"added_tokens": [{"content": "x"}]}, "a token has the number None"),
        ({"added_tokens": [{"id": n} for n in range(20_001)]}, "20,001 added tokens, more than 20,000"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            check(**content)
