"""Documentation and notebooks are executed: notebooks unchanged, examples of docs/api.md as doctests."""

import doctest
import importlib
import re
from pathlib import Path

import nbformat
import pytest

import notebooks

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = ("m3bind.search.query", "m3bind.index.base")  # docstrings with examples


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the first notebook ran: its files, and the space it bound."""
    folder = tmp_path_factory.mktemp("notebooks")
    notebooks.execute(notebooks.ORDER[0], folder)
    return folder


@pytest.mark.whole
@pytest.mark.timeout(900)
def test_the_first_notebook_binds_two_models(place):
    assert (place / "runs" / "mine" / "space" / "space.json").is_file()
    assert not (place / "runs" / "mine" / "quarantine.csv").read_text().splitlines()[1:]


@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", notebooks.ORDER[1:])
def test_the_other_notebooks_run_on_what_it_made(place, name, tmp_path):
    for part in ("files", "runs"):
        (tmp_path / part).symlink_to(place / part)
    notebooks.execute(name, tmp_path)


@pytest.mark.parametrize("name", notebooks.ORDER)
def test_stored_outputs_are_whole_and_tell_nothing_of_a_machine(name):
    book = nbformat.read(notebooks.EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    assert not notebooks.machine_facts(book)
    assert not any(out.output_type == "error" for cell in book.cells for out in cell.get("outputs", ()))
    assert sum(bool(cell.get("outputs")) for cell in book.cells) >= 3
    assert "synthetic" in book.cells[0].source
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")


def failures(source, name, line=0):
    """What doctest says of a text with examples."""
    test = doctest.DocTestParser().get_doctest(source, {}, name, name, line)
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    runner.run(test, out=said.append)
    return len(test.examples), "".join(said)


@pytest.mark.whole
@pytest.mark.timeout(900)
def test_examples_of_the_api_page(place, tmp_path, monkeypatch):
    for part in ("files", "runs"):
        (tmp_path / part).symlink_to(place / part)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3BIND_PROGRESS", "off")
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    count, said = failures("\n".join(blocks), "api.md")
    assert not said, said
    assert count > 40


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_every_public_name_is_on_the_api_page():
    import m3bind

    text = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [name for name in m3bind.__all__ if name not in ("Space", "__version__") and f"`{name}`" not in text]
    assert not missing
