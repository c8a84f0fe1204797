"""A new user who follows only the docs: the code blocks of three pages, in order, in a fresh environment.

    python tests/newcomer.py            # new virtual environment, installed from the last commit (minutes, 7 GB)
    python tests/newcomer.py --here     # with the current Python; the install block is skipped

* `blocks`: the code blocks of a page. * `script`: all blocks as one bash script. * `run`: runs it.

Shell blocks are run unchanged, Python blocks by the environment's Python, blocks with a title are written into the file
of that name. A server is started, queried, and ended by SIGTERM.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ("quickstart.md", "howto/data.md", "howto/search.md")
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)

ASK_THE_SERVER = """
import json, sys, time, urllib.request

address = "http://127.0.0.1:8000"
for attempt in range(120):
    try:
        urllib.request.urlopen(address + "/readyz").read()
        break
    except OSError:
        time.sleep(1)
else:
    sys.exit("the server was not ready within two minutes")
page = urllib.request.urlopen(address + "/").read()
question = {"parts": [{"kind": "text", "value": "pneumonia", "weight": 1}], "k": 5}
headers = {"Content-Type": "application/json"}
request = urllib.request.Request(address + "/api/search", json.dumps(question).encode(), headers)
hits = json.load(urllib.request.urlopen(request))["hits"]
assert b"<html" in page.lower() and len(hits) == 5, (page[:200], hits)
print("the page is there, and a question has", len(hits), "hits")
"""


@dataclass(frozen=True)
class Block:
    """One code block of a page."""

    place: str  # page and line
    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The code blocks of a page that have a language, in order; `text` blocks are output and left out."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        language, title, body = found.groups()
        if language != "text":
            yield Block(f"{page}:{text[: found.start()].count(chr(10)) + 1}", language, title or "", body)


def script(pages: tuple[str, ...] = PAGES, install: bool = True) -> str:
    """All blocks as one bash script that stops at the first error and says where it is."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in (block for page in pages for block in blocks(page)):
        if not install and "pip install" in block.text:
            continue
        lines.append(f'echo "== {block.place} ($SECONDS s)"')
        if block.title:
            lines.append(f"cat > {block.title} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.language == "python":
            lines.append(f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.language != "bash":
            raise ValueError(
                f"{block.place}: a block of {block.language} without a title; what should be done with it?"
            )
        elif block.text.startswith("m3bind serve"):
            lines += [
                f"{block.text.rstrip()} &",
                f"python - <<'END_OF_BLOCK'{ASK_THE_SERVER}END_OF_BLOCK",
                "kill -TERM $!; wait $!",
            ]
        else:
            lines.append(block.text.rstrip())
    return "\n".join([*lines, 'echo "== all blocks done ($SECONDS s)"', ""])


def run(folder: Path, here: bool) -> int:
    """Follow the pages in an empty folder; the exit code of what failed, or 0."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HF_HUB_OFFLINE": "1", "M3BIND_PROGRESS": "off", "M3BIND": str(folder / "m3bind")}
    if here:
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    else:
        _checkout(folder / "m3bind")
    work = folder / "work"
    work.mkdir()
    return subprocess.run(["bash", "-c", script(install=not here)], cwd=work, env=environment).returncode


def _checkout(to: Path) -> None:
    """What the last commit holds, so that building leaves nothing behind in the repository."""
    to.mkdir()
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=to, input=packed, check=True)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true", help="use the Python that runs this, install nothing")
    parser.add_argument("--folder", type=Path, help="work in this new folder and keep it; default: a temporary one")
    given = parser.parse_args()
    started = time.monotonic()
    if given.folder:
        given.folder.mkdir(parents=True)
        code = run(given.folder.resolve(), given.here)
    else:
        with tempfile.TemporaryDirectory() as folder:
            code = run(Path(folder), given.here)
    print(f"{'done' if code == 0 else f'FAILED with exit code {code}'} in {time.monotonic() - started:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
