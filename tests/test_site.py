"""The docs site: it builds, no link is broken, nothing is loaded from the network, and its statements are true."""

import functools
import http.server
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pytest
import typer
import yaml
from PIL import Image

import check_site
import make_picture
import make_reference
import newcomer
from m3bind import config
from m3bind.cli import app
from m3bind.evaluate.prompt_files import PromptFile

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
TEXTS |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")}
COMMANDS = dict(typer.main.get_command(app).commands.items())
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def build(folder: Path, *, strict: bool = True) -> subprocess.CompletedProcess[str]:
    """The site of the docs below `folder`, in its folder `site`."""
    command = [sys.executable, "-m", "zensical", "build", *(["--strict"] if strict else [])]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path):
    """A copy of the docs to build."""
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def test_it_builds_and_every_link_leads_somewhere(copy):
    done = build(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_site.faults(copy / "site") == []
    assert len(list((copy / "site").rglob("*.html"))) == len(PAGES) + 1  # and 404.html


@pytest.mark.parametrize("link", ["[x](nowhere.md)", "[x](quickstart.md#nothing)", "[x](../README.md)", "![x](no.png)"])
def test_a_broken_link_fails(copy, link):
    page = copy / "docs" / "index.md"
    page.write_text(page.read_text(encoding="utf-8") + f"\n{link}\n", encoding="utf-8")
    assert build(copy).returncode != 0 or check_site.faults(copy / "site")


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js from the network"),
        ('<p style="background:url(//example.org/x.png)">', "loads //example.org/x.png from the network"),
        ('<a href="other.html#none">', "other.html#none has no such anchor"),
        ('<a href="../outside.html">', "../outside.html leads nowhere"),
        ('<a href="https://example.org"><a href="other.html#here">', None),
    ],
)
def test_what_is_wrong_with_a_site(tmp_path, html, fault):
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "outside.html").write_text("")
    (site / "other.html").write_text('<p id="here">')
    (site / "index.html").write_text(html)
    assert check_site.faults(site) == ([f"index.html: {fault}"] if fault else [])


def test_every_page_is_in_the_menu():
    def places(part):
        values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else [part]
        return [part] if isinstance(part, str) else [place for value in values for place in places(value)]

    menu = places(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(menu) == [path.relative_to(DOCS).as_posix() for path in PAGES]


def test_generated_pages_are_current():
    for name, text in make_reference.pages().items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, f"{name} is not current: make docs"
    for name, colours in make_picture.COLOURS.items():
        assert (DOCS / "pictures" / f"pipeline-{name}.svg").read_text(encoding="utf-8") == make_picture.picture(colours)


def test_every_setting_is_explained():
    sections: dict = {}
    make_reference._collect(config.RunConfig, "", sections)
    settings = [(section, name) for section in sections for name in section.model_fields]
    assert len(settings) > 90
    silent = [
        f"{section.__name__}.{name}"
        for section, name in settings
        if make_reference._section(section.model_fields[name]) is None and not make_reference.explanation(section, name)
    ]
    assert silent == []


def test_the_reference_holds_every_command_and_option():
    page = TEXTS["docs/reference/cli.md"]
    for name, command in COMMANDS.items():
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert all(f"`{option}`" in part for option in parameter.opts), (name, parameter.opts)


def commands_in(text: str):
    """Words of every m3bind command that a page shows, in code blocks and in running text."""
    shown = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    shown += re.findall(r"`(m3bind [^`\n]+)`", FENCE.sub("", text))
    for line in shown:
        found = re.match(r"\s*(?:\$ )?(?:[A-Z0-9_]+=\S+ |\"[^\"]*\" )*(?:accelerate launch -m )?!?(m3bind .*)", line)
        if found:
            words = shlex.split(found.group(1).split(" |")[0], comments=True)
            yield words[: words.index("&")] if "&" in words else words


def wrong(words: list[str]) -> str:
    """What is wrong with a command line, by the commands and options that there are."""
    name = words[1] if len(words) > 1 else ""
    if name.startswith("-") or name.isupper() or name in ("COMMAND", "..."):
        return ""
    if name not in COMMANDS:
        return f"no command {name!r}"
    known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    options = [word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)]
    missing = [option for option in options if option not in known]
    return f"{name} has no option {', '.join(missing)}" if missing else ""


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_and_option_on_a_page_exists(name):
    faults = {" ".join(words): fault for words in commands_in(TEXTS[name]) if (fault := wrong(words))}
    assert not faults


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_command_in_a_notebook_exists(path):
    book = nbformat.read(path, as_version=4)
    text = "\n".join(f"```\n{cell.source}\n```" if cell.cell_type == "code" else cell.source for cell in book.cells)
    assert not [fault for words in commands_in(text) if (fault := wrong(words))]


def test_commands_are_found_and_judged():
    text = "Run `m3bind fitt x`.\n```bash\nA=1 m3bind search i --spacee s  # why\n"
    text += "accelerate launch -m m3bind encode a --out b\n```\n"
    assert [wrong(words) for words in commands_in(text)] == ["search has no option --spacee", "", "no command 'fitt'"]
    assert sum(len(list(commands_in(text))) for text in TEXTS.values()) > 100


def test_every_address_of_the_service_on_a_page_exists():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/m3bind/serve").glob("*.py"))
    known = {re.sub(r"\{.*?\}", "ID", address) for address in re.findall(r'"(/(?:api/)?[a-z][^" ]*)"', source)}
    shown = {address for text in TEXTS.values() for address in re.findall(r"(/api/[\w./-]+)", text)}
    shown |= {f"/{name}" for name in ("healthz", "readyz", "metrics")}
    assert len(shown) > 8 and shown <= known, shown - known


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if "```yaml" in text])
def test_settings_shown_are_valid(name):
    for language, block in FENCE.findall(TEXTS[name]):
        if language == "yaml":
            tree = yaml.safe_load(block)
            if "tasks" in tree:
                assert PromptFile.model_validate(tree).tasks
                continue
            base = config._read(tree.pop("extends"), ()) if "extends" in tree else {}
            assert config.validate(config.merge(base, tree)).modalities


def test_the_modality_shown_reads_and_shows_a_file(tmp_path):
    block = next(block for language, block in FENCE.findall(TEXTS["docs/howto/modality.md"]) if language == "python")
    (tmp_path / "thermal.py").write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("thermal", tmp_path / "thermal.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    sample = module.Thermal().read(tmp_path / "a.png")
    assert sample.array.shape == (8, 8)
    assert module.Thermal().thumbnail(sample).mode == "RGB"


def test_python_shown_is_valid():
    for name, text in TEXTS.items():
        for language, block in FENCE.findall(text):
            if language == "python" and ">>>" not in block and name != "docs/reference/python.md":
                compile(block, name, "exec")


def test_a_newcomer_gets_a_script_that_bash_understands():
    text = newcomer.script()
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0
    for words in ("pip install", "m3bind demo", "m3bind index", "m3bind fit", "m3bind search", "/readyz"):
        assert words in text
    assert "pip install" not in newcomer.script(install=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_newcomer_succeeds(tmp_path):
    assert newcomer.run(tmp_path, here=False) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The built site behind an address of this machine."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    assert build(folder).returncode == 0
    handler = functools.partial(Quiet, directory=folder / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.mark.whole
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_in_a_browser(served, browser, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    asked, errors = set(), []
    page.on("request", lambda request: asked.add(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    for name in ("index", "quickstart", "binding", "reference/settings", "troubleshooting"):
        page.goto(f"{served}/{name}.html")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than a phone"
        serious = [
            fault for fault in axe.run(page).response["violations"] if fault["impact"] in ("serious", "critical")
        ]
        assert not [(name, fault["id"], fault["nodes"][0]["html"]) for fault in serious]
    assert not errors
    assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
    shown = page.goto(f"{served}/index.html") and page.locator(".wide img:visible").get_attribute("src")
    assert shown == f"pictures/pipeline-{scheme}.svg#only-{scheme}"
    context.close()
