"""The map: points, the query among them, mouse and keyboard, the table."""

import json

import pytest

pytestmark = pytest.mark.whole

DRAWN = """() => {
  const canvas = document.querySelector('.map-frame canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let n = 0;
  for (let i = 3; i < data.length; i += 4) if (data[i] > 60) n += 1;
  return n;
}"""
POINTS = {
    "id": ["xray-00", "ct-01", "ecg-02", "retina-03"],
    "modality": ["xray", "ct", "ecg", "retina"],
    "x": [0.0, 10.0, 0.0, 10.0],
    "y": [0.0, 0.0, 10.0, 10.0],
}


def drawn(page):
    """The number of painted pixels, once it no longer changes."""
    last, now = -1, page.evaluate(DRAWN)
    while now != last:
        page.wait_for_timeout(150)
        last, now = now, page.evaluate(DRAWN)
    return now


@pytest.fixture
def corners(open_page, served):
    """Four points in the corners, and a query in the middle."""

    def run(place=(5.0, 5.0)):
        page = open_page()
        page.route(
            "**/api/map", lambda route: route.fulfill(json={"state": "ready", "method": "hand", "points": POINTS})
        )
        page.route("**/api/map/place", lambda route: route.fulfill(json={"x": place[0], "y": place[1]}))
        page.goto("about:blank")
        page.goto(f"{served}#/map?text=pneumonia")
        page.wait_for_function("() => document.getElementById('map-note')?.textContent.includes('query')")
        page.wait_for_function("() => document.getElementById('live').textContent")  # hits were found
        return page

    return run


def at(page, x, y):
    """The position of a corner on the screen, from fractions of the frame's free part."""
    box = page.locator(".map-frame").bounding_box()
    side = {"x": box["width"] - 68, "y": box["height"] - 68}
    unit = min(side["x"], 1.8 * min(side.values())), min(side["y"], 1.8 * min(side.values()))
    return (box["x"] + box["width"] / 2 + (x - 0.5) * unit[0], box["y"] + box["height"] / 2 + (0.5 - y) * unit[1])


def test_the_real_map_shows_every_item_and_the_question(open_page):
    page = open_page("#/map?text=pneumonia")
    page.wait_for_selector(".map-frame canvas", timeout=60_000)
    page.wait_for_function("() => document.getElementById('map-note').textContent.includes('your query')")
    assert page.inner_text("#map-note") == "★ your query · ◯ 12 hits"
    assert page.locator(".legend .target").count() == 5
    page.wait_for_function(DRAWN)
    page.get_by_text("The points as a table").click()
    assert page.locator("#map-body tbody tr").count() == 25
    page.get_by_role("button", name="Next", exact=True).click()
    page.wait_for_function("() => document.querySelectorAll('#map-body tbody tr').length === 15")
    page.locator("#map-body tbody button").first.click()
    page.wait_for_selector("#detail .phrases")


def test_pointing_shows_and_clicking_opens(corners):
    page = corners()
    page.mouse.move(*at(page, 1, 0))
    page.wait_for_selector(".map-tip:not([hidden])")
    assert "CT" in page.inner_text(".map-tip") and "normal" in page.inner_text(".map-tip")
    page.mouse.click(*at(page, 1, 0))
    page.wait_for_selector("#detail .stage")
    assert "open=ct-01" in page.url
    page.keyboard.press("Escape")
    page.mouse.move(*at(page, 0.5, 0.8))
    page.wait_for_selector(".map-tip", state="hidden")


def test_zooming_keeps_what_is_under_the_pointer(corners):
    page = corners()
    x, y = at(page, 0, 1)
    page.mouse.move(x, y)
    page.wait_for_selector(".map-tip:not([hidden])")
    before = drawn(page)
    page.mouse.wheel(0, -800)
    page.wait_for_function(f"(n) => ({DRAWN})() !== n", arg=before)
    page.mouse.move(x + 1, y)
    assert "ECG" in page.inner_text(".map-tip")
    page.mouse.move(*at(page, 1, 0))
    page.wait_for_selector(".map-tip", state="hidden")  # that corner is far away now
    page.get_by_role("button", name="Whole map").click()
    page.mouse.move(at(page, 1, 0)[0] + 1, at(page, 1, 0)[1])
    page.wait_for_selector(".map-tip:not([hidden])")


def test_kinds_are_hidden_and_shown(corners):
    page = corners()
    everything = drawn(page)
    kind = page.get_by_role("button", name="12-lead ECG 1", exact=True)
    kind.click()
    assert kind.get_attribute("aria-pressed") == "false"
    assert drawn(page) < everything
    page.mouse.move(*at(page, 0, 1))
    assert page.locator(".map-tip").is_hidden()
    kind.click()
    assert drawn(page) == everything


def test_keys_walk_from_point_to_point(corners):
    page = corners(place=(2.0, 2.0))
    page.focus(".map-frame")
    titles = [page.inner_text("#live")]
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.keyboard.press(key)
        page.wait_for_function("(n) => document.getElementById('live').textContent !== n", arg=titles[-1])
        titles.append(page.inner_text("#live"))
    kinds = [title.split(",")[0] for title in titles[1:]]
    assert kinds == ["Chest X-ray", "CT", "Fundus photograph", "12-lead ECG"]
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail .paper")


def test_a_map_that_is_being_computed_appears_by_itself(open_page, served):
    page = open_page()
    answers = iter(["computing", "ready"])

    def answer(route):
        state = next(answers)
        empty = {name: [] for name in POINTS}
        route.fulfill(body=json.dumps({"state": state, "method": "", "points": POINTS if state == "ready" else empty}))

    page.route("**/api/map", answer)
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector("text=The map is being computed")
    page.wait_for_selector(".map-frame canvas")
