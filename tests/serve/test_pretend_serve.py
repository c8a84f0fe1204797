"""The service with its space on an accelerator gives the answers of the CPU, and waits for it only for rows."""

import numpy as np

from m3bind.serve.app import make_app
from m3bind.space.bundle import load
from pretend.device import DEVICE, pretend_device
from serve.conftest import client_of, until, upload

FILES = ("xray", "ecg")
TEXT = {"kind": "text", "value": "bright heart"}


def answers(world, device):
    """What the routes answer that ask the towers: vectors of texts and uploads, hits, phrases, probabilities."""
    with client_of(make_app(load(world.folder / "space", device), world.index)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        until(lambda: ask(client, "texts", parts=[TEXT], k=3)["texts"])  # the vocabulary is encoded
        ids = []
        for name in FILES:
            made = upload(client, *sorted(world.files[name].parent.glob(f"{world.files[name].stem}.*")), modality=name)
            assert made.status_code == 201, made.text
            ids.append(made.json()["id"])
        vectors = [*ask(client, "encode", texts=["bright", "dark heart"])["vectors"]]
        vectors += ask(client, "encode", uploads=ids)["vectors"]
        parts = [{"kind": "upload", "value": name} for name in ids]
        hits = [ask(client, "search", parts=query, k=5)["hits"] for query in ([TEXT], [parts[1]], [TEXT, parts[0]])]
        phrases = [ask(client, "texts", parts=[part], k=3)["texts"] for part in (TEXT, parts[0])]
        chances = [ask(client, "zero-shot", source=p, labels=["normal", "pneumonia"])["probabilities"] for p in parts]
    names = [[hit["id"] for hit in row] for row in hits], [[phrase["text"] for phrase in row] for row in phrases]
    return names, vectors, chances


def ask(client, route, **body):
    answer = client.post(f"/api/{route}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_answers_are_those_of_the_cpu(world):
    names, vectors, chances = answers(world, "cpu")
    with pretend_device(float64=False):
        got = answers(world, DEVICE)
    assert got[0] == names
    np.testing.assert_allclose(got[1], vectors, atol=1e-6)
    np.testing.assert_allclose(got[2], chances, atol=2e-6)  # answered with 6 digits


def test_a_text_of_a_query_waits_once(world):
    from m3bind.serve.query import Questions
    from m3bind.serve.uploads import Uploads

    with pretend_device() as log:
        questions = Questions(load(world.folder / "space", DEVICE), Uploads(4, 1 << 20, 60))
        questions.text("normal")  # the tower's precision is measured
        log.clear()
        questions.text("pneumonia")
        assert sum(log.syncs.values()) == 1
        questions.text("pneumonia")
        assert sum(log.syncs.values()) == 1  # cached
