"""Zero-shot labels: bars, abstention with its reason, items and uploads."""

import json

import pytest

from serve.web.conftest import OWN

pytestmark = pytest.mark.whole


def weigh(page, labels):
    page.fill("#zero-labels", "\n".join(labels))
    with page.expect_response("**/api/zero-shot") as caught:
        page.get_by_role("button", name="Classify", exact=True).click()
    page.wait_for_selector(".shares")
    return json.loads(caught.value.request.post_data), caught.value.json()


def shown(page):
    """Label -> probability as on the page."""
    names = page.locator(".share-name").all_inner_texts()
    numbers = page.locator(".share-number").all_inner_texts()
    return {name: float(number.replace("\u2009%", "")) for name, number in zip(names, numbers)}


def test_a_file_is_weighed(open_page, clinic):
    page = open_page("#/zero-shot")
    page.wait_for_selector(".ready")
    page.set_input_files("#zero-files", clinic[2]["xray"][0])
    page.wait_for_selector(".source")
    labels = ["pneumonia", "normal", "a fracture"]
    asked, answer = weigh(page, labels)
    assert asked["labels"] == labels and asked["threshold"] == 0.5 and "template" not in asked
    assert shown(page) == pytest.approx(dict(zip(labels, (100 * p for p in answer["probabilities"]))), abs=0.051)
    assert list(shown(page).values()) == sorted(shown(page).values(), reverse=True)
    assert page.locator(".verdict.abstain").count() == int(answer["abstain"])
    page.fill("#template", "findings of {}")
    asked, _ = weigh(page, labels)
    assert asked["template"] == "findings of {}"


def test_classes_of_a_prompt_file_and_typed_texts(open_page, clinic):
    page = open_page("#/zero-shot")
    page.wait_for_selector(".ready")
    page.set_input_files("#zero-files", clinic[2]["xray"][0])
    page.wait_for_selector(".source")
    page.get_by_role("button", name="infection").click()
    assert page.input_value("#zero-labels") == "normal = clear lungs | no finding\npneumonia = an opacity"
    for lines in (page.input_value("#zero-labels").split("\n"), ["normal = clear lungs | no finding", "pneumonia"]):
        asked, answer = weigh(page, lines)
        prompts = {label: list(texts) for label, texts in OWN.items()}
        prompts["pneumonia"] = prompts["pneumonia"] if "=" in lines[1] else ["pneumonia"]
        assert asked["labels"] == list(OWN) and asked["prompts"] == prompts
        assert shown(page) == pytest.approx(dict(zip(OWN, (100 * p for p in answer["probabilities"]))), abs=0.051)
    page.fill("#template", "findings of {}")
    page.get_by_role("button", name="Classify", exact=True).click()
    assert "no template" in page.inner_text("#zero-error")


def test_an_abstention_gives_its_reason(open_page):
    page = open_page("#/zero-shot?source=ct-01&option=normal&option=abnormal&threshold=1")
    with page.expect_response("**/api/zero-shot") as caught:
        page.wait_for_selector(".shares")
    answer = caught.value.json()
    assert answer["abstain"] is True
    assert page.inner_text(".verdict.abstain h2") == "No answer" and page.inner_text(".verdict p") == answer["why"]
    assert page.locator(".bar.wide:not(.weak)").count() == 0  # nothing is shown as the answer
    assert page.input_value("#zero-labels") == "normal\nabnormal"
    assert page.inner_text("#threshold-value").startswith("100")


def test_calibrated_or_not_is_reported(open_page):
    page = open_page()
    for calibrated in (True, False):
        answer = {"modality": "ct", "probabilities": [0.9, 0.1], "calibrated": calibrated, "abstain": False, "why": ""}
        page.unroute_all()
        page.route("**/api/zero-shot", lambda route, _, answer=answer: route.fulfill(json=answer))
        page.evaluate("(n) => { location.hash = `#/zero-shot?source=ct-01&option=a&option=b${n}`; }", int(calibrated))
        page.wait_for_selector(f".share-name:text-is('b{int(calibrated)}')")
        text = page.inner_text("#zero-results .caption")
        assert ("not calibrated" in text) is not calibrated


def test_a_hit_is_named_and_the_address_keeps_it(open_page):
    page = open_page("#/search?text=normal&open=retina-02")
    page.get_by_role("button", name="Classify (zero-shot)").click()
    page.wait_for_selector(".source")
    assert "Fundus photograph" in page.inner_text(".source")
    page.get_by_role("button", name="Diabetic retinopathy").click()
    page.locator("#zero-examples .example").nth(1).click()
    labels = page.input_value("#zero-labels").split("\n")
    assert len(labels) == 2
    weigh(page, labels)
    again = open_page("#" + page.url.split("#")[1])
    again.wait_for_selector(".shares")
    assert shown(again) == shown(page)


@pytest.mark.parametrize(
    ("address", "labels", "template", "reason"),
    [
        ("#/zero-shot", "a\nb", "", "Choose a file first"),
        ("#/zero-shot?source=ct-00", "a\n\na\n", "", "at least two labels"),
        ("#/zero-shot?source=ct-00", "\n".join(map(str, range(101))), "", "At most 100 labels"),
        ("#/zero-shot?source=ct-00", "a\nb", "no place", "needs {}"),
    ],
)
def test_what_cannot_be_weighted_is_reported_at_once(open_page, address, labels, template, reason):
    page = open_page(address)
    page.wait_for_selector(".ready")
    page.fill("#zero-labels", labels)
    page.fill("#template", template)
    page.get_by_role("button", name="Classify", exact=True).click()
    assert reason in page.inner_text("#zero-error")
