"""Takes the screenshots of the web page for the docs, docs/pictures/page/, from a running service of virtual patients.

    m3bind serve-demo --port 8123
    python tools/make_screenshots.py http://127.0.0.1:8123

Every state is an address of the page; failures are simulated by intercepting requests. Needs Chromium and playwright.

* `SHOTS`: the screenshots; `SHEETS`: contact sheets of all desktop states, on a phone and in dark mode.
"""

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parent.parent / "docs" / "pictures" / "page"
SIZES = {"desktop": (1280, 900), "phone": (390, 844), "dark": (1280, 900)}
ASKED = "#/search?text=atrial+fibrillation+with+heart+failure"
SUM = "#/search?item=XRAY&text=0.5%7Eheart+failure&text=-0.5%7Epneumonia&modality=ecg&modality=xray"
LABELS = "&".join(f"option={label}" for label in ("healthy", "pneumonia", "lung+adenocarcinoma"))
Answer = Callable[[Any], None]


@dataclass(frozen=True)
class Shot:
    """One screenshot: its name, the device, the address behind #, and the intercepted answers."""

    name: str
    device: str
    address: str
    answers: dict[str, Answer] | None = None


def refuse(status: int, code: str, message: str) -> Answer:
    """An error answer of the service."""
    body = json.dumps({"error": {"code": code, "message": message}})
    return lambda route: route.fulfill(status=status, content_type="application/json", body=body)


SHOTS = (
    Shot("start", "desktop", ""),
    Shot("search", "desktop", ASKED),
    Shot("grouped", "desktop", f"{ASKED}&grouped=1&k=4"),
    Shot("sum", "desktop", SUM),
    *(Shot(kind, "desktop", f"{ASKED}&open={kind.upper()}") for kind in ("xray", "ct", "retina", "ecg", "pathology")),
    Shot("map", "desktop", ASKED.replace("search", "map")),
    Shot("zero-shot", "desktop", f"#/zero-shot?source=XRAY&{LABELS}"),
    Shot("abstain", "desktop", f"#/zero-shot?source=XRAY&{LABELS}&threshold=0.9"),
    Shot("nothing-found", "desktop", f"{ASKED}&patient=absent"),
    Shot("loading", "desktop", ASKED, {"**/api/search": lambda route: None}),
    Shot("error", "desktop", ASKED, {"**/api/search": refuse(503, "busy", "Too many questions at once; try again.")}),
    Shot("gone", "desktop", ASKED, {"**/api/search": lambda route: route.abort()}),
    Shot("login", "desktop", "", {"**/api/about": refuse(401, "token", "This service needs a token.")}),
    Shot("search-phone", "phone", ASKED),
    Shot("grouped-phone", "phone", f"{ASKED}&grouped=1&k=4"),
    Shot("ecg-phone", "phone", f"{ASKED}&open=ECG"),
    Shot("map-phone", "phone", ASKED.replace("search", "map")),
    Shot("zero-shot-phone", "phone", f"#/zero-shot?source=XRAY&{LABELS}"),
    Shot("search-dark", "dark", ASKED),
    Shot("grouped-dark", "dark", f"{ASKED}&grouped=1&k=4"),
    Shot("ct-dark", "dark", f"{ASKED}&open=CT"),
    Shot("zero-shot-dark", "dark", f"#/zero-shot?source=XRAY&{LABELS}"),
)


SHEETS = {"phone": ("states-phone", 8, 170), "dark": ("states-dark", 4, 400)}  # file, images per row, their width


def main(service: str, only: list[str]) -> None:
    """Take all screenshots, or those named."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        items = found(browser, service)
        for shot in SHOTS:
            if not only or shot.name in only:
                (FOLDER / f"{shot.name}.jpg").write_bytes(taken(browser, service, shot, items))
        states = [shot for shot in SHOTS if shot.device == "desktop"]
        for device, (name, columns, width) in SHEETS.items():
            if not only or name in only:
                pictures = [taken(browser, service, replace(shot, device=device), items) for shot in states]
                sheet(pictures, columns, width).save(FOLDER / f"{name}.jpg", quality=80)
        browser.close()


def sheet(pictures: list[bytes], columns: int, width: int) -> Image.Image:
    """Images of one shape side by side, each `width` wide."""
    gap, parts = 12, [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    height = round(width * parts[0].height / parts[0].width)
    rows = -(-len(parts) // columns)
    made = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "#808890")
    for at, part in enumerate(parts):
        place = gap + at % columns * (width + gap), gap + at // columns * (height + gap)
        made.paste(part.resize((width, height), Image.Resampling.LANCZOS), place)
    return made


def found(browser: Any, service: str) -> dict[str, str]:
    """An item of each modality that has atrial fibrillation."""
    page = browser.new_page()
    while page.request.get(f"{service}/api/map").json()["state"] != "ready":
        page.wait_for_timeout(1000)
    question = {"parts": [{"kind": "text", "value": "atrial fibrillation"}], "k": 1, "per_modality": True}
    hits = page.request.post(f"{service}/api/search", data=question).json()["hits"]
    page.close()
    return {hit["modality"].upper(): hit["id"] for hit in hits}


def taken(browser: Any, service: str, shot: Shot, items: dict[str, str]) -> bytes:
    """One screenshot (JPEG), taken when no request is pending."""
    width, height = SIZES[shot.device]
    scheme = "dark" if shot.device == "dark" else "light"
    touch = {"is_mobile": True, "has_touch": True} if shot.device == "phone" else {}
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme, locale="en-GB", **touch)
    page = context.new_page()
    for pattern, answer in (shot.answers or {}).items():
        page.route(pattern, answer)
    address = shot.address
    for modality, name in items.items():
        address = address.replace(f"={modality}", f"={name}")
    page.goto(f"{service}/{address}")
    if not shot.answers:
        page.wait_for_load_state("networkidle", timeout=120_000)
    page.wait_for_timeout(2000)
    picture: bytes = page.screenshot(type="jpeg", quality=80)
    context.close()
    return picture


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2:])
