"""Results computed from embeddings: nearest phrases, calibrated labels and doubts, the map."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m3bind.index import create_index
from m3bind.serve.index_reload import ServedIndex
from m3bind.serve.layout import flat
from m3bind.serve.phrases import Vocabulary, phrases_for
from m3bind.serve.query import Questions
from m3bind.serve.schemas import ZeroShot
from m3bind.serve.uploads import Uploads
from m3bind.serve.zero_shot_answer import ZeroShotAnswers


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_a_phrase_that_is_near_to_everything_is_not_the_reason():
    rng = np.random.default_rng(0)
    common = unit(rng.normal(size=16))
    others = unit(common + 0.3 * rng.normal(size=(100, 16)))
    own = unit(rng.normal(size=16))
    row = unit(common + 0.5 * own)
    phrases = Vocabulary(
        {"hub": set(), "own": set(), "else": set()}, np.stack([common, own, unit(rng.normal(size=16))])
    )
    near = phrases.near(row, 3, others)
    assert near[0]["text"] == "own" and near[0]["percentile"] > 95
    scores = {phrase["text"]: phrase["score"] for phrase in near}
    assert scores["hub"] > scores["own"]  # by cosine alone the hub would be first
    assert Vocabulary().near(row, 3, others) == []


@example(11, 35, 16, 1)  # .658255 in float32 is rounded up or down
@given(st.integers(2, 30), st.integers(20, 60), st.integers(0, 1000), st.integers(1, 40))
def test_phrases_do_not_depend_on_their_order(p, r, seed, k):
    rng = np.random.default_rng(seed)
    rows, others, row = unit(rng.normal(size=(p, 8))), unit(rng.normal(size=(r, 8))), unit(rng.normal(size=8))
    texts, order = [f"t{at}" for at in range(p)], rng.permutation(p)
    found = Vocabulary({text: set() for text in texts}, rows).near(row, k, others)
    again = Vocabulary({texts[at]: set() for at in order}, rows[order]).near(row, k, others)
    assert found == again and len(found) == min(k, p)
    expected = 100 * (others @ rows[int(found[0]["text"][1:])] < found[0]["score"] - 1e-5).mean()
    assert abs(found[0]["percentile"] - expected) <= 100 / r + 0.01


def test_the_vocabulary_is_of_the_modalities_and_the_operator():
    labels = {"ecg": ["left_bundle", "Atrial fibrillation"], "xray": ["normal"]}
    found = phrases_for(["ecg"], labels, ["  my   phrase ", "MY PHRASE", "", "normal"])
    assert list(found)[:4] == ["my phrase", "normal", "left bundle", "Atrial fibrillation"]
    assert found["my phrase"] == found["normal"] == set()  # the operator's phrases: shown for any modality
    assert found["first-degree atrioventricular block"] == found["Atrial fibrillation"] == {"ecg"}
    assert "Cardiomegaly" not in found and len({text.lower() for text in found}) == len(found)
    both = phrases_for(["xray", "ct"], {})
    assert both["Cardiomegaly"] == {"xray", "ct"}


def test_phrases_of_other_modalities_are_not_shown():
    rows = unit(np.random.default_rng(0).normal(size=(4, 8)))
    phrases = Vocabulary({"a": {"ct"}, "b": {"ecg"}, "c": set(), "d": {"ct", "ecg"}}, rows)
    assert {p["text"] for p in phrases.near(rows[0], 9, None, "ct")} == {"a", "c", "d"}
    assert len(phrases.near(rows[0], 9)) == 4


@pytest.fixture(scope="module")
def labelled(world, tmp_path_factory):
    """200 items near the text of one of two labels, one of them unlike the training data."""
    rng = np.random.default_rng(0)
    texts = unit(rng.normal(size=(2, 8)))
    truth = rng.integers(0, 2, 200)
    wrong = np.where(rng.random(200) < 0.25, 1 - truth, truth)  # a quarter looks like the other one
    rows = unit(texts[wrong] + 0.2 * rng.normal(size=(200, 8)))
    strange = unit(-texts.sum(0))
    table = pd.DataFrame({
        "id": [f"a{at}" for at in range(200)] + ["strange"], "modality": "xray",
        "label": [("left_side", "right side")[at] for at in truth] + [""],
        "unlike": [""] * 200 + ["resolution lower than in training"],
    })  # fmt: skip
    place = tmp_path_factory.mktemp("labelled") / "index"
    with create_index(place, 8, world.space.fingerprint) as index:
        index.upsert(np.vstack([rows, strange]), table)
    return ServedIndex(world.space, place), texts, rows


def judge(world, labelled, monkeypatch, item, **more):
    archive, texts, _ = labelled
    shooter = ZeroShotAnswers(Questions(world.space, Uploads(1, 1, 1)))
    monkeypatch.setattr(world.space, "class_embeddings", lambda labels, *_: texts[: len(labels)])
    asked = {"source": {"kind": "item", "value": item}, "labels": ["Left side", "right side"], **more}
    with archive.lease() as state:
        return shooter.answer(state, ZeroShot.model_validate(asked))


def test_probabilities_mean_what_they_say_where_items_are_labelled(world, labelled, monkeypatch):
    told = [judge(world, labelled, monkeypatch, f"a{at}", threshold=0) for at in range(0, 200, 4)]
    sure = np.array([max(one["probabilities"]) for one in told])
    assert all(one["calibrated"] for one in told) and 0.65 < sure.mean() < 0.85  # three quarters are right
    unknown = judge(world, labelled, monkeypatch, "a0", labels=["left side", "something else"])
    assert not unknown["calibrated"] and max(unknown["probabilities"]) > 0.9


def test_no_answer_below_the_threshold_or_for_an_unusual_item(world, labelled, monkeypatch):
    assert not judge(world, labelled, monkeypatch, "a1", threshold=0.6)["abstain"]
    unsure = judge(world, labelled, monkeypatch, "a1", threshold=0.95)
    assert unsure["abstain"] and "less than 95 %" in unsure["why"]
    strange = judge(world, labelled, monkeypatch, "strange", threshold=0)
    assert strange["abstain"] and "resolution lower than in training" in strange["why"]


def neighbours(xy, values, k=5):
    far = ((xy[:, None] - xy[None]) ** 2).sum(-1) + 9 * np.eye(len(xy))
    return float((values[far.argsort(1)[:, :k]] == values[:, None]).mean())


@pytest.mark.parametrize("spoken", [False, True])
def test_the_map_shows_content_rather_than_modality(spoken):
    rng = np.random.default_rng(0)
    content, offset, own = (rng.normal(size=(4, 48)) for _ in range(3))
    kind, about = np.arange(240) % 4, np.arange(240) // 4 % 4
    rows = unit(content[about] + 3 * offset[kind] + 0.6 * rng.normal(size=(240, 48)))
    phrases = unit(content[np.arange(60) % 4] + 0.3 * own[0] + 0.2 * rng.normal(size=(60, 48))) if spoken else None
    xy = flat(rows, [f"m{at}" for at in kind], phrases)
    assert np.abs(xy).max() <= 1 and neighbours(xy, about) > 0.8 and neighbours(xy, kind) < 0.45
    assert np.array_equal(xy, flat(rows, [f"m{at}" for at in kind], phrases))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40), st.booleans())
def test_maps_of_few_items_and_of_items_that_are_the_same(n, distinct, spoken):
    rng = np.random.default_rng(n)
    rows = unit(rng.normal(size=(distinct, 24)))[np.arange(n) % distinct]
    xy = flat(rows, ["a", "b"] * (n // 2) + ["a"] * (n % 2), unit(rng.normal(size=(40, 24))) if spoken else None)
    assert xy.shape == (n, 2) and np.isfinite(xy).all() and np.abs(xy).max(initial=0) <= 1 + 1e-9


def test_without_a_shared_text_encoder_the_first_modalitys_own_is_taken(world):
    from space import archives

    space = archives.make_space()
    found = Questions(space, Uploads(1, 1, 1)).texts(["a lung"])
    np.testing.assert_allclose(found, space.encode_text(["a lung"], space.modalities[0]))
