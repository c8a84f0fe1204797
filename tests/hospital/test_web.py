"""From a real archive to the page: sent by C-STORE while the service runs, found by text and by an X-ray, no names."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hospital.orthanc import Orthanc
from hospital.planted import Names
from hospital.running import EVERY, Command, leaks, until

pytestmark = pytest.mark.whole

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("pynetdicom", reason="needs the extra `hospital`")
pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

SIZE = {"width": 1280, "height": 900}


@pytest.fixture
def heard(browser: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page, and every text of the service's answers to it."""
    context = browser.new_context(viewport=SIZE, locale="en-GB")
    page, texts = context.new_page(), []
    page.set_default_timeout(30_000)

    def keep(answer: Any) -> None:
        if "/api/" in answer.url and "json" in answer.headers.get("content-type", ""):
            texts.append(answer.text())

    page.on("response", keep)
    page.on("pageerror", lambda error: texts.append(f"FAULT {error}"))
    yield page, texts
    context.close()


def kinds(page: Any, request: Callable[[], None]) -> list[dict[str, Any]]:
    """The hits that the page requests and shows."""
    with page.expect_response("**/api/search") as caught:
        request()
    hits = caught.value.json()["hits"]
    page.wait_for_function("n => document.querySelectorAll('li.card').length === n", arg=len(hits))
    return hits


def test_an_archive_is_found_on_the_page(
    objects: tuple[list[Path], Names],
    orthanc: Callable[..., Orthanc],
    space_folder: Path,
    environment: dict[str, str],
    tmp_path: Path,
    heard: tuple[Any, list[str]],
) -> None:
    files, names = objects
    page, answers = heard
    server, index, kept = orthanc(), tmp_path / "index", tmp_path / "kept"
    common = ["--space", str(space_folder), "--index", str(index), "--port", "0"]
    listen = Command(tmp_path / "listen.txt", environment, "listen", *common, "--keep-files", str(kept),
                     "--quiet", "1")  # fmt: skip
    serve = None
    try:
        server.knows("M3BIND", listen.port())
        serve = Command(tmp_path / "serve.txt", environment, "serve", *common)  # the index is still empty
        url = f"http://127.0.0.1:{serve.port()}/"
        server.send("M3BIND", server.store(files))

        def counted() -> dict[str, int]:
            with urllib.request.urlopen(f"{url}api/about", timeout=30) as answer:
                about = json.loads(answer.read())
            return {one["name"]: one["items"] for one in about["modalities"] if one["items"]}

        until(lambda: counted() == EVERY)  # the service sees what the listener wrote, without a restart
        page.goto(url)
        page.wait_for_selector(".ready")
        page.fill("#q", "CT of the chest")
        hits = kinds(page, lambda: page.press("#q", "Enter"))
        assert {hit["modality"] for hit in hits} == set(EVERY) and all(hit["picture"] for hit in hits)
        page.wait_for_function(
            "() => [...document.querySelectorAll('li.card img')].filter((one) => one.naturalWidth > 20).length === 4"
        )
        page.screenshot(path=tmp_path / "text.png")
        page.goto(url)
        page.wait_for_selector(".ready")
        radiograph = files[-3]  # as it was sent, with names in its file name as well
        hits = kinds(page, lambda: page.set_input_files("#files", radiograph))
        assert hits[0]["modality"] == "xray" and hits[0]["score"] > 0.999  # itself, de-identified
        assert {hit["modality"] for hit in hits} == set(EVERY)
        page.screenshot(path=tmp_path / "xray.png")
        shown = page.inner_text("body") + page.content()
    finally:
        said = listen.end() + (serve.end() if serve else "")
    assert listen.process.returncode == 0 and serve.process.returncode == 0, said
    assert not [text for text in answers if text.startswith("FAULT")] and len(answers) > 3
    assert names.found_in("".join(answers) + said + shown) == []
    logs = [tmp_path / "listen.txt", tmp_path / "serve.txt"]
    assert leaks(names, index, kept, tmp_path / "index.spool", *logs) == {}
