import pytest

from known import only
from space import archives

OWN = {"normal": ("clear lungs", "no finding"), "pneumonia": ("an opacity",)}  # classes of a prompt file
OURS = "willReadFrequently"  # the browser's warning to tests that read pixels


@pytest.fixture(autouse=True, scope="module")
def _known(_registered):
    archives.register()


@pytest.fixture(scope="session")
def clinic(tmp_path_factory):
    """A space, its index and its files."""
    folder = tmp_path_factory.mktemp("clinic")
    from serve.web.clinic import make_index, make_space

    with only(archives.register):
        space = make_space(folder)
        index, files = make_index(folder, space)
    return space, index, files


@pytest.fixture(scope="module")
def served(_known, clinic):
    """The address of the real service of the clinic."""
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from m3bind.evaluate.own_prompts import OwnClasses
    from m3bind.serve.app import make_app
    from serve.web.clinic import Server

    with Server(
        make_app(
            clinic[0], clinic[1], texts=["a mass in the left lung"], classes=[OwnClasses("infection", "xray", OWN)]
        )
    ) as server:
        yield server.url


@pytest.fixture
def open_page(browser, served):
    """Open the page; every error and every third-party request fails the test."""
    contexts, faults = [], []

    def run(address="", expected=(), **options):
        options = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"} | options
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)

        def heard(text):
            if not any(part in text for part in (*expected, OURS)):
                faults.append(text)

        page.on("pageerror", lambda error: heard(f"error: {error}"))
        page.on("console", lambda line: line.type in ("error", "warning") and heard(f"console: {line.text}"))
        page.on("request", lambda asked: asked.url.startswith((served, "blob:")) or heard(f"foreign: {asked.url}"))
        page.on("dialog", lambda dialog: (heard(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(served + address)
        return page

    yield run
    for context in contexts:
        context.close()
    assert not faults
