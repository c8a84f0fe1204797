"""Hits of several modalities: how relevant a modality is, and an item in it, straight from the definitions."""

import numpy as np
import pytest

from m3bind.encode.encoded import open_encoded
from m3bind.encode.job import encode_files
from m3bind.errors import SpaceError
from m3bind.index import build_index
from m3bind.search.query import Query
from m3bind.search.ranking import CENTRE, MARGIN, NEAR, SLOPE
from m3bind.search.searcher import Searcher
from m3bind.space.bundle import Space, load, save_space
from search.test_searcher import Row
from space import tiny

N, K = 60, 8
GREY, OTHER = ("bright lung", "dark lung", "round spot"), ("fast rhythm", "slow rhythm")
TOPIC = "bright lung"  # one of the first modality's texts


def with_texts(space, **texts):
    """The same space, with reference texts."""
    stored = {m: (space.encode_text(list(words)), np.arange(1, len(words) + 1)) for m, words in texts.items()}
    models = {m: space.model(m) for m in space.modalities}
    bridges = {m: space.bridge_module(m) for m in models}
    means = {m: space.image_mean(m) for m in models}
    return Space(models, bridges, means, space.student, space.info, texts=stored)


@pytest.fixture(scope="module")
def world(tmp_path_factory, _registered):
    """A space with reference texts, its encoded archive, and the folder of both."""
    folder = tmp_path_factory.mktemp("ranking")
    space = load(save_space(with_texts(tiny.make_space(), grey=GREY, other=OTHER), folder / "space"))
    rows = [Row(("grey", "other")[i % 2], path, f"i{i}", "") for i, path in enumerate(tiny.pictures(folder / "in", N))]
    encode_files(space, rows, folder / "plain", keep=("id",))
    return space, folder


def naive(space, rows, query, spoken):
    """Score and relevance of every row."""
    scores, distance = np.empty(N), {}
    for start, name in enumerate(("grey", "other")):
        at = slice(start, None, 2)
        texts, weights = space.reference_texts(name)
        usual = weights / weights.sum() @ texts
        spread = np.average([(rows[at] @ text).std() for text in texts], weights=weights)
        own = rows[at] @ query
        scores[at] = (own - CENTRE * own.mean() - (1 - CENTRE) * rows[at] @ usual) / spread
        distance[name] = 1 - (texts @ spoken).max() + NEAR
    excess = {name: np.log(value / min(distance.values())) - MARGIN for name, value in distance.items()}
    return scores, {name: np.exp(-SLOPE * max(value, 0)) for name, value in excess.items()}


@pytest.mark.parametrize("text", [TOPIC, "slow rhythm", "something else"])
def test_hits_are_what_the_definitions_say(world, text):
    space, folder = world
    rows, spoken = np.array(open_encoded(folder / "plain").embeddings), space.encode_text(text)[0]
    scores, relevance = naive(space, rows, spoken, spoken)
    kinds = np.array(["grey", "other"] * (N // 2))
    merged = scores + np.log([relevance[kind] for kind in kinds])
    best = np.argsort(-merged, kind="stable")[:K]
    hits = Searcher(space, folder / "plain").search(text, K)
    assert [hit.id for hit in hits] == [f"i{row}" for row in best]
    np.testing.assert_allclose([hit.calibrated for hit in hits], scores[best], atol=1e-4)
    np.testing.assert_allclose([hit.score for hit in hits], rows[best] @ spoken, atol=1e-5)
    np.testing.assert_allclose([hit.merged for hit in hits], merged[best], atol=1e-4)
    for hit in hits:
        own = scores[kinds == hit.modality]
        assert hit.percentile == pytest.approx(100 * np.mean(own < hit.calibrated - 1e-4), abs=4)


def test_a_modality_with_nothing_to_say_comes_last(world):
    space, folder = world
    searcher = Searcher(space, folder / "plain")
    assert {hit.modality for hit in searcher.search(TOPIC, N // 2)} == {"grey"}
    assert {hit.modality for hit in searcher.search("slow rhythm", N // 2)} == {"other"}
    listed = searcher.search("slow rhythm", 2, per_modality=True)
    assert [hit.modality for hit in listed] == ["other", "other", "grey", "grey"]
    assert listed[0].relevance == 1 > listed[-1].relevance > 0


def test_files_and_items_do_not_speak(world):
    """Without texts the scores are those of a space without reference texts; what is to be avoided does not count."""
    space, folder = world
    path = str(folder / "in" / "00003.png")
    searcher = Searcher(space, folder / "plain")
    bare = Searcher(space, folder / "plain")
    object.__setattr__(bare.ranking, "usual", {})
    for query in (Query.file(path, "other"), Query.item("i4"), Query.item("i4") - 0.3 * Query.text(TOPIC)):
        ours, theirs = searcher.search(query, N), bare.search(query, N)
        assert [hit.id for hit in ours] == [hit.id for hit in theirs] and {hit.relevance for hit in ours} == {1.0}
    mixed = searcher.search(Query.item("i4") + Query.text("slow rhythm"), 5)
    assert {hit.modality for hit in mixed} == {"other"}
    together = searcher.search_many(["slow rhythm", Query.item("i4")], N)
    assert [hit.id for hit in together[1]] == [hit.id for hit in searcher.search(Query.item("i4"), N)]


def test_every_engine_ranks_alike(world, tmp_path):
    space, folder = world
    archive = open_encoded(folder / "plain")
    targets = [str(tmp_path / "index")]
    try:
        import milvus_lite  # noqa: F401

        targets.append(f"milvus:{tmp_path / 'index.db'}#items")
    except ImportError:
        pass
    asked = [TOPIC, "slow rhythm", Query.item("i4") + Query.text("dark lung"), Query.item("i5")]
    expected = Searcher(space, archive).search_many(asked, K)
    for target in targets:
        build_index(archive, target).close()
        searcher = Searcher(space, target)
        searcher.calibration = Searcher(space, archive).calibration
        for ours, theirs in zip(searcher.search_many(asked, K), expected, strict=True):
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            np.testing.assert_allclose([h.merged for h in ours], [h.merged for h in theirs], atol=1e-4)


def test_reference_texts_are_saved_and_checked(world):
    space, _ = world
    texts, weights = space.reference_texts("grey")
    np.testing.assert_allclose(texts, space.encode_text(list(GREY)), atol=1e-3)  # stored in half precision
    assert weights.tolist() == [1, 2, 3]
    assert tiny.make_space().reference_texts("grey") is None
    for rows, count in ((texts[:, :3], weights), (texts, weights[:2]), (np.full_like(texts, np.nan), weights)):
        with pytest.raises(SpaceError, match="reference texts of grey"):
            Space(*_parts(space), texts={"grey": (rows, count)})


def _parts(space):
    return {m: space.model(m) for m in space.modalities}, {m: space.bridge_module(m) for m in space.modalities}
