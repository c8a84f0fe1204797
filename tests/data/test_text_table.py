"""Distinct texts and their indices, against a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.data.text_table import DigestIndex, TextTable

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=30)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=5), TEXTS)
def test_as_a_dictionary(calls, asked):
    table, expected = TextTable(), {}
    for texts in calls:
        for text in texts:
            expected.setdefault(text, len(expected))
        assert table.ids(texts).tolist() == [expected[text] for text in texts]
    assert list(table) == list(expected) and len(table) == len(expected)
    assert table.find(asked).tolist() == [expected.get(text, -1) for text in asked]
    assert [table[i] for i in range(len(table))] == table[:] == list(expected)
    assert table.take(np.arange(len(table))[::-1]) == list(expected)[::-1]
    other = TextTable(asked)
    part = other.subset(np.arange(len(other))[::-2])
    assert list(part) == list(other)[::-2] and part.ids(["new!", *asked]).tolist() == [
        part.find([t])[0] for t in ["new!", *asked]
    ]
    taken = other.ids_of(table, np.arange(len(table)))
    assert other.take(taken) == list(expected) and list(other)[: len(set(asked))] == list(dict.fromkeys(asked))
    for text in asked:
        assert table.add(text) == expected.setdefault(text, len(expected))


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40), max_size=4))
def test_digests_that_share_a_half_or_a_slot_are_told_apart(calls):
    index, expected = DigestIndex(), {}
    for pairs in calls:
        digests = np.array(pairs, np.uint64).reshape(-1, 2) << np.uint64(20)  # all at home in slot 0
        before = len(expected)
        for pair in pairs:
            expected.setdefault(pair, len(expected))
        numbers, new = index.add(digests)
        assert numbers.tolist() == [expected[pair] for pair in pairs]
        assert [pairs[i] for i in new] == list(expected)[before:]
