import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3bind.errors import ConfigError, ReadError, SpaceError, UnknownNameError
from m3bind.space import search as module
from m3bind.space.bundle import load, save_space
from m3bind.space.compute import correct_gap
from m3bind.space.encode import Encoded, encode_files
from m3bind.space.search import nearest, search
from space import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory, _registered):
    """A space, pictures, and both modalities encoded."""
    from dataclasses import dataclass
    from pathlib import Path

    @dataclass(frozen=True)
    class Row:
        modality: str
        path: Path

    folder = tmp_path_factory.mktemp("world")
    space = load(save_space(tiny.make_space(), folder / "space"))
    paths = tiny.pictures(folder / "in", 30)
    rows = [Row(("grey", "other")[i % 2], path) for i, path in enumerate(paths)]
    encode_files(space, rows, folder / "plain")
    encode_files(space, rows, folder / "gap", gap_correct=True)
    return space, paths, folder


def test_words_find_the_nearest_items(world):
    space, paths, folder = world
    hits = search(space, folder / "plain", "abnormal lung", k=5)
    archive = module.open_encoded(folder / "plain")
    scores = archive.embeddings @ space.encode_text("abnormal lung")[0]
    order = np.argsort(-scores)[:5]
    assert [hit.row for hit in hits] == order.tolist()
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=1e-6)
    assert [hit.path for hit in hits] == [str(paths[row]) for row in order]
    assert [hit.modality for hit in hits] == [("grey", "other")[row % 2] for row in order]
    assert hits[0].as_dict()["row"] == order[0]
    other = search(space, archive, "abnormal lung", k=5, text="grey")
    assert [hit.row for hit in other] == np.argsort(
        -(archive.embeddings @ space.encode_text("abnormal lung", "grey")[0])
    )[:5].tolist()


def test_a_file_finds_itself_and_a_filter_holds(world):
    space, paths, folder = world
    hit = search(space, folder / "plain", paths[4], k=1, modality="grey")[0]
    assert hit.row == 4 and hit.score == pytest.approx(1, abs=1e-5)
    hits = search(space, folder / "plain", str(paths[4]), k=100, modality="grey", within="other")
    assert len(hits) == 15 and {hit.modality for hit in hits} == {"other"}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_gap_correction_is_the_same_on_the_fly_and_stored(world):
    space, paths, folder = world
    fly = search(space, folder / "plain", paths[4], modality="grey", gap_correction=True)
    stored = search(space, folder / "gap", paths[4], modality="grey", gap_correction=True)
    assert [hit.row for hit in fly] == [hit.row for hit in stored] and fly[0].row == 4
    plain = module.open_encoded(folder / "plain").embeddings
    means = np.stack([space.image_mean(("grey", "other")[i % 2]) for i in range(30)])
    centred = (plain - means) / np.linalg.norm(plain - means, axis=1, keepdims=True)
    query = correct_gap(space.encode_image(paths[4], "grey"), space.image_mean("grey"))[0]
    np.testing.assert_allclose([hit.score for hit in fly], np.sort(centred @ query)[::-1][:10], atol=1e-5)


def test_questions_that_make_no_sense_are_refused(world, tmp_path):
    space, paths, folder = world
    with pytest.raises(ConfigError, match="at least one"):
        search(space, folder / "plain", "x", k=0)
    with pytest.raises(ConfigError, match="which modality"):
        search(space, folder / "plain", paths[0])
    with pytest.raises(ConfigError, match="files only"):
        search(space, folder / "plain", "x", gap_correction=True)
    with pytest.raises(SpaceError, match="encode it again without"):
        search(space, folder / "gap", "x")
    with pytest.raises(SpaceError, match="search with gap_correction"):
        search(space, folder / "gap", paths[0], modality="grey")
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        search(space, folder / "plain", "x", within=["othr"])
    with pytest.raises(ReadError, match="no such file"):
        search(space, folder / "plain", "none.png", modality="grey")
    another = load(save_space(tiny.make_space(seed=3), tmp_path / "s"))
    with pytest.raises(SpaceError, match="another space"):
        search(another, folder / "plain", "x")


def archive_of(rows, kinds):
    items = pd.DataFrame({"row": range(len(rows)), "modality": kinds, "path": [str(i) for i in range(len(rows))]})
    return Encoded(None, rows, items, "", False, 0, items["modality"].value_counts().to_dict())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 7), st.integers(0, 10**6))
def test_blocks_give_what_a_full_sort_gives_also_with_ties(n, k, block, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (n, 3)).astype(np.float32)  # many equal scores
    kinds = rng.choice(["a", "b"], n)
    queries = rng.integers(-1, 2, (4, 3)).astype(np.float32)
    within = sorted(set(kinds.tolist()))[:1] if seed % 2 else None
    old, module.BLOCK = module.BLOCK, block
    try:
        scores, found = nearest(archive_of(rows, kinds), queries, k, within)
    finally:
        module.BLOCK = old
    allowed = [i for i in range(n) if within is None or kinds[i] in within]
    for line, query in enumerate(queries):
        expected = sorted(allowed, key=lambda i: (-float(rows[i] @ query), i))[:k]
        assert found[line].tolist() == expected
        np.testing.assert_array_equal(scores[line], rows[expected] @ query)
