"""The page without results: loading, refused, unavailable, no hits, locked."""

import json
import re

import pytest

from serve.web.clinic import Server
from serve.web.test_search import ask, cards

pytestmark = pytest.mark.whole

REFUSED = ("Failed to load resource",)
BUSY = {"error": {"code": "busy", "message": "Too many requests are waiting; try again in a few seconds."}}


def test_loading_shows_shapes_and_is_announced(open_page):
    page = open_page()
    page.wait_for_selector(".ready")
    held = []
    page.route("**/api/search", lambda route: held.append(route))
    page.fill("#q", "normal")
    page.press("#q", "Enter")
    page.wait_for_selector(".card.shape", state="attached")
    assert page.get_attribute("#results", "aria-busy") == "true"
    held[0].continue_()
    assert len(cards(page)) == 12
    assert page.get_attribute("#results", "aria-busy") == "false" and page.locator(".card.shape").count() == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_gives_its_reason_and_a_retry_works(open_page, status):
    page = open_page(expected=REFUSED)
    page.wait_for_selector(".ready")
    page.route("**/api/search", lambda route: route.fulfill(status=status, json=BUSY))
    page.fill("#q", "normal")
    page.press("#q", "Enter")
    page.wait_for_selector("#results [role=alert]")
    assert BUSY["error"]["message"] in page.inner_text("#results")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    assert len(cards(page)) == 12


def test_a_refusal_without_text_is_understood(open_page):
    page = open_page(expected=REFUSED)
    page.wait_for_selector(".ready")
    page.route("**/api/search", lambda route: route.fulfill(status=502, body="<html>proxy</html>"))
    page.fill("#q", "normal")
    page.press("#q", "Enter")
    page.wait_for_selector("#results [role=alert]")
    assert "status 502" in page.inner_text("#results")


def test_the_server_goes_and_comes_back(open_page):
    page = open_page(expected=REFUSED)
    page.wait_for_selector(".ready")
    page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    page.fill("#q", "normal")
    page.press("#q", "Enter")
    page.wait_for_selector("text=The server does not answer")
    assert "m3bind serve" in page.inner_text("#results")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    assert len(cards(page)) == 12


def test_a_page_that_cannot_start_reports_it_and_starts_later(open_page, served):
    page = open_page(expected=REFUSED)
    page.route("**/api/about", lambda route: route.fulfill(status=503, json=BUSY))
    page.reload()
    page.wait_for_selector("#start [role=alert]")
    page.unroute_all()
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".welcome")


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(open_page):
    page = open_page("#/search?text=normal")
    cards(page, 12)
    late = []

    def hold(route):
        if "late" in route.request.post_data:
            late.append(route)
        else:
            route.continue_()

    page.route("**/api/search", hold)
    page.fill("#q", "late")
    page.press("#q", "Enter")
    page.get_by_role("button", name="Remove late").click()
    ids = cards(page, 12)
    for route in late:
        route.fulfill(json={"hits": [], "counts": {}, "seconds": 0})
    page.wait_for_timeout(200)
    assert cards(page, 12) == ids


def test_no_hits_offer_to_take_the_filters_off(open_page):
    page = open_page("#/search?text=normal&since=2031-01-01")
    page.wait_for_selector("text=No hits")
    assert "No item fits all filters" in page.inner_text("#results")
    page.get_by_role("button", name="Search without filters").click()
    assert len(cards(page)) == 12 and "since" not in page.url


def test_parts_that_cancel_out_are_explained(open_page):
    page = open_page("#/search?text=normal&text=-1~normal", expected=REFUSED)
    page.wait_for_selector("#results [role=alert]")
    assert "weights" in page.inner_text("#results")


def test_files_that_cannot_be_read_stay_with_their_reason(open_page, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture at all" * 9)
    page = open_page(expected=REFUSED)
    page.wait_for_selector(".ready")
    page.set_input_files("#files", path)
    page.wait_for_selector(".sending.failed")
    assert "cannot be read" in page.inner_text(".sending.failed") and "broken" not in page.inner_text("#ask")
    with page.expect_response("**/api/uploads") as caught:
        page.get_by_label("Read it as").select_option("retina")
    assert caught.value.status == 422
    page.wait_for_selector(".sending.failed select")
    page.get_by_role("button", name="Discard").click()
    assert page.locator(".sending").count() == 0


def test_a_person_may_know_better_what_a_file_is(open_page, clinic):
    page = open_page(expected=REFUSED)
    page.wait_for_selector(".ready")
    page.route("**/api/uploads", lambda route: route.fulfill(status=422, json=BUSY))
    page.set_input_files("#files", clinic[2]["retina"][0])
    page.wait_for_selector(".sending.failed")
    page.unroute_all()
    page.get_by_label("Read it as").select_option("pathology")
    page.wait_for_selector(".chip img")
    assert page.locator(".chip-name").inner_text() == "Histology tile (your file)"


def test_several_files_can_be_sent_one_by_one(open_page, clinic, tmp_path):
    for number, path in enumerate(clinic[2]["xray"][:2]):
        (tmp_path / f"{number}").write_bytes(path.read_bytes())
    page = open_page(expected=REFUSED)
    page.wait_for_selector(".ready")
    page.route("**/api/uploads", lambda route: route.fulfill(status=422, json=BUSY))
    page.set_input_files("#files", [tmp_path / "0", tmp_path / "1"])
    page.wait_for_selector(".sending.failed")
    assert "2 files" in page.inner_text(".sending")
    page.unroute_all()
    page.get_by_role("button", name="One by one").click()
    page.wait_for_function("() => document.querySelectorAll('.chip, .sending.failed').length === 2")


def test_files_that_are_too_large_are_not_sent(open_page, clinic):
    page = open_page()

    def small(route):
        about = route.fetch().json()
        about["limits"]["body_bytes"] = 100
        route.fulfill(json=about)

    page.route("**/api/about", small)
    page.route("**/api/uploads", lambda route: pytest.fail("it was sent"))
    page.reload()
    page.wait_for_selector(".ready")
    page.set_input_files("#files", clinic[2]["xray"][0])
    page.wait_for_selector(".sending.failed")
    assert "at most" in page.inner_text(".sending.failed")


def test_a_file_that_is_no_longer_stored_can_be_left_out(open_page, clinic):
    page = open_page(expected=REFUSED)
    ask(page, "normal")
    page.set_input_files("#files", clinic[2]["xray"][0])
    page.wait_for_selector(".chip img")
    gone = {"error": {"code": "no_upload", "message": "This upload is no longer stored; upload the file again."}}

    def forget(route):
        kept = "upload" not in route.request.post_data
        route.continue_() if kept else route.fulfill(status=404, json=gone)

    page.route("**/api/search", forget)
    page.reload()
    page.wait_for_selector("text=upload the file again")
    page.get_by_role("button", name="Remove the files").click()
    assert len(cards(page)) == 12 and page.locator(".chip").count() == 1


def test_an_empty_index_explains_how_to_fill_it(open_page):
    page = open_page()

    def nothing(route):
        about = route.fetch().json() | {"items": 0, "labels": {}}
        about["modalities"] = [kind | {"items": 0} for kind in about["modalities"]]
        route.fulfill(json=about)

    page.route("**/api/about", nothing)
    page.reload()
    page.wait_for_selector("text=The index is empty")
    assert "m3bind encode" in page.inner_text("#results")


def test_synthetic_data_and_research_use_are_stated(open_page):
    page = open_page()
    page.wait_for_selector(".ready")
    assert re.search("research use only", page.inner_text(".notice"), re.I)
    assert page.locator("#synthetic").is_hidden()
    page.route("**/api/about", lambda route: route.fulfill(json=route.fetch().json() | {"synthetic": True}))
    page.reload()
    page.wait_for_selector("#synthetic:not([hidden])")


def test_a_token_is_asked_for_once(open_page, clinic):
    from m3bind.serve.app import make_app

    token = "a-long-enough-token"
    with Server(make_app(clinic[0], clinic[1], token=token)) as locked:
        page = open_page(expected=(*REFUSED, "foreign"))
        page.goto(f"{locked.url}#/search?text=normal")
        page.wait_for_selector("#login[open]")
        page.keyboard.press("Escape")
        assert page.locator("#login[open]").count() == 1
        page.fill("#token", "something else")
        page.press("#token", "Enter")
        page.wait_for_selector("#login-error:not(:empty)")
        page.fill("#token", token)
        page.press("#token", "Enter")
        assert len(cards(page)) == 12
        page.wait_for_function("() => [...document.querySelectorAll('.card img')].some((i) => i.naturalWidth > 0)")
        assert page.evaluate("document.cookie") == "" and token not in page.content()
        page.reload()
        assert len(cards(page)) == 12 and page.locator("#login[open]").count() == 0


def test_an_index_without_pictures_is_still_searched(open_page):
    page = open_page()

    def bare(route):
        found = route.fetch().json()
        for hit in found["hits"]:
            hit["picture"] = False
        route.fulfill(body=json.dumps(found))

    page.route("**/api/search", bare)
    page.fill("#q", "normal")
    page.press("#q", "Enter")
    assert len(cards(page)) == 12
    assert page.locator(".shot.missing").count() == 12 and page.locator("#results img").count() == 0
