"""Search and zero-shot answers with a space on an accelerator are those of the CPU."""

import numpy as np
import pytest

from m3bind.encode.job import encode_files, open_encoded
from m3bind.index import build_index
from m3bind.search.query import Query
from m3bind.search.searcher import Searcher
from m3bind.search.zero_shot_classifier import ZeroShotClassifier, labels_of
from m3bind.space.bundle import load, save_space
from pretend.device import DEVICE, pretend_device
from search.test_searcher import Row
from space import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory, _registered):
    folder = tmp_path_factory.mktemp("pretend")
    space = load(save_space(tiny.make_space(), folder / "space"), "cpu")
    paths = tiny.pictures(folder / "in", 40)
    rows = [Row(("grey", "other")[i % 2], path, f"i{i}", f"l{i % 2}") for i, path in enumerate(paths)]
    encode_files(space, rows, folder / "encoded", keep=("id", "label"))
    build_index(open_encoded(folder / "encoded"), folder / "index").close()
    return folder, paths


def answers(folder, paths, device):
    """Hits of queries of every kind, and probabilities."""
    space = load(folder / "space", device)
    searcher = Searcher(space, folder / "index", workers=2)
    queries = [
        Query.text("bright"),
        Query.text("dark", tower="grey") - 0.5 * Query.item("i3"),
        Query.file(paths[1], "other") + Query.file(paths[2], "grey"),
    ]
    hits = searcher.search_many(queries, 5)
    classifier = ZeroShotClassifier(space, searcher.index, labels_of(searcher.index))
    found = classifier.classify(searcher.embed(queries), "grey", ["l0", "l1"])
    return [[hit.id for hit in row] for row in hits], [[hit.score for hit in row] for row in hits], found.probabilities


def test_answers_are_those_of_the_cpu(place):
    ids, scores, chances = answers(*place, "cpu")
    with pretend_device(float64=False):
        got = answers(*place, DEVICE)
    assert got[0] == ids
    np.testing.assert_allclose(got[1], scores, atol=1e-6)
    np.testing.assert_allclose(got[2], chances, atol=1e-6)
