"""One hit in detail: image, volume, trace, and why it was found."""

import math

import pytest

from m3bind.modalities.ecg import LEADS

pytestmark = pytest.mark.whole

ADDRESS = "#/search?text=pneumonia&modality={}"


def look(open_page, modality, **options):
    """Open the first hit of a kind."""
    page = open_page(ADDRESS.format(modality), **options)
    page.locator(".card-open").first.click()
    page.wait_for_selector("#detail .phrases")
    return page


def settle(page):
    """Wait for the image."""
    page.wait_for_function(
        "() => { const i = document.querySelector('.stage img'); return i.complete && i.naturalWidth > 0; }"
    )


@pytest.mark.parametrize("modality", ["xray", "retina", "pathology"])
def test_a_picture_is_zoomed_and_moved(open_page, modality):
    page = look(open_page, modality)
    settle(page)
    assert f"items/{modality}-" in page.get_attribute(".stage img", "src")

    def transform():
        return page.eval_on_selector(
            ".stage img", "(i) => { const m = new DOMMatrix(i.style.transform); return [m.a, m.e, m.f]; }"
        )

    page.get_by_role("button", name="Zoom in").click()
    scale, x, y = transform()
    width, height = page.eval_on_selector(".stage", "(s) => [s.clientWidth, s.clientHeight]")
    assert scale == pytest.approx(1.4) and [x, y] == pytest.approx([-0.2 * width, -0.2 * height])
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 130, box["y"] + 110)
    page.mouse.up()
    assert transform()[1:] == pytest.approx([x + 30, y + 10])
    page.mouse.wheel(0, -300)
    assert transform()[0] == pytest.approx(1.4 * 1.0015**300, rel=1e-3)
    page.focus(".stage")
    page.keyboard.press("0")
    assert transform() == [1, 0, 0]
    page.keyboard.press("-")
    assert transform() == [1, 0, 0]  # never smaller than the frame
    page.dblclick(".stage")
    assert transform()[0] == pytest.approx(2.5)


def test_a_volume_is_walked_through_in_windows(open_page):
    page = look(open_page, "ct")
    settle(page)
    last = int(page.get_attribute("#detail input[type=range]", "max"))
    assert last >= 3

    def shown():
        settle(page)
        address = page.get_attribute(".stage img", "src")
        return dict(part.split("=") for part in address.split("?")[1].split("&"))

    assert shown()["slice"] == str((last + 1) // 2) and "window" not in shown()
    page.fill("#detail input[type=range]", "0")
    assert shown()["slice"] == "0" and page.inner_text(".slice") == f"1 / {last + 1}"
    page.focus(".stage")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    assert shown()["slice"] == "1"
    box = page.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.wheel(0, 120)
    page.wait_for_function("() => document.querySelector('.slice').textContent.startsWith('4')")
    for window, name in {"lung": "Lung", "soft": "Soft tissue", "bone": "Bone"}.items():
        with page.expect_response(lambda answer, w=window: f"window={w}" in answer.url and answer.status == 200):
            page.locator(".choice", has_text=name).click()
        assert shown()["window"] == window
        assert f"{name.lower()} window" in page.get_attribute(".stage img", "alt")
    page.keyboard.press("Tab")
    page.fill("#detail input[type=range]", str(last))
    assert shown()["slice"] == str(last)


def choose(page, name, value):
    page.locator(".viewer label", has_text=name).locator("select").select_option(value)


INK = """([from, to]) => {
  const canvas = document.querySelector('.paper canvas');
  const mm = Number(canvas.dataset.pixels) * devicePixelRatio;
  const { data, width } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const rows = [];
  for (let y = 0; y < canvas.height; y += 1)
    for (let x = Math.round(from * mm); x < to * mm; x += 1)
      if (data[4 * (y * width + x)] < 180) { rows.push(y / mm); break; }
  return rows;
}"""


def test_a_trace_is_drawn_to_scale_on_millimetre_paper(open_page, clinic):
    page = look(open_page, "ecg")
    page.wait_for_selector(".paper canvas[role=img]")
    assert ", ".join(LEADS) in page.get_attribute(".paper canvas", "aria-label")

    def size():
        return page.eval_on_selector(
            ".paper canvas", "(c) => [c.clientWidth, c.clientHeight].map((n) => n / Number(c.dataset.pixels))"
        )

    width, height = size()
    assert width == pytest.approx(6 + 0.3 * 25 + 250, abs=0.6)  # 10 seconds at 25 mm/s, the pulse, the margins
    rows = page.evaluate(INK, [3 + 0.02 * 25, 3 + 0.24 * 25])
    first = [row for row in rows if row < height / 4]
    assert max(first) - min(first) == pytest.approx(10, abs=0.5)  # 1 mV at 10 mm/mV
    choose(page, "Gain", "20")
    rows = page.evaluate(INK, [3 + 0.02 * 25, 3 + 0.24 * 25])
    first = [row for row in rows if row < size()[1] / 4]
    assert max(first) - min(first) == pytest.approx(20, abs=0.5)
    choose(page, "Speed", "50")
    assert size()[0] == pytest.approx(6 + 0.3 * 50 + 500, abs=0.6)
    choose(page, "Leads", "list")
    assert size()[1] == pytest.approx(6 + 12 * 40, abs=0.6)
    before = float(page.get_attribute(".paper canvas", "data-pixels"))
    page.focus(".paper")
    page.keyboard.press("+")
    assert float(page.get_attribute(".paper canvas", "data-pixels")) == pytest.approx(1.3 * before)
    page.keyboard.press("0")
    assert math.isclose(float(page.get_attribute(".paper canvas", "data-pixels")), before)


def test_the_trace_is_the_signal_of_the_file(open_page, clinic):
    """The drawn line of lead II over ten seconds is as high as the signal."""
    from m3bind import modalities

    page = look(open_page, "ecg")
    page.wait_for_selector(".paper canvas[role=img]")
    choose(page, "Leads", "list")
    number = int(page.evaluate("location.hash.match(/open=ecg-(\\d+)/)[1]"))
    lead = modalities.decode("ecg", clinic[2]["ecg"][number]).array[1]
    middle = 3 + 1.55 * 20
    rows = page.evaluate(INK, [3 + 0.3 * 25 + 20, 3 + 0.3 * 25 + 225])
    high = middle - 10 * float(lead[80:900].max())
    low = middle - 10 * float(lead[80:900].min())
    band = [row for row in rows if high - 2 < row < low + 2]
    assert min(band) == pytest.approx(high, abs=0.6) and max(band) == pytest.approx(low, abs=0.6)


def test_why_shows_phrases_of_question_and_hit(open_page, clinic):
    page = look(open_page, "xray")
    columns = page.locator(".why-columns > div")
    assert columns.count() == 2
    assert columns.nth(0).locator("li").count() == 6 and columns.nth(1).locator("li").count() == 6
    own = set(columns.nth(1).locator(".phrase").all_inner_texts())
    marked = set(page.locator(".common .phrase").all_inner_texts())
    both = own & set(columns.nth(0).locator(".phrase").all_inner_texts())
    assert marked == both
    assert page.inner_text(".scores .big").endswith("%")
    fields = page.locator("#detail section", has_text="Fields").locator(".pairs").inner_text()
    assert fields.split("\n")[::2] == ["label", "patient", "date", "id"]
    assert str(clinic[2]["xray"][0].parent) not in page.content()


def test_walking_from_hit_to_hit_and_closing(open_page):
    page = look(open_page, "retina")
    ids = page.eval_on_selector_all("li.card", "cards => cards.map((card) => card.dataset.id)")
    assert page.get_by_role("button", name="Previous hit (p)").is_disabled()
    page.get_by_role("button", name="Next hit (n)").click()
    page.wait_for_selector(f"#detail dd:text('{ids[1]}')")
    page.keyboard.press("Enter")  # the focus is still on the button
    page.wait_for_selector(f"#detail dd:text('{ids[2]}')")
    page.keyboard.press("p")
    for press, at in (("n", 2), ("p", 1)):
        page.keyboard.press(press)
        page.wait_for_function("(id) => location.hash.includes(`open=${id}`)", arg=ids[at])
        page.wait_for_selector(f"#detail dd:text('{ids[at]}')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert page.evaluate("document.activeElement.closest('.card').dataset.id") == ids[1]
    page.go_back()
    page.wait_for_selector("#detail[open]")
    page.get_by_role("button", name="Close").click()
    page.wait_for_selector("#detail", state="hidden")


def test_a_link_opens_a_hit_and_back_closes_it(open_page):
    page = look(open_page, "retina")
    again = open_page("#" + page.url.split("#")[1])
    again.wait_for_selector("#detail .stage")
    again.wait_for_selector("#detail-scores .big")
    assert again.inner_text("#detail-scores") == page.inner_text("#detail-scores")
    page.go_back()
    page.wait_for_selector("#detail", state="hidden")


def test_an_upload_is_checked_and_reports_how_it_was_read(open_page, clinic):
    page = open_page()
    page.wait_for_selector(".ready")
    path = clinic[2]["ecg"][3]
    page.set_input_files("#files", [path, path.with_suffix(".dat")])
    page.locator(".chip-name.look").click()
    page.wait_for_selector("#detail .paper canvas[role=img]")
    assert "your file" in page.inner_text("#detail-title") and "open=" not in page.url
    assert page.locator(".remarks li").count() >= 1
    assert str(path) not in page.inner_text("#detail")


def test_a_missing_item_is_reported(open_page):
    page = open_page("#/search?open=nobody", expected=("404",))
    page.wait_for_selector("#detail [role=alert]")
    assert "no such item" in page.inner_text("#detail").lower()
    page.keyboard.press("Escape")
    page.wait_for_selector(".welcome")


def test_two_fingers_zoom_and_one_moves(open_page):
    page = open_page(ADDRESS.format("xray") + "&open=xray-00", viewport={"width": 390, "height": 800}, has_touch=True)
    page.wait_for_selector("#detail .phrases")
    settle(page)
    box = page.locator(".stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    wire = page.context.new_cdp_session(page)

    def touch(kind, *away):
        points = [{"x": x + dx, "y": y, "id": number} for number, dx in enumerate(away)]
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def scale():
        return page.eval_on_selector(".stage img", "(i) => new DOMMatrix(i.style.transform).a")

    touch("touchStart", -30, 30)
    touch("touchMove", -60, 60)
    touch("touchMove", -90, 90)
    touch("touchEnd")
    assert scale() == pytest.approx(3, rel=0.05)
    place = page.get_attribute(".stage img", "style")
    touch("touchStart", 0)
    touch("touchMove", 20)
    touch("touchMove", 40)
    touch("touchEnd")
    assert scale() == pytest.approx(3, rel=0.05) and page.get_attribute(".stage img", "style") != place
