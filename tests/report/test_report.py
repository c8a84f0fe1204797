"""report.html: parsed, checked for external links and identifiers, and rendered if a browser is installed."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from m3bind.errors import ConfigError, ReadError
from m3bind.evaluate.agreement import agreement_rows
from m3bind.evaluate.calibration import answers
from m3bind.evaluate.embedded_files import Points, same_concept, same_patient
from m3bind.evaluate.results import Context
from m3bind.evaluate.retrieval import patient_retrieval_rows
from m3bind.evaluate.zero_shot import unit
from m3bind.report import gallery, plots
from m3bind.report.write import ReportContent, write_report

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}
FINDINGS = ("healthy", "lung_cancer", "atrial_fibrillation")


def fake(strength, seed=0, n=24):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 16)) + 2 * rng.normal(size=(3, 16))[np.arange(n) % 3]
    points = {}
    for modality in ("xray", "ecg", "sonar"):  # sonar is not registered
        vectors = unit(strength * shared + rng.normal(size=(n, 16)) + rng.normal(size=16))
        findings = [FINDINGS[i % 3] for i in range(n)]
        names = [f"secretpatient{i}" for i in range(n)]
        concepts = [{"finding": finding} for finding in findings]
        points[modality] = Points(vectors, findings, names, concepts, [f"/secret/path{i}.png" for i in range(n)])
    return points


def thumbnail(modality, path):
    if modality == "sonar":
        raise ReadError(path, "cannot be read")
    return Image.new("RGB", (300, 150), (200, 30, 60))


def history():
    for stage, steps in (("pretrain", 30), ("align", 20)):
        for step in range(steps):
            yield {
                "stage": stage,
                "step": step,
                "lr": 1e-3 / (step + 1),
                "clip/xray": 2 - step / 40,
                "loss": 3 - step / 20,
                "rate": 9.0,
            }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run <1>")
    before, now, rows = fake(0.0), fake(1.5), []
    for stage, points in (("unbound", before), ("aligned", now)):
        context = Context("phantom", stage=stage)
        vectors = {m: p.vectors for m, p in points.items()}
        rows += patient_retrieval_rows(vectors, {m: p.patients for m, p in points.items()}, context, resamples=20)
        rows += agreement_rows(vectors, context, resamples=20)
    sure = {"As given": [("Chest X-ray: finding", answers(np.arange(40) % 3, np.eye(3)[np.arange(40) % 2 + 1]))]}
    content = ReportContent(rows, list(history()), now, thumbnail, ["A note & more."], before=before, reliability=sure)
    return write_report(folder, content)


class Page(HTMLParser):
    """Checks that tags nest, and collects tags with attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_is_one_file_without_scripts_or_outside_links(page):
    text = page.read_text()
    parsed = Page(text)
    assert not parsed.all("script") and not parsed.all("link") and not parsed.all("iframe")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", re.sub(r"data:[^\"]+", "", text))
    for attrs in parsed.all("img") + parsed.all("source"):
        assert attrs.get("src", attrs.get("srcset")).startswith("data:image/")
    assert all(attrs["href"].startswith("#") for attrs in parsed.all("a"))
    targets = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    assert {attrs["href"][1:] for attrs in parsed.all("a")} <= targets


def test_page_shows_how_often_confident_answers_are_right(page):
    parsed = Page(page.read_text())
    (alt,) = [attrs["alt"] for attrs in parsed.all("img") if "calibration error" in attrs.get("alt", "")]
    assert "Chest X-ray: finding" in alt


def test_page_can_be_read_without_seeing(page):
    parsed = Page(page.read_text())
    assert parsed.all("html")[0]["lang"] == "en" and len(parsed.all("h1")) == len(parsed.all("main")) == 1
    assert all(len(attrs["alt"]) > 3 for attrs in parsed.all("img"))
    assert all("scope" in attrs for attrs in parsed.all("th"))
    assert all(attrs.get("aria-label") for attrs in parsed.all("table"))
    assert len(parsed.all("source")) == len(
        [a for a in parsed.all("img") if "png" in a["src"][:20]]
    )  # dark version of each plot


def test_page_has_the_required_statements(page):
    words = " ".join(Page(page.read_text()).words)
    for part in (
        "Synthetic data.",
        "For research only.",
        "A note & more.",
        "chance",
        "95 %",
        "drawn at random",
        "t-SNE of 72",
    ):
        assert part in words, part
    assert "same patient" in words and "lung cancer" in words and "image not readable" in words
    assert "Pretrain" not in words and "pretrain" in words and "align" in words


def test_page_contains_no_identifiers_unless_requested(page, tmp_path):
    assert "secret" not in page.read_text()
    asked = write_report(tmp_path, ReportContent([], [], fake(1.0), thumbnail, identifiers=True))
    assert "secretpatient" in asked.read_text() and "/secret/path" in asked.read_text()
    assert "Synthetic data" not in asked.read_text()


def test_names_and_labels_are_escaped(tmp_path):
    points = {
        m: Points(p.vectors, ["<script>x</script>"] * 24, p.patients, p.concepts, p.paths) for m, p in fake(1.0).items()
    }
    text = write_report(tmp_path, ReportContent([], [], points, thumbnail, ["<b>"], name="<img src=x>")).read_text()
    Page(text)
    assert "<script" not in text and "<img src=x" not in text and "&lt;b&gt;" in text


def test_a_run_with_nothing_to_show_still_has_a_page(tmp_path):
    Page(write_report(tmp_path, ReportContent([], [], {}, thumbnail)).read_text())
    one = {"xray": Points(unit(np.eye(4)))}
    Page(write_report(tmp_path, ReportContent([], [], one, thumbnail)).read_text())


def test_pictures_lose_their_metadata_and_size():
    image = Image.new("RGB", (900, 300))
    image.info["comment"] = b"name of a patient"
    data = base64.b64decode(gallery.picture_uri(image).split(",")[1])
    assert b"patient" not in data and Image.open(io.BytesIO(data)).size == (168, 56)


def test_gallery_hits_are_the_nearest_and_judged_right():
    points = fake(3.0)
    queries = gallery.search(points, per_modality=2, hits=3, seed=1)
    assert len(queries) == 6
    for query in queries:
        for other, hits in query.hits.items():
            scores = points[other].vectors @ points[query.modality].vectors[query.index]
            assert [hit.index for hit in hits] == np.argsort(-scores)[:3].tolist()
            for hit in hits:
                same = points[other].patients[hit.index] == points[query.modality].patients[query.index]
                alike = hit.index % 3 == query.index % 3
                assert hit.verdict == ("patient" if same else "concept" if alike else "different")
        assert query.chance == pytest.approx(1 / 3)
    right, chance, shown = gallery.share_right(queries)
    assert right > chance and shown == 36


def test_files_are_compared_only_by_what_both_modalities_know():
    a = Points(unit(np.eye(3)), patients=["p1", "p2", ""], concepts=[{"normality": "normal"}, {"size": "big"}, {}])
    both = {"normality": "normal", "size": "small"}
    b = Points(unit(np.eye(2, 3)), patients=["p1", "p9"], concepts=[both, {"normality": "abnormal"}])
    same, known = same_patient(a, b)
    assert same.tolist() == [[True, False], [False, False], [False, False]]
    assert known.tolist() == [[True, True], [True, True], [False, False]]
    same, known = same_concept(a, b)
    assert same.tolist() == [[True, False], [False, False], [False, False]]
    assert known.tolist() == [[True, True], [True, False], [False, False]]
    strangers = Points(b.vectors, patients=["p7", "p9"])
    assert not same_patient(a, strangers)[1].any() and not same_concept(a, strangers)[1].any()


def test_hits_that_cannot_be_judged_count_neither_way():
    a = Points(unit(np.ones((2, 3))), concepts=[{"normality": "normal"}, {"normality": "abnormal"}])
    b = Points(unit(np.ones((2, 3))), concepts=[{"normality": "normal"}, {"normality": "abnormal"}])
    c = Points(unit(np.ones((2, 3))), concepts=[{"size": "big"}, {"size": "small"}])
    queries = gallery.search({"xray": a, "ecg": b, "ct": c}, per_modality=2, hits=2)
    assert {query.modality for query in queries} == {"xray", "ecg"}  # nothing can be right for a ct
    assert gallery.share_right(queries) == (0.5, 0.5, 8)
    assert {hit.verdict for query in queries for hit in query.hits["ct"]} == {"unknown"}


def test_similarity_equals_a_loop():
    points = fake(1.0)
    data = plots.similarity(points, "concept", resamples=20)
    a, b = points["xray"], points["xray"]
    gains = []
    for i in range(24):
        near = [a.vectors[i] @ b.vectors[j] for j in range(24) if j != i and j % 3 == i % 3]
        far = [a.vectors[i] @ b.vectors[j] for j in range(24) if j % 3 != i % 3]
        gains.append(np.mean(near) - np.mean(far))
    assert data.gain["xray", "xray"].value == pytest.approx(np.mean(gains))
    by_patient = plots.similarity(points, resamples=20)
    assert by_patient.match == "patient" and np.isnan(by_patient.matched[0, 0]) and ("xray", "ecg") in by_patient.gain


def test_losses_are_distinguished_from_the_rest():
    entry = {
        "step": 3,
        "stage": "align",
        "lr": 0.1,
        "lr/xray": 0.2,
        "clip/ct": 1.5,
        "loss": 2,
        "bad": float("nan"),
        "grad_norm": 3.0,
    }
    assert plots.losses(entry) == {"clip/ct": 1.5, "loss": 2.0}
    assert plots.losses({"step": 1, "losses": {"mse": 0.5}}) == {"mse": 0.5}
    np.testing.assert_allclose(plots.smooth(np.array([1.0, 2, 3, 4]), 3), [1.5, 2, 3, 3.5])


def test_lists_of_another_length_are_refused():
    with pytest.raises(ConfigError, match="2 labels for 3"):
        Points(np.eye(3), ["a", "b"])


def test_colours_are_stable_and_apart():
    names = ["xray", "sonar", "smell"]
    assert all(re.fullmatch("#[0-9a-fA-F]{6}", plots.color(name)) for name in names)
    assert len({plots.color(name) for name in names}) == 3 and plots.color("sonar") == plots.color("sonar")


@pytest.mark.parametrize("width", [390, 1280])
def test_page_renders(page, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium installed: the page is parsed but not rendered")
    shot = tmp_path / "shot.png"
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/p",
    ]
    command += [f"--window-size={width},1600", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    image = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    banner = (image == (255, 244, 214)).all(-1).mean()  # its colour comes from the style sheet
    ink = (image.sum(-1) < 384).mean()
    assert len(image) >= 1400 and banner > 0.02 and 0.01 < ink < 0.5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [3, 60])
def test_equal_points_have_a_map(count):
    """Their t-SNE would end the process."""
    place, method = plots.project(np.ones((count, 12), np.float32))
    assert place.shape == (count, 2) and not place.any() and method == "PCA"
