import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3bind.errors import ConfigError, ReadError
from m3bind.search.query import CANCELLED, Query, parse_query
from space import tiny

weights = st.floats(0.1, 3).map(lambda value: round(value, 2))


def rows_of(seed, n, d=5):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def texts(values):
    return Query(tuple(Query.text(str(number), weight).parts[0] for number, weight in enumerate(values)))


@settings(max_examples=80, deadline=None)
@given(st.lists(weights, min_size=1, max_size=4), st.lists(weights, max_size=2), st.integers(0, 10**6), weights)
def test_a_combination_is_the_weighted_sum_made_unit(positive, negative, seed, factor):
    signed = positive + [-weight for weight in negative]
    rows = rows_of(seed, len(signed))
    total = sum(weight * row.astype(float) for weight, row in zip(signed, rows))
    assume(sum(signed) > 1e-6 and np.linalg.norm(total) > 1.01 * CANCELLED * np.abs(signed).sum())
    found = texts(signed).combine(rows)
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-5)
    np.testing.assert_allclose((factor * texts(signed)).combine(rows), found, atol=1e-6)  # only ratios of weights count
    order = np.random.default_rng(seed).permutation(len(signed))
    np.testing.assert_allclose(texts([signed[i] for i in order]).combine(rows[order]), found, atol=1e-6)


def test_what_leaves_nothing_to_look_for_is_refused():
    row = rows_of(0, 1)[0]
    with pytest.raises(ConfigError, match="outweigh"):
        Query.text("a", -1).combine(row[None])
    with pytest.raises(ConfigError, match="outweigh"):
        (Query.text("a") - 2 * Query.text("b")).combine(rows_of(0, 2))
    with pytest.raises(ConfigError, match="cancel each other"):
        (Query.text("a") - Query.text("b")).combine(np.stack([row, row]))
    with pytest.raises(ConfigError, match="other than 0"):
        Query.text("a", 0)
    with pytest.raises(ConfigError, match="other than 0"):
        Query.text("a", float("nan"))


def test_questions_read_as_they_are_written():
    query = Query.text("pneumonia") - 0.5 * Query.text("effusion") + Query.item("p1", 2) + Query.file("a.png", "xray")
    assert repr(query) == '"pneumonia" - 0.5 "effusion" + 2 item p1 + a file (xray)'
    assert [part["weight"] for part in query.as_dict()["parts"]] == [1, -0.5, 2, 1]


def test_what_a_person_types(tmp_path):
    query = parse_query(
        ["severe pneumonia * 0.5", "2*3 cm mass"],
        ["a:b.png:xray*.25", f"{tiny.pictures(tmp_path, 1)[0]}"],
        ["p1*-0.1"],
        ["effusion", "old scar*0.2"],
        ["xray", "grey"],
    )
    found = [(part.kind, part.value, part.weight, part.modality) for part in query.parts]
    assert found == [
        ("text", "severe pneumonia", 0.5, ""),
        ("text", "2*3 cm mass", 1.0, ""),
        ("file", "a:b.png", 0.25, "xray"),
        ("file", f"{tmp_path / '00000.png'}", 1.0, "grey"),
        ("item", "p1", -0.1, ""),
        ("text", "effusion", -0.5, ""),
        ("text", "old scar", -0.2, ""),
    ]
    with pytest.raises(ConfigError, match="nothing to search for"):
        parse_query([], [], [], [], ["xray"])
    with pytest.raises(ReadError):
        parse_query([], [str(tmp_path / "none.png")], [], [], ["grey"])
