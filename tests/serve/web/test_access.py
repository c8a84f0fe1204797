"""Accessibility: no serious fault by axe-core, keyboard only, narrow and dark screens, reduced motion."""

import re

import pytest

from serve.web.test_search import cards

pytestmark = pytest.mark.whole

GRAVE = ("serious", "critical")
NARROW = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
FITS = "document.documentElement.scrollWidth <= innerWidth"
STATES = {
    "first visit": ("", ".welcome"),
    "hits": ("#/search?text=pneumonia&item=-0.5~ct-01&modality=xray&label=normal&since=2018-01-01", "li.card"),
    "kind by kind": ("#/search?text=pneumonia&grouped=1&k=6", "h3.group"),
    "no hits": ("#/search?text=normal&since=2031-01-01", ".state"),
    "an error": ("#/search?text=normal&text=-1~normal", "[role=alert].state"),
    "a picture": ("#/search?text=pneumonia&open=xray-00", "#detail .phrases"),
    "a volume": ("#/search?text=pneumonia&open=ct-01", "#detail .phrases"),
    "a trace": ("#/search?text=pneumonia&open=ecg-02", "#detail .phrases"),
    "an item that is gone": ("#/search?open=nobody", "#detail [role=alert]"),
    "the map": ("#/map?text=pneumonia", ".map-frame canvas"),
    "labels to weigh": ("#/zero-shot", ".state"),
    "labels weighed": ("#/zero-shot?source=ct-01&option=normal&option=abnormal&threshold=0", ".shares"),
    "no answer": ("#/zero-shot?source=ct-01&option=normal&option=abnormal&threshold=1", ".verdict.abstain"),
}


def settle(page, selector):
    page.wait_for_selector(selector, timeout=60_000)
    page.wait_for_load_state("networkidle")


def faults(page):
    """Serious and critical faults by axe-core, with the elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [
        (fault["id"], [node["html"][:160] for node in fault["nodes"]]) for fault in found if fault["impact"] in GRAVE
    ]


@pytest.mark.parametrize("name", STATES)
def test_no_serious_fault_and_nothing_is_wider_than_the_screen(open_page, name):
    address, selector = STATES[name]
    page = open_page(address, expected=("Failed to load",), reduced_motion="reduce")
    settle(page, selector)
    assert faults(page) == []
    assert page.evaluate(FITS)
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(NARROW["viewport"])
    page.wait_for_timeout(100)
    assert faults(page) == []
    assert page.evaluate(FITS)


@pytest.mark.parametrize("name", ["keys", "login", "filters", "table"])
def test_no_serious_fault_in_what_opens(open_page, name):
    page = open_page("#/map" if name == "table" else "", **(NARROW if name == "filters" else {}))
    page.wait_for_selector(".ready")
    if name == "keys":
        page.keyboard.press("?")
        page.wait_for_selector("#keys[open]")
    elif name == "login":
        page.evaluate("document.getElementById('login').showModal()")
    elif name == "filters":
        page.click("#filters summary")
        page.wait_for_selector("#targets button")
    else:
        settle(page, ".map-frame canvas")
        page.get_by_text("The points as a table").click()
        page.wait_for_selector("tbody tr")
    assert faults(page) == []
    assert page.evaluate(FITS)


def focus(page):
    return page.evaluate("(document.activeElement.id || document.activeElement.className).toString()")


def test_a_whole_visit_by_keys_alone(open_page):
    """Search, move through hits, open one, scroll a volume, close, search again, classify; without a mouse."""
    page = open_page()
    page.wait_for_selector(".ready")
    key = page.keyboard.press
    key("/")
    assert focus(page) == "q"
    page.keyboard.type("pneumonia")
    key("Enter")
    ids = cards(page, 12)
    key("ArrowDown")
    here = "document.activeElement.closest('.card')?.dataset.id"
    assert page.evaluate(here) == ids[0]
    key("ArrowRight")
    key("ArrowRight")
    assert page.evaluate(here) == ids[2]
    columns = page.evaluate(
        "() => { const c = [...document.querySelectorAll('.card')]; const top = c[0].offsetTop;"
        " return c.filter((card) => card.offsetTop === top).length; }"
    )
    key("ArrowDown")
    assert page.evaluate(here) == ids[2 + columns]
    key("ArrowUp")
    key("Home")
    assert page.evaluate(here) == ids[0]
    key("End")
    assert page.evaluate(here) == ids[-1]
    key("Home")
    key("Enter")
    page.wait_for_selector("#detail .phrases")
    assert "detail-close" in focus(page)
    for _ in range(4):
        key("Tab")
        assert page.evaluate(
            "Boolean(document.activeElement.closest('dialog')) || document.activeElement === document.body"
        )
    key("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert page.evaluate(here) == ids[0]
    key("Tab")
    assert page.evaluate("document.activeElement.innerText") == "More like this"
    key("Enter")
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 2")
    page.wait_for_function("() => document.activeElement.id === 'results-title'")
    for _ in range(60):
        if page.evaluate("document.activeElement.getAttribute('role')") == "tab":
            break
        key("Shift+Tab")
    assert focus(page) == "tab-search"
    key("ArrowRight")
    key("ArrowRight")
    assert focus(page) == "tab-zero" and page.is_visible("#zero")
    key("?")
    page.wait_for_selector("#keys[open]")
    key("Escape")
    page.wait_for_selector("#keys", state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_can_be_seen_everywhere(open_page, scheme):
    page = open_page("#/search?text=normal&k=6", color_scheme=scheme)
    cards(page, 6)
    page.keyboard.press("Tab")
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, line = page.evaluate(
            """() => {
              const e = document.activeElement; const box = e.id === 'q' ? e.closest('.ask-box') : e;
              const style = getComputedStyle(box);
              const name = e === document.body ? 'BODY' : e.id || e.className || e.tagName;
              return [name, parseFloat(style.outlineWidth) >= 2 && style.outlineStyle !== 'none'];
            }"""
        )
        if name != "BODY":
            assert line, f"{name} has no visible focus"
            seen.add(name)
    assert {"q", "submit", "card-open", "k", "grouped"} <= seen


def luminance(color):
    values = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    parts = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_colours_of_the_system(open_page, scheme, dark):
    page = open_page("#/search?text=normal", color_scheme=scheme)
    cards(page)
    for selector in ("body", ".ask-box", "li.card", "#q"):
        color = page.eval_on_selector(selector, "(e) => getComputedStyle(e).color")
        assert (luminance(color) > 0.4) is dark, selector
    background = page.eval_on_selector("body", "(e) => getComputedStyle(e).backgroundColor")
    assert (luminance(background) < 0.1) is dark


def test_little_motion_where_that_is_wished(open_page):
    page = open_page(reduced_motion="reduce")
    page.wait_for_selector(".ready")
    moving = page.evaluate(
        "() => { const s = document.createElement('span'); s.className = 'spinner'; document.body.append(s);"
        " return getComputedStyle(s).animationDuration; }"
    )
    assert moving == "0s"


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(open_page):
    page = open_page("#/search?text=normal")
    cards(page)
    policy = page.evaluate("fetch('/').then((answer) => answer.headers.get('content-security-policy'))")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    source = page.evaluate("fetch('/').then((answer) => answer.text())")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://", source)
