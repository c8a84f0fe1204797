from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from m3bind.encode.job import encode_files, open_encoded
from m3bind.errors import ConfigError, ReadError, SpaceError, UnknownNameError
from m3bind.index.base import Where
from m3bind.models.embedding import correct_gap
from m3bind.search import searcher as module
from m3bind.search.query import Query
from m3bind.search.ranking import Ranking
from m3bind.search.searcher import Searcher, search
from m3bind.space.bundle import Space, load, save_space
from space import tiny

N = 60


@dataclass(frozen=True)
class Row:
    modality: str
    path: Path
    id: str
    label: str


@pytest.fixture(scope="module")
def world(tmp_path_factory, _registered):
    """A space, pictures, and both modalities encoded, with and without gap correction."""
    folder = tmp_path_factory.mktemp("world")
    space = load(save_space(tiny.make_space(), folder / "space"))
    paths = tiny.pictures(folder / "in", N)
    rows = [Row(("grey", "other")[i % 2], path, f"i{i}", f"l{i % 3}") for i, path in enumerate(paths)]
    encode_files(space, rows, folder / "plain", keep=("id", "label"))
    encode_files(space, rows, folder / "gap", keep=("id", "label"), gap_correct=True)
    return space, paths, folder


@pytest.fixture
def searcher(world):
    return Searcher(world[0], world[2] / "plain")


def embeddings(world, name="plain"):
    return np.array(open_encoded(world[2] / name).embeddings)


def number(hit):
    return int(hit.id[1:])


def naive(rows, query, k, order):
    """Rows, cosines, z and percentiles of the k best, straight from the definitions."""
    scores = rows @ query
    z, percentile = np.empty(N), np.empty(N)
    for half in (slice(0, None, 2), slice(1, None, 2)):  # the modalities
        near = scores[half]
        z[half] = (near - near.mean()) / near.std()
        percentile[half] = [100 * np.mean(near < score - 1e-6) for score in near]
    best = np.argsort(-(z if order == "calibrated" else scores), kind="stable")[:k]
    return best, scores[best], z[best], percentile[best]


@pytest.mark.parametrize("order", ["calibrated", "cosine"])
@pytest.mark.parametrize("k", [1, 7, N + 5])
def test_words_find_what_the_definitions_say(world, searcher, order, k):
    space, paths, _ = world
    hits = searcher.search("abnormal lung", k, rank=order)
    best, scores, z, percentile = naive(embeddings(world), space.encode_text("abnormal lung")[0], k, order)
    assert [number(hit) for hit in hits] == best.tolist()
    np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-6)
    np.testing.assert_allclose([hit.calibrated for hit in hits], z, atol=1e-4)
    np.testing.assert_allclose([hit.percentile for hit in hits], percentile, atol=1e-6)
    assert [hit.path for hit in hits] == [str(paths[row]) for row in best]
    assert [hit.modality for hit in hits] == [("grey", "other")[row % 2] for row in best]
    assert [hit.fields for hit in hits] == [{"label": f"l{row % 3}"} for row in best]


def test_a_modality_that_is_nearer_to_everything_does_not_hide_the_other(world, searcher):
    rows = embeddings(world)
    shifted = rows + np.where(np.arange(N) % 2, 3, 0)[:, None] * world[0].encode_text("bright")[0]
    shifted = shifted / np.linalg.norm(shifted, axis=1, keepdims=True)
    searcher = Searcher(world[0], open_encoded(world[2] / "plain"))
    searcher.index._rows = shifted.astype(np.float32)
    searcher.calibration = module.calibration_of(searcher.index)
    searcher.ranking = Ranking.of(world[0], searcher.calibration)
    by_cosine = {hit.modality for hit in searcher.search("bright", 20, rank="cosine")}
    calibrated = [hit.modality for hit in searcher.search("bright", 20)]
    assert by_cosine == {"other"} and min(calibrated.count("grey"), calibrated.count("other")) >= 5


def test_a_file_finds_itself_and_an_item_the_others(world, searcher):
    _, paths, _ = world
    hit = searcher.search(Query.file(paths[4], "grey"), 1)[0]
    assert hit.id == "i4" and hit.score == pytest.approx(1, abs=1e-5)
    like = searcher.search(Query.item("i4"), N)
    assert len(like) == N - 1 and "i4" not in {hit.id for hit in like}
    file = [hit.id for hit in searcher.search(Query.file(paths[4], "grey"), N)]
    assert [hit.id for hit in like] == [name for name in file if name != "i4"]


def test_parts_are_weighed_and_avoided(world, searcher):
    space, paths, _ = world
    query = Query.text("abnormal lung", tower="grey") + 0.5 * Query.item("i7") - 0.25 * Query.file(paths[2], "grey")
    words, rows = space.encode_text("abnormal lung", "grey")[0], embeddings(world)
    total = words + 0.5 * rows[7] - 0.25 * rows[2]
    best = naive(rows, total / np.linalg.norm(total), N, "calibrated")[0]
    assert [number(hit) for hit in searcher.search(query, N)] == [row for row in best if row != 7]
    without = searcher.search(Query.text("bright") - Query.item("i3", 0.9), N, rank="cosine")
    plain = searcher.search("bright", N, rank="cosine")
    nearest = max(set(range(N)) - {3}, key=lambda row: rows[row] @ rows[3])
    assert [number(hit) for hit in without].index(nearest) > [number(hit) for hit in plain].index(nearest)


def test_many_questions_are_one_search_per_modality(world, searcher, monkeypatch):
    calls, texts = [], []
    search, encode = searcher.index.search, Space.encode_text
    monkeypatch.setattr(searcher.index, "search", lambda rows, *more: calls.append(len(rows)) or search(rows, *more))
    monkeypatch.setattr(Space, "encode_text", lambda self, t, *more: texts.append(list(t)) or encode(self, t, *more))
    queries = ["bright", Query.item("i5"), Query.text("dark") + Query.text("bright"), "dark"]
    many = searcher.search_many(queries, 9)
    assert calls == [4, 4] and texts == [["bright", "dark"]]
    for query, hits in zip(queries, many):
        one = searcher.search(query, 9)
        assert [hit.id for hit in one] == [hit.id for hit in hits]
        np.testing.assert_allclose([hit.calibrated for hit in one], [hit.calibrated for hit in hits], atol=1e-4)
    assert searcher.search_many([]) == []


def along_by_the_formula(rows, row, centre, texts):
    """q' = q + 8 (a.(q - centre)) a, normalised."""
    axis = (texts[1] - texts[0]) / np.linalg.norm(texts[1] - texts[0])
    turned = row + 8 * (axis @ (row - centre)) * axis
    return naive(rows, turned / np.linalg.norm(turned), N, "calibrated")[0]


def test_a_query_is_turned_to_its_side_of_an_axis(world, searcher):
    space, paths, _ = world
    rows, texts = embeddings(world), space.encode_text(["bright", "dark"])
    means = {"grey": rows[::2].mean(0), "other": rows[1::2].mean(0)}
    words = space.encode_text("a lung")[0]
    queries = {
        Query.item("i4"): (rows[4], means["grey"]),
        Query.item("i5"): (rows[5], means["other"]),
        Query.file(paths[4], "grey"): (rows[4], means["grey"]),
        Query.text("a lung"): (words, texts.mean(0)),
        Query.item("i4") + 0.5 * Query.text("a lung"): (
            (rows[4] + 0.5 * words) / (length := np.linalg.norm(rows[4] + 0.5 * words)),
            (means["grey"] + 0.5 * texts.mean(0)) / length,
        ),
    }
    many = searcher.search_many(list(queries), N, along=("bright", "dark"))
    for query, hits in zip(queries, many):
        own = {int(part.value[1:]) for part in query.parts if part.kind == "item"}
        best = along_by_the_formula(rows, *queries[query], texts)
        assert [number(hit) for hit in hits] == [row for row in best if row not in own]
        assert [hit.id for hit in searcher.search(query, N, along=("bright", "dark"))] == [hit.id for hit in hits]
        swapped = searcher.search(query, N, along=("dark", "bright"))
        assert [hit.id for hit in swapped] == [hit.id for hit in hits]  # an axis has two ends, and no direction


def test_hits_lie_on_the_querys_side_of_the_axis(world, searcher):
    rows, (bright, dark) = embeddings(world), world[0].encode_text(["bright", "dark"])
    axis = (dark - bright) / np.linalg.norm(dark - bright)
    own = [rows[4] @ axis > rows[::2].mean(0) @ axis, rows[6] @ axis > rows[::2].mean(0) @ axis]
    for item, above in zip(("i4", "i6"), own):
        for name, half in (("grey", rows[::2]), ("other", rows[1::2])):
            hits = searcher.search(Query.item(item), 5, Where(modality=name), along=("bright", "dark"))
            side = np.mean([rows[number(hit)] @ axis for hit in hits]) > half.mean(0) @ axis
            assert side == above


def test_conditions_and_modalities_one_after_the_other(world, searcher):
    hits = searcher.search("bright", 4, Where(label="l1"), per_modality=True)
    assert [hit.modality for hit in hits] == ["grey"] * 4 + ["other"] * 4
    assert {hit.fields["label"] for hit in hits} == {"l1"}
    for name in ("grey", "other"):
        alone = searcher.search("bright", 4, Where(label="l1", modality=name))
        assert alone == [hit for hit in hits if hit.modality == name]
    assert searcher.search("bright", 4, Where(label="none")) == []
    assert len(searcher.search("bright", N, Where(not_ids=("i1", "i2")))) == N - 2


def test_gap_correction_is_the_indexs_own(world, searcher):
    space, paths, folder = world
    stored = Searcher(space, str(folder / "gap"))
    hits = stored.search(Query.file(paths[4], "grey"), N, rank="cosine")
    means = np.stack([space.image_mean(("grey", "other")[i % 2]) for i in range(N)])
    centred = correct_gap(embeddings(world), means)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(centred @ centred[4])[::-1], atol=1e-5)
    with pytest.raises(SpaceError, match="which texts do not fit"):
        stored.search(Query.file(paths[4], "grey"), along=("bright", "dark"))
    with pytest.raises(ConfigError, match="the two wordings"):
        searcher.search("bright", along=("dark", "dark"))
    one_side = searcher.search(Query.file(paths[4], "grey"), N, gap_correction=True, rank="cosine")
    expected = np.sort(embeddings(world) @ centred[4])[::-1]
    np.testing.assert_allclose([hit.score for hit in one_side], expected, atol=1e-5)
    with pytest.raises(SpaceError, match="texts do not fit"):
        stored.search(Query.text("x") + Query.item("i1"))
    with pytest.raises(SpaceError, match="search with gap_correction"):
        stored.search(Query.file(paths[4], "grey"), gap_correction=False)


def test_questions_that_make_no_sense_are_refused(world, searcher, tmp_path):
    space, _, folder = world
    with pytest.raises(ConfigError, match="at least 1"):
        search(space, folder / "plain", "x", k=0)
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        searcher.search("x", rank="cosin")
    with pytest.raises(UnknownNameError, match="did you mean 'other'"):
        searcher.search("x", where=Where(modality="othr"))
    with pytest.raises(UnknownNameError, match="item"):
        searcher.search(Query.item("i999"))
    with pytest.raises(ReadError, match="no such file"):
        searcher.search(Query.file("none.png", "grey"))
    with pytest.raises(UnknownNameError, match="modality"):
        searcher.search(Query.file("none.png", "mri"))
    with pytest.raises(SpaceError):
        Searcher(space, tmp_path / "nothing")
    another = load(save_space(tiny.make_space(seed=3), tmp_path / "s"))
    with pytest.raises(SpaceError, match="another space"):
        search(another, folder / "plain", "x")


def test_a_hit_as_json_and_as_a_picture(world, searcher, tmp_path):
    hit = searcher.search("bright", 1)[0]
    assert hit.as_dict() == {
        "score": hit.score,
        "calibrated": hit.calibrated,
        "percentile": hit.percentile,
        "relevance": 1.0,
        "id": hit.id,
        "modality": hit.modality,
        "path": hit.path,
        "fields": {"label": hit.fields["label"]},
    }
    picture = hit.thumbnail(48)
    assert picture.size == (48, 48) and picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(hit.thumbnail(48)))
    gone = module.Hit(0.1, 0.2, 0.3, "x", "grey", 1.0, str(tmp_path / "gone.png"))
    with pytest.raises(ReadError, match="no such file"):
        gone.thumbnail()
    with pytest.raises(ConfigError, match="stores no paths"):
        module.Hit(0.1, 0.2, 0.3, "x", "grey").thumbnail()
