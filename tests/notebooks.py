"""Executes the notebooks of examples/; as a program, stores fresh outputs: python tests/notebooks.py [FOLDER].

The first notebook creates the files and the space that the others use.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
ORDER = (
    "1_bind_your_two_models",
    "2_search_across_modalities",
    "3_zero_shot_with_your_prompts",
    "4_bind_from_python",
)
LIMIT = 280  # seconds a cell may take on a busy machine
_PLACE = re.compile(r"(?<![\w.:<])/(?:tmp|home|root|work|usr|var|opt|Users)/|\d ?(?:s|ms|min) left|\d/s\b")


def execute(name, folder):
    """The notebook after running all its cells in `folder`, as a person would, without progress lines."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    quiet = {"PATH": path, "M3BIND_PROGRESS": "off", "HF_HUB_OFFLINE": "1", "COLUMNS": "150", "OMP_NUM_THREADS": "2"}
    before = {key: os.environ.get(key) for key in quiet}
    os.environ.update(quiet)
    try:
        place = {"metadata": {"path": str(folder)}}
        NotebookClient(book, timeout=LIMIT, startup_timeout=LIMIT, kernel_name="python3", resources=place).execute()
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    return book


def texts(book):
    """All that a notebook's outputs say, without pictures."""
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            yield from [output.get("text", "")]
            yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def machine_facts(book):
    """Paths and timings of the machine in a notebook's outputs."""
    return [found[0] for text in texts(book) for found in _PLACE.finditer(text)]


def _strip(book):
    """Only what a reader sees: no execution times, no warnings, no colours of a terminal; printed pieces as one."""
    import nbformat

    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        printed = [out for out in cell.outputs if out.output_type == "stream"]
        said = "".join(out.text for out in printed if out.name == "stdout").replace("\r\n", "\n")
        cell.outputs = [out for out in cell.outputs if out.output_type != "stream"]
        if said:
            text = re.sub(r"\x1b\[[0-9;]*m", "", said)
            cell.outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text=text))
    book.metadata = {"kernelspec": book.metadata["kernelspec"], "language_info": {"name": "python"}}
    return book


def main(folder):
    import nbformat

    for name in ORDER:
        book = _strip(execute(name, folder))
        facts = machine_facts(book)
        if facts:
            sys.exit(f"{name}: its outputs tell of this machine: {facts}")
        nbformat.write(book, EXAMPLES / f"{name}.ipynb")
        print(name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if sys.argv[1:] else temporary)
