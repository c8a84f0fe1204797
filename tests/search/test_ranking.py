"""Hits of several modalities: how relevant a modality is, and an item in it, straight from the definitions."""

import numpy as np
import pytest

from m3bind.encode.encoded import open_encoded
from m3bind.encode.job import encode_files
from m3bind.errors import SpaceError
from m3bind.index import build_index
from m3bind.search.query import Query
from m3bind.search.ranking import CENTRE, FALL, MARGIN, NEAR, SHARP, SLOPE, UNIT, Ranking
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


KINDS = np.array(["grey", "other"] * (N // 2))


def weighted(space, name):
    texts, weights = space.reference_texts(name)
    return texts, weights / weights.sum()


def naive_scores(space, rows, query, image_of=""):
    """Score of every row; `image_of`: the modality of an image in the query."""
    spread, usual, scores = {}, {}, np.empty(N)
    for name in ("grey", "other"):
        texts, weights = weighted(space, name)
        spread[name] = (rows[name == KINDS] @ query).std()
        usual[name] = np.average([(rows[name == KINDS] @ text).std() for text in texts], weights=weights)
    for name in ("grey", "other"):
        texts, weights = weighted(space, name)
        other = "other" if image_of == "grey" else "grey"
        unit = min(max(spread[name], UNIT[0] * usual[name]), UNIT[1] * usual[name])
        if image_of:
            unit = spread[name] if name == image_of else usual[name] * spread[other] / usual[other]
        own = rows[name == KINDS] @ query
        score = own - CENTRE * own.mean() - (1 - CENTRE) * rows[name == KINDS] @ (weights @ texts)
        scores[name == KINDS] = score / unit
    return scores


def relevance_to_text(space, text):
    distance = {name: max(0, 1 - (space.reference_texts(name)[0] @ text).max()) + NEAR for name in ("grey", "other")}
    excess = {name: np.log(value / min(distance.values())) - MARGIN for name, value in distance.items()}
    return {name: np.exp(-SLOPE * max(value, 0)) for name, value in excess.items()}


def relevance_to_image(space, rows, image, name):
    (texts, weights), other = weighted(space, name), "other" if name == "grey" else "grey"
    likeness = np.exp(SHARP * texts @ (image - rows[name == KINDS].mean(axis=0)))
    nearest = np.array([max(space.reference_texts(other)[0] @ text) for text in texts])
    return {name: 1.0, other: np.exp(FALL * min(0, likeness @ nearest / likeness.sum() - weights @ nearest))}


def assert_as_defined(hits, rows, query, scores, relevance, own=-1):
    """`own`: the row of the query, which is not among the hits."""
    merged = scores + np.log([relevance[kind] for kind in KINDS])
    best = [row for row in np.argsort(-merged, kind="stable") if row != own][: len(hits)]
    assert [hit.id for hit in hits] == [f"i{row}" for row in best]
    np.testing.assert_allclose([hit.calibrated for hit in hits], scores[best], atol=1e-4)
    np.testing.assert_allclose([hit.score for hit in hits], rows[best] @ query, atol=1e-5)
    np.testing.assert_allclose([hit.merged for hit in hits], merged[best], atol=1e-4)
    for hit in hits:
        alike = scores[hit.modality == KINDS]
        assert hit.percentile == pytest.approx(100 * np.mean(alike < hit.calibrated - 1e-4), abs=4)


@pytest.fixture(scope="module")
def rows(world):
    return np.array(open_encoded(world[1] / "plain").embeddings)


@pytest.mark.parametrize("text", [TOPIC, "slow rhythm", "something else"])
def test_texts_are_ranked_as_defined(world, rows, text):
    space, folder = world
    spoken = space.encode_text(text)[0]
    hits = Searcher(space, folder / "plain").search(text, K)
    assert_as_defined(hits, rows, spoken, naive_scores(space, rows, spoken), relevance_to_text(space, spoken))


@pytest.mark.parametrize("row", range(6))
def test_items_and_files_are_ranked_as_defined(world, rows, row):
    space, folder = world
    name, searcher = KINDS[row], Searcher(space, folder / "plain")
    scores, relevance = naive_scores(space, rows, rows[row], name), relevance_to_image(space, rows, rows[row], name)
    assert_as_defined(searcher.search(Query.item(f"i{row}"), N - 1), rows, rows[row], scores, relevance, row)
    path = str(folder / "in" / f"{row:05}.png")
    by_file = searcher.search(Query.file(path, name), N)
    assert [hit.id for hit in by_file if hit.id != f"i{row}"] == [
        hit.id for hit in searcher.search(Query.item(f"i{row}"), N)
    ]
    avoided = searcher.search(Query.item(f"i{row}") - 0.3 * Query.text(TOPIC), 3)
    assert all(hit.relevance == pytest.approx(relevance[hit.modality]) for hit in avoided)


@pytest.mark.parametrize("row", range(4))
def test_the_texts_of_a_mix_choose_the_modality(world, rows, row):
    space, folder = world
    text = space.encode_text("slow rhythm")[0]
    mixed = (rows[row] + text) / np.linalg.norm(rows[row] + text)
    hits = Searcher(space, folder / "plain").search(Query.item(f"i{row}") + Query.text("slow rhythm"), N - 1)
    scores, relevance = naive_scores(space, rows, mixed, KINDS[row]), relevance_to_text(space, text)
    assert_as_defined(hits, rows, mixed, scores, relevance, row)


def test_a_modality_with_nothing_to_say_comes_last(world):
    space, folder = world
    searcher = Searcher(space, folder / "plain")
    assert {hit.modality for hit in searcher.search(TOPIC, N // 2)} == {"grey"}
    assert {hit.modality for hit in searcher.search("slow rhythm", N // 2)} == {"other"}
    listed = searcher.search("slow rhythm", 2, per_modality=True)
    assert [hit.modality for hit in listed] == ["other", "other", "grey", "grey"]
    assert listed[0].relevance == 1 > listed[-1].relevance > 0


def test_questions_of_several_kinds_are_ranked_one_by_one(world):
    searcher = Searcher(world[0], world[1] / "plain")
    asked = ["slow rhythm", Query.item("i4"), Query.item("i5"), Query.item("i4") + Query.text(TOPIC), Query.item("i4")]
    for together, query in zip(searcher.search_many(asked, N), asked, strict=True):
        alone = searcher.search(query, N)
        assert [hit.id for hit in together] == [hit.id for hit in alone]
        np.testing.assert_allclose([h.merged for h in together], [h.merged for h in alone], atol=1e-5)


def test_images_of_two_modalities_search_both(world):
    hits = Searcher(world[0], world[1] / "plain").search(Query.item("i4") + Query.item("i5"), N)
    assert {hit.relevance for hit in hits} == {1.0}


def test_vectors_without_parts_and_spaces_without_texts_are_ranked_by_z(world, rows):
    space, folder = world
    searcher, bare = Searcher(space, folder / "plain"), Searcher(space, folder / "plain")
    bare.ranking = Ranking(bare.calibration)
    hits = bare.search(Query.item("i4"), N - 1)
    assert [hit.id for hit in searcher.nearest(rows[4:5], N - 1, own=[{"i4"}])[0]] == [hit.id for hit in hits]
    for hit in hits:
        near = rows[hit.modality == KINDS] @ rows[4]
        assert hit.calibrated == pytest.approx((hit.score - near.mean()) / near.std(), abs=1e-3) and hit.relevance == 1


def test_a_file_of_a_modality_that_the_index_lacks(world, rows, tmp_path):
    """What it shows is read from its own texts all the same."""
    space, folder = world
    archive = [Row("grey", folder / "in" / f"{i:05}.png", f"i{i}", "") for i in range(N)]
    encode_files(space, archive, tmp_path / "grey", keep=("id",))
    hits = Searcher(space, tmp_path / "grey").search(Query.file(str(folder / "in" / "00001.png"), "other"), 5)
    assert {hit.modality for hit in hits} == {"grey"} and 0 < hits[0].relevance <= 1
    assert all(np.isfinite(hit.calibrated) for hit in hits)


def test_every_engine_ranks_alike(world, tmp_path):
    space, folder = world
    archive = open_encoded(folder / "plain")
    targets = [str(tmp_path / "index")]
    try:
        import milvus_lite  # noqa: F401

        targets.append(f"milvus:{tmp_path / 'index.db'}#items")
    except ImportError:
        pass
    file = Query.file(str(folder / "in" / "00003.png"), "other")
    asked = [TOPIC, "slow rhythm", Query.item("i4") + Query.text("dark lung"), Query.item("i5"), file]
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
