"""Every route of the contract, on files of five modalities and a small index."""

import io

import numpy as np
import pytest
from PIL import Image

from serve.conftest import client_of, until, upload

QUESTION = {"parts": [{"kind": "text", "value": "pneumonia"}]}


@pytest.fixture(scope="module")
def brought(client, world):
    """One upload of each modality."""
    files = world.files
    answers = {name: upload(client, files[name]) for name in ("xray", "retina", "ct", "pathology")}
    answers["ecg"] = upload(client, files["ecg"], files["ecg"].with_suffix(".dat"))
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 201)
    return {name: answer.json() for name, answer in answers.items()}


def png(answer):
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png", answer.text
    return Image.open(io.BytesIO(answer.content))


def test_about_describes_the_index(client, world):
    about = client.get("/api/about").json()
    assert about["items"] == 60 and about["dim"] == 8 and about["pictures"] and not about["synthetic"]
    xray = next(kind for kind in about["modalities"] if kind["name"] == "xray")
    assert xray["title"] == "Chest X-ray" and ".png" in xray["accepts"] and xray["items"] == 12
    assert about["labels"]["ct"] == ["normal", "pleural_effusion", "pneumonia"]
    assert about["columns"] == ["id", "modality", "label", "patient", "date"] and "path" not in about["columns"]
    assert about["limits"]["k"] == 200 and "Research" in about["notice"]
    until(lambda: client.get("/api/about").json()["texts"] > 50)


def test_uploads_are_recognised_and_say_what_was_done(brought):
    assert {name: told["modality"] for name, told in brought.items()} == {name: name for name in brought}
    assert all(told["id"].startswith("u_") and len(told["id"]) > 20 for told in brought.values())
    assert any("12 signals" in step for step in brought["ecg"]["steps"])


def test_an_upload_is_embedded_as_the_space_embeds_its_file(client, brought, world):
    for name in ("xray", "ct", "ecg"):
        (vector,) = client.post("/api/encode", json={"uploads": [brought[name]["id"]]}).json()["vectors"]
        np.testing.assert_allclose(vector, world.space.encode_image(world.files[name], name)[0], atol=1e-5)


def test_a_modality_can_be_given_and_is_checked(client, world):
    told = upload(client, world.files["retina"], modality="pathology")
    assert told.status_code == 201 and told.json()["modality"] == "pathology"
    assert upload(client, world.files["xray"], modality="mri").status_code == 400
    wrong = upload(client, world.files["xray"], modality="ecg")
    assert wrong.status_code == 422 and wrong.json()["error"]["code"] == "unreadable"


def test_a_series_of_files_is_one_volume(client, tmp_path):
    import pydicom
    from pydicom.uid import generate_uid

    from space import archives

    series, rng = generate_uid(), np.random.default_rng(0)
    paths = []
    for at in range(5):
        path = archives.dicom(tmp_path / f"slice{at}", rng, code="CT")
        data = pydicom.dcmread(path)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        data.SeriesInstanceUID, data.SOPInstanceUID = series, generate_uid()
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * at]
        data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [2, 2], 1, -1024
        data.save_as(path)
        paths.append(path)
    told = upload(client, *paths)
    assert told.status_code == 201, told.text
    facts = client.get(f"/api/uploads/{told.json()['id']}").json()
    assert (facts["modality"], facts["kind"], facts["slices"]) == ("ct", "volume", 5)


def test_search_is_what_the_searcher_finds(client, world):
    from m3bind.search.query import Query
    from m3bind.search.searcher import Searcher

    answer = client.post("/api/search", json={**QUESTION, "k": 7}).json()
    expected = Searcher(world.space, world.index).search(Query.text("pneumonia"), 7)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 8))
    first = answer["hits"][0]
    assert first["score"] == pytest.approx(expected[0].score, abs=1e-4)
    assert first["calibrated"] == pytest.approx(expected[0].calibrated, abs=1e-3)
    assert first["fields"].keys() == {"label", "patient", "date"}
    assert sum(answer["counts"].values()) == 7 and answer["seconds"] > 0


def test_search_combines_parts_and_excludes_the_query_items(client, world, brought):
    parts = [
        {"kind": "item", "value": "i003", "weight": 2},
        {"kind": "upload", "value": brought["xray"]["id"], "weight": 0.5},
        {"kind": "text", "value": "effusion", "weight": -0.5},
    ]
    hits = client.post("/api/search", json={"parts": parts, "k": 60, "rank": "cosine"}).json()["hits"]
    own = world.space.encode_image(world.files["xray"], "xray")[0]
    row = 2 * world.rows[3] + 0.5 * own - 0.5 * world.space.encode_text("effusion")[0]
    row /= np.linalg.norm(row)
    order = [world.lines[at]["id"] for at in np.argsort(-(world.rows @ row))]
    assert [hit["id"] for hit in hits] == [name for name in order if name != "i003"]


def test_a_search_along_an_axis_is_that_of_the_searcher(client, world, brought):
    from m3bind.search.query import Query
    from m3bind.search.searcher import Searcher

    searcher, along = Searcher(world.space, world.index), ("a lung", "the heart")
    queries = {
        "item": Query.item("i003"), "text": Query.text("pneumonia"), "upload": Query.file(world.files["xray"], "xray"),
    }  # fmt: skip
    values = {"item": "i003", "text": "pneumonia", "upload": brought["xray"]["id"]}
    for kind, query in queries.items():
        asked = {"parts": [{"kind": kind, "value": values[kind]}], "k": 20, "along": along}
        hits = client.post("/api/search", json=asked).json()["hits"]
        expected = searcher.search(query, 20, along=along)
        assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in expected], atol=1e-4)
    for wrong, status in ((["a", "a"], 400), (["a"], 422), (["a", ""], 422), (["a", "b", "c"], 422)):
        answer = client.post("/api/search", json={**QUESTION, "along": wrong})
        assert answer.status_code == status


def test_conditions_and_modalities(client):
    where = {"modality": ["ct", "ecg"], "label": ["pleural_effusion"], "since": "2005", "until": "2015-06"}
    answer = client.post("/api/search", json={**QUESTION, "k": 50, "where": where}).json()
    hits = answer["hits"]
    assert hits and {hit["modality"] for hit in hits} == {"ct", "ecg"} == set(answer["relevance"])
    for hit in hits:
        assert "pleural_effusion" in hit["fields"]["label"] and "2005" <= hit["fields"]["date"] <= "2015-06~"
    one = client.post("/api/search", json={**QUESTION, "where": {"patient": ["P3"]}}).json()["hits"]
    assert {hit["fields"]["patient"] for hit in one} == {"P3"} and len(one) == 5
    each = client.post("/api/search", json={**QUESTION, "k": 3, "per_modality": True}).json()
    assert each["counts"] == dict.fromkeys(("ct", "ecg", "pathology", "retina", "xray"), 3)
    assert set(each["relevance"]) == set(each["counts"])
    none = client.post("/api/search", json={**QUESTION, "where": {"label": ["no such"]}})
    assert none.status_code == 200 and none.json()["hits"] == []


def test_items_and_their_pictures(client, world):
    kinds = {"i000": "image", "i001": "image", "i002": "volume", "i003": "signal", "i004": "image"}
    for name, kind in kinds.items():
        facts = client.get(f"/api/items/{name}").json()
        assert (facts["kind"], facts["picture"]) == (kind, True)
        assert facts["slices"] == (8 if kind == "volume" else None)
        assert max(png(client.get(f"/api/items/{name}/thumbnail", params={"size": 100})).size) in (99, 100)
        assert max(png(client.get(f"/api/items/{name}/picture", params={"size": 300})).size) == 300
    bare = client.get("/api/items/i040").json()
    assert not bare["picture"] and bare["fields"]["patient"] == "P8"
    assert client.get("/api/items/i040/thumbnail").json()["error"]["code"] == "no_picture"


def test_slices_and_windows_are_those_of_the_volume(client, world):
    import nibabel

    from m3bind.modalities import decode

    volume = decode("ct", world.files["ct"]).array
    assert nibabel.load(world.files["ct"]).shape[2] == len(volume)
    for window, (low, high) in {"lung": (-1350, 150), "soft": (-160, 240), "bone": (-500, 1300)}.items():
        for at in (0, 5):
            answer = client.get("/api/items/i002/picture", params={"size": 16, "slice": at, "window": window})
            expected = np.clip((volume[at] - low) / (high - low), 0, 1) * 255
            assert np.abs(np.asarray(png(answer), float) - expected).max() <= 1.5
    assert client.get("/api/items/i002/picture", params={"slice": 8}).json()["error"]["code"] == "no_slice"
    assert client.get("/api/items/i000/picture", params={"slice": 0}).json()["error"]["code"] == "no_slices"
    assert client.get("/api/items/i002/picture", params={"window": "brain"}).status_code == 422


def test_a_browser_keeps_a_thumbnail(client):
    first = client.get("/api/items/i000/thumbnail")
    mark = first.headers["etag"]
    assert "private" in first.headers["cache-control"]
    again = client.get("/api/items/i000/thumbnail", headers={"If-None-Match": mark})
    assert again.status_code == 304 and not again.content and again.headers["etag"] == mark


def test_the_signal_is_the_record_in_millivolt(client, world, brought):
    from m3bind.modalities import decode

    record = decode("ecg", world.files["ecg"])
    for address in ("items/i003", f"uploads/{brought['ecg']['id']}"):
        told = client.get(f"/api/{address}/signal").json()
        assert told["leads"][:4] == ["I", "II", "III", "aVR"] and told["rate"] == 100 and told["seconds"] == 10
        np.testing.assert_allclose(told["mv"], record.array, atol=5.1e-4)
    assert client.get("/api/items/i000/signal").json()["error"]["code"] == "no_signal"


def test_fast_and_long_signals_are_slowed_and_cut():
    from m3bind.modalities import Sample
    from m3bind.serve.previews import Preview

    t = np.arange(60 * 1000) / 1000
    wave = np.tile(np.sin(2 * np.pi * 7 * t), (12, 1)).astype(np.float32)
    seen = Preview.of(Sample("ecg", wave, rate=1000.0))
    assert (seen.rate, seen.seconds, seen.array.shape) == (500.0, 60.0, (12, 15000))
    inner = slice(500, -500)
    np.testing.assert_allclose(seen.array[:, inner], wave[:, : 30 * 1000 : 2][:, inner], atol=0.01)


def test_uploads_are_seen_like_items(client, brought):
    for name, told in brought.items():
        address = f"/api/uploads/{told['id']}"
        facts = client.get(address).json()
        assert facts["picture"] and facts["modality"] == name and facts["fields"] == {}
        png(client.get(f"{address}/thumbnail"))
        assert max(png(client.get(f"{address}/picture", params={"size": 200})).size) == 200


def test_phrases_come_with_a_score_and_a_percentile(client, brought):
    until(lambda: client.get("/api/about").json()["texts"])
    answers = [
        client.get(f"/api/uploads/{brought['xray']['id']}/texts", params={"k": 4}),
        client.get("/api/items/i000/texts", params={"k": 4}),
        client.post("/api/texts", json={**QUESTION, "k": 4}),
    ]
    for answer in answers:
        texts = answer.json()["texts"]
        assert len(texts) == 4 and all(-1 <= t["score"] <= 1 and 0 <= t["percentile"] <= 100 for t in texts)


def test_encode_texts(client, world):
    vectors = client.post("/api/encode", json={"texts": ["a heart", "a lung"]}).json()["vectors"]
    np.testing.assert_allclose(vectors, world.space.encode_text(["a heart", "a lung"]), atol=1e-5)


def test_the_map_and_places_on_it(client):
    until(lambda: client.get("/api/map").json()["state"] == "ready", 60)
    drawn = client.get("/api/map").json()
    points = drawn["points"]
    assert len(points["id"]) == len(set(points["id"])) == 60
    assert all(len(column) == 60 for column in points.values()) and np.abs([points["x"], points["y"]]).max() <= 1
    at = points["id"].index("i007")
    place = client.post("/api/map/place", json={"parts": [{"kind": "item", "value": "i007"}]}).json()
    assert (place["x"], place["y"]) == pytest.approx((points["x"][at], points["y"][at]), abs=1e-4)
    typed = client.post("/api/map/place", json=QUESTION).json()
    assert abs(typed["x"]) <= 1 and abs(typed["y"]) <= 1


def test_zero_shot_equals_that_of_the_space(client, world, brought):
    source = {"kind": "upload", "value": brought["xray"]["id"]}
    labels, template = ["heart", "lung", "grey"], "a picture of {}"
    asked = {"source": source, "labels": labels, "template": template, "threshold": 0}
    told = client.post("/api/zero-shot", json=asked).json()
    expected = world.space.classify(world.files["xray"], "xray", labels, [template])[0]
    np.testing.assert_allclose(told["probabilities"], expected, atol=1e-5)
    assert told["modality"] == "xray" and not told["calibrated"] and told["why"]
    sure = client.post("/api/zero-shot", json={**asked, "threshold": 1}).json()
    assert sure["abstain"] and "%" in sure["why"]
    del asked["template"]
    prompts = {"lung": ["a lung", "two lungs"], "heart": ["the heart"], "grey": ["grey"]}
    told = client.post("/api/zero-shot", json={**asked, "prompts": prompts}).json()
    expected = world.space.classify(world.files["xray"], "xray", labels, prompts)[0]
    np.testing.assert_allclose(told["probabilities"], expected, atol=1e-5)
    for wrong in ({"prompts": {"lung": ["a"]}}, {"prompts": prompts, "template": template}, {"prompts": {}}):
        assert client.post("/api/zero-shot", json={**asked, **wrong}).status_code == 422


def test_the_classes_of_a_prompt_file_are_offered(world, tmp_path):
    from m3bind.evaluate.own_prompts import read_classes
    from m3bind.serve.app import make_app

    text = "tasks: {infection: {modality: xray, classes: {normal: [clear lungs], pneumonia: [pneumonia, opacity]}}}"
    (tmp_path / "own.yaml").write_text(text)
    with client_of(make_app(world.space, world.index, classes=read_classes(tmp_path / "own.yaml"))) as client:
        (own,) = client.get("/api/about").json()["classes"]
    prompts = {"normal": ["clear lungs"], "pneumonia": ["pneumonia", "opacity"]}
    assert own == {"task": "infection", "modality": "xray", "prompts": prompts}


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("search", {"parts": [{"kind": "item", "value": "nobody"}]}),
        ("search", {"parts": [{"kind": "upload", "value": "u_gone"}]}),
        ("encode", {"uploads": ["u_gone"]}),
        ("zero-shot", {"source": {"kind": "item", "value": "nobody"}, "labels": ["a", "b"]}),
        ("texts", {"parts": [{"kind": "upload", "value": "u_gone"}]}),
        ("map/place", {"parts": [{"kind": "item", "value": "nobody"}]}),
    ],
)
def test_missing_items_are_404(client, address, body):
    answer = client.post(f"/api/{address}", json=body)
    assert answer.status_code == 404 and answer.json()["error"]["code"] in ("no_item", "no_upload")
    assert "nobody" not in answer.text and "u_gone" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"parts": []},
        {"parts": [{"kind": "text", "value": "  "}]},
        {"parts": [{"kind": "text", "value": "x" * 2001}]},
        {"parts": [{"kind": "file", "value": "/etc/passwd"}]},
        {"parts": [{"kind": "text", "value": "a"}] * 17},
        {"parts": [{"kind": "text", "value": "a", "weight": 1e9}]},
        {**QUESTION, "k": 0},
        {**QUESTION, "k": 201},
        {**QUESTION, "rank": "random"},
        {**QUESTION, "where": {"colour": ["red"]}},
        {**QUESTION, "where": {"since": "yesterday"}},
        {**QUESTION, "more": 1},
    ],
)
def test_senseless_questions_are_refused_with_the_reason(client, body):
    answer = client.post("/api/search", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid" and answer.json()["error"]["message"].startswith("body")


def test_parts_that_cancel_each_other_out_are_refused(client):
    parts = [{"kind": "text", "value": "a lung"}, {"kind": "text", "value": "a lung", "weight": -1}]
    for more in (parts, [parts[1]]):
        answer = client.post("/api/search", json={"parts": more})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "cancelled"


def test_an_unknown_modality_is_400_and_names_those_there_are(client):
    answer = client.post("/api/search", json={**QUESTION, "where": {"modality": ["mri"]}})
    assert answer.status_code == 400 and "xray" in answer.json()["error"]["message"]


def test_a_template_is_never_run(client):
    source = {"kind": "item", "value": "i000"}
    for template in ("{} {0.__class__}", "{} {:>99999999}", "{} {x!r}"):
        answer = client.post(
            "/api/zero-shot", json={"source": source, "labels": ["a heart", "a lung"], "template": template}
        )
        assert answer.status_code == 200
    bare = client.post("/api/zero-shot", json={"source": source, "labels": ["a", "b"], "template": "no place"})
    assert bare.status_code == 422


def test_health_metrics_and_page(client):
    assert client.get("/healthz").text == "ok\n" and client.get("/readyz").text == "ready\n"
    client.get("/api/items/i000")
    text = client.get("/metrics").text
    assert 'm3bind_requests_total{method="GET",route="/api/items/{id:path}",status="200"}' in text
    assert "m3bind_index_items 60.0" in text and "m3bind_towers_waiting 0.0" in text and "i000" not in text
    assert "text/html" in client.get("/").headers["content-type"]
    assert client.get("/static/index.html").status_code == 200
    assert client.get("/static/../service.py").status_code == 404
    assert client.get("/nothing").json()["error"]["code"] == "not_found"
    assert client.delete("/api/about").status_code == 405
