"""Queries: texts, files, their combination, filters, and the address that stores a query."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3bind.index.base import Where
from m3bind.search.query import Query
from m3bind.search.searcher import Searcher
from serve.web.clinic import LABELS

pytestmark = pytest.mark.whole

TITLES = {"xray": "Chest X-ray", "ct": "CT", "ecg": "12-lead ECG", "retina": "Fundus photograph",
          "pathology": "Histology tile"}  # fmt: skip


def ask(page, text, key="Enter"):
    """Type a text; returns the page's request and the answer."""
    page.fill("#q", text)
    with page.expect_response("**/api/search") as caught:
        page.press("#q", key)
    return exchanged(caught)


def exchanged(caught):
    return json.loads(caught.value.request.post_data), caught.value.json()


def cards(page, count=None):
    """The ids of the hits on the page."""
    page.wait_for_selector("li.card")
    if count is not None:
        page.wait_for_function("n => document.querySelectorAll('li.card').length === n", arg=count)
    return page.eval_on_selector_all("li.card", "cards => cards.map((card) => card.dataset.id)")


def sent_files(files, modality):
    """The files that a user would upload for one item."""
    path = files[modality][0]
    return [path, path.with_suffix(".dat")] if modality == "ecg" else [path]


def test_words_find_what_the_library_finds(open_page, clinic):
    space, index, _ = clinic
    page = open_page()
    asked, _ = ask(page, "pneumonia")
    assert asked["parts"] == [{"kind": "text", "value": "pneumonia", "weight": 1}]
    right = Searcher(space, index).search(Query.text("pneumonia"), 12)
    assert cards(page) == [hit.id for hit in right]
    first = page.inner_text("li.card >> nth=0")
    assert f"top {max(100 - right[0].percentile, 0.2):.1f}" in first and TITLES[right[0].modality] in first
    assert page.inner_text("#results-title") == "12 hits" and "12 hits" in page.inner_text("#live")
    assert page.title() == "Search – m3bind"


def test_an_axis_turns_the_query(open_page, clinic):
    space, index, _ = clinic
    page = open_page()
    ask(page, "pneumonia")
    page.fill("#along-0", "normal")
    page.press("#along-0", "Tab")  # one end alone changes nothing
    with page.expect_response("**/api/search") as caught:
        page.fill("#along-1", "abnormal")
        page.press("#along-1", "Enter")
    asked, _ = exchanged(caught)
    assert asked["along"] == ["normal", "abnormal"]
    right = Searcher(space, index).search(Query.text("pneumonia"), 12, along=("normal", "abnormal"))
    page.wait_for_function("id => document.querySelector('li.card')?.dataset.id === id", arg=right[0].id)
    assert cards(page) == [hit.id for hit in right]
    assert "either=normal" in page.url and "or=abnormal" in page.url


def test_a_first_visit_offers_labels_of_the_index(open_page):
    page = open_page()
    page.wait_for_selector(".welcome")
    offered = page.locator(".example").all_inner_texts()
    assert {"normal", "adenocarcinoma", "left bundle branch block"} <= {text.lower() for text in offered}
    with page.expect_response("**/api/search") as caught:
        page.get_by_role("button", name="left bundle branch block").click()
    assert exchanged(caught)[0]["parts"][0]["value"] == "left bundle branch block"


@pytest.mark.parametrize("modality", TITLES)
def test_a_file_of_each_kind_becomes_part_of_the_question(open_page, clinic, modality):
    page = open_page()
    page.wait_for_selector(".ready")
    with page.expect_response("**/api/search") as caught:
        page.set_input_files("#files", sent_files(clinic[2], modality))
    asked, answer = exchanged(caught)
    assert asked["parts"][0]["kind"] == "upload" and answer["hits"]
    assert page.locator(".chip-name").inner_text() == f"{TITLES[modality]} (your file)"
    assert page.is_visible("#unshared") and "u_" not in page.url


BRING = """async ([how, name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  if (how === "paste") document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
  else for (const type of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_files_can_be_dropped_and_pasted(open_page, clinic, how):
    import base64

    page = open_page()
    page.wait_for_selector(".ready")
    data = base64.b64encode(clinic[2]["xray"][1].read_bytes()).decode()
    page.evaluate(BRING, [how, "one.png", data])
    page.wait_for_selector(".chip img")
    assert cards(page)
    assert not page.evaluate("document.body.classList.contains('dropping')")


def test_parts_are_added_avoided_weighed_and_removed(open_page, clinic):
    page = open_page()
    ask(page, "pneumonia")
    ids = cards(page)
    with page.expect_response("**/api/search") as caught:
        page.get_by_role("button", name="More like hit 2", exact=True).click()
    assert exchanged(caught)[0]["parts"][1] == {"kind": "item", "value": ids[1], "weight": 1}
    page.wait_for_function("id => !document.querySelector(`li.card[data-id='${id}']`)", arg=ids[1])
    asked, _ = ask(page, "effusion", "Shift+Enter")
    assert [part["weight"] for part in asked["parts"]] == [1, 1, -0.5]
    assert page.locator(".chip.avoided").count() == 1
    with page.expect_response("**/api/search") as caught:
        page.locator(".chip select").nth(0).select_option("2")
    assert exchanged(caught)[0]["parts"][0]["weight"] == 2
    with page.expect_response("**/api/search") as caught:
        page.get_by_role("button", name=re.compile("^Avoided: effusion")).click()
    assert exchanged(caught)[0]["parts"][2]["weight"] == 0.5
    assert page.evaluate("document.activeElement.className") == "sign"  # the focus stays on what was pressed
    with page.expect_response("**/api/search") as caught:
        page.get_by_role("button", name="Remove effusion").click()
    assert len(exchanged(caught)[0]["parts"]) == 2
    space, index, _ = clinic
    right = Searcher(space, index).search(2 * Query.text("pneumonia") + Query.item(ids[1]), 12)
    page.wait_for_function("n => document.querySelectorAll('.chip').length === n", arg=2)
    assert cards(page, 12) == [hit.id for hit in right]
    page.click("#start-over")
    page.wait_for_selector(".welcome")
    assert page.locator(".chip").count() == 0 and page.evaluate("document.activeElement.id") == "q"


def test_negative_parts_need_a_positive_part(open_page):
    page = open_page()
    page.fill("#q", "effusion")
    page.press("#q", "Shift+Enter")
    assert "part to search for first" in page.inner_text("#ask-error")
    page.fill("#q", "")
    page.press("#q", "Enter")
    assert "Type a text" in page.inner_text("#ask-error")


def test_filters_hold_and_are_taken_off(open_page, clinic):
    page = open_page("#/search?text=pneumonia&k=100")
    cards(page, 40)
    page.get_by_role("button", name="12-lead ECG 8", exact=True).click()
    assert all(name.startswith("ecg") for name in cards(page, 8))
    page.fill("#label", "atrial fibrillation")
    page.press("#label", "Enter")
    assert {int(name[-2:]) % 2 for name in cards(page, 4)} == {0}
    page.fill("#since", "2022-01-01")
    page.locator("#since").blur()
    assert sorted(cards(page, 2)) == ["ecg-04", "ecg-06"]
    page.fill("#patient", "p6")
    page.press("#patient", "Enter")
    assert cards(page, 1) == ["ecg-06"]
    assert "(4)" in page.inner_text("#filter-count")
    page.get_by_role("button", name="Remove the filter p6").click()
    cards(page, 2)
    page.click("#no-filters")
    cards(page, 40)
    space, index, _ = clinic
    right = Searcher(space, index).search(Query.text("pneumonia"), 100, Where(until="2019-12-31"))
    page.fill("#until", "2019-12-31")
    page.locator("#until").blur()
    assert cards(page, len(right)) == [hit.id for hit in right]


def test_hits_kind_by_kind(open_page):
    page = open_page("#/search?text=normal&k=6")
    cards(page, 6)
    page.check("#grouped")
    ids = cards(page, 30)
    kinds = [name.split("-")[0] for name in ids]
    assert kinds == sorted(kinds, key=list(dict.fromkeys(kinds)).index) and len(set(kinds)) == 5
    assert page.locator("h3.group").count() == 5
    with page.expect_response("**/api/search") as caught:
        page.select_option("#rank", "cosine")
    assert exchanged(caught)[0]["rank"] == "cosine" and exchanged(caught)[0]["per_modality"] is True


def test_the_address_holds_the_question(open_page, browser):
    page = open_page()
    ask(page, "pneumonia")
    cards(page)
    page.get_by_role("button", name="Less like hit 1", exact=True).click()
    page.wait_for_selector(".chip.avoided")
    page.get_by_role("button", name="Chest X-ray 8", exact=True).click()
    page.select_option("#k", "6")
    ids = cards(page, 6)
    again = open_page("#" + page.url.split("#")[1])
    assert cards(again, 6) == ids
    assert again.locator(".chip").count() == 2 and again.locator(".chip.avoided").count() == 1
    again.wait_for_function("() => !document.querySelector('.chip.avoided').innerText.includes('an item')")
    assert again.get_by_role("button", name="Chest X-ray 8", exact=True).get_attribute("aria-pressed") == "true"
    page.go_back()
    cards(page, 8)
    page.go_back()
    cards(page, 12)
    page.go_back()
    page.go_back()
    page.wait_for_selector(".welcome")
    page.go_forward()
    assert len(cards(page, 12)) == 12


def test_a_link_leaves_files_out_but_going_back_keeps_them(open_page, clinic):
    page = open_page()
    ask(page, "normal")
    page.set_input_files("#files", clinic[2]["retina"][0])
    page.wait_for_selector(".chip img")
    assert page.url.endswith("#/search?text=normal")
    again = open_page("#" + page.url.split("#")[1])
    cards(again)
    assert again.locator(".chip").count() == 1
    page.reload()
    page.wait_for_selector(".chip img")
    page.go_back()
    page.wait_for_function("() => document.querySelectorAll('.chip').length === 1")
    page.go_forward()
    page.wait_for_selector(".chip img")


def test_labels_are_text_and_nothing_else(open_page):
    hostile = LABELS["xray"][3]
    page = open_page("#/search?text=normal&k=24&modality=xray")
    cards(page, 8)
    assert page.locator(".card-label", has_text=hostile).count() == 2
    assert page.locator("#results img[onerror]").count() == 0
    page.locator(".card-open", has_text=hostile).first.click()
    page.wait_for_selector("#detail .pairs")
    assert hostile in page.inner_text("#detail")


weights = st.sampled_from([0.25, 0.5, 1, 2, 3, -0.5, -1.25])
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
days = st.dates().map(str) | st.just("")
states = st.fixed_dictionaries(
    {
        "tab": st.sampled_from(["search", "map", "zero-shot"]),
        "parts": st.lists(
            st.fixed_dictionaries({"kind": st.sampled_from(["text", "item"]), "value": words, "weight": weights}),
            max_size=4,
        ),
        "where": st.fixed_dictionaries(
            {name: st.lists(words, max_size=2) for name in ("modality", "label", "patient")}
            | {"since": days, "until": days}
        ),
        "k": st.integers(1, 200),
        "rank": st.sampled_from(["calibrated", "cosine"]),
        "along": st.lists(st.just("") | words, min_size=2, max_size=2),
        "grouped": st.booleans(),
        "open": st.none() | words.map(lambda value: {"kind": "item", "value": value}),
        "zero": st.fixed_dictionaries(
            {
                "source": st.none() | words.map(lambda value: {"kind": "item", "value": value}),
                "labels": st.lists(words, max_size=3),
                "template": st.just("") | words,
                "threshold": st.integers(0, 20).map(lambda n: n / 20),
            }
        ),
    }
)


def test_any_state_survives_its_address(open_page):
    page = open_page()
    page.wait_for_selector(".ready")
    page.evaluate("async () => { window.store = await import('/static/store.js'); }")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(states)
    def law(state):
        back = page.evaluate("(state) => { const u = store.write(state); return [u, store.read(u)]; }", state)
        assert back[1] == state, back[0]

    law()


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["a.png", "b.png"], [["a.png"], ["b.png"]]),
        (["1.dcm", "2.dcm", "IM0003"], [["1.dcm", "2.dcm", "IM0003"]]),
        (["r.hea", "r.dat", "s.hea", "s.dat"], [["r.hea", "r.dat"], ["s.hea", "s.dat"]]),
        (["v.mhd", "v.raw", "x.nii.gz"], [["v.mhd", "v.raw"], ["x.nii.gz"]]),
        (["1.2.840.1", "1.2.840.2"], [["1.2.840.1", "1.2.840.2"]]),
    ],
)
def test_files_are_put_together(open_page, names, groups):
    page = open_page()
    found = page.evaluate(
        "async (names) => (await import('/static/files.js')).grouped(names.map((name) => ({ name })))"
        ".map((group) => group.map((file) => file.name))",
        names,
    )
    assert found == groups
