import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from m3bind.cli import app
from m3bind.encode.job import encode_files
from m3bind.search.query import Query
from m3bind.search.searcher import Searcher
from m3bind.search.sheet import hits_as_text, in_its_modality, search_page
from m3bind.space.bundle import load, save_space
from search.test_searcher import Row
from space import tiny


@pytest.fixture(scope="module")
def archive(tmp_path_factory, _registered):
    """A saved space, and a folder of encoded pictures of which one has a person's name."""
    folder = tmp_path_factory.mktemp("archive")
    space = load(save_space(tiny.make_space(synthetic=True), folder / "space"))
    paths = tiny.pictures(folder / "in", 12)
    paths[0] = paths[0].rename(folder / "in" / "Mueller_Erika.png")
    rows = [Row(("grey", "other")[i % 2], path, f"i{i}", "<b>") for i, path in enumerate(paths)]
    encode_files(space, rows, folder / "encoded", keep=("id", "label"))
    return folder, paths


def test_the_page_is_one_file_with_a_picture_for_everything_that_can_be_read(archive, tmp_path):
    folder, paths = archive
    searcher = Searcher(load(folder / "space"), folder / "encoded")
    query = Query.text("bright & <dark>") + Query.file(paths[1], "other") - 0.5 * Query.item("i3")
    hits = searcher.search(query, 20)
    search_page(searcher, [(query, hits)], tmp_path / "hits.html")
    page = (tmp_path / "hits.html").read_text()
    assert page.count("<img") == 2 + len(hits) == 13 and page.count('src="data:image/jpeg;base64,') == 13
    assert "bright &amp; &lt;dark&gt;" in page and "avoid × 0.5" in page and "<b>" not in page
    assert "Mueller" not in page and "00001.png" in page and "virtual patients" in page
    assert re.findall(r'<figure class="hit "><img.*?<span class="mark">(\d+) ·', page) == [
        str(i + 1) for i in range(11)
    ]
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_a_picture_that_cannot_be_read_leaves_a_note(archive, tmp_path):
    folder, paths = archive
    searcher = Searcher(load(folder / "space"), folder / "encoded")
    hits = searcher.search("bright", 6, per_modality=True)
    moved = paths[5].rename(tmp_path / "elsewhere.png")
    try:
        search_page(searcher, [(Query.text("bright"), hits), (Query.text("dark"), [])], tmp_path / "hits.html", True)
    finally:
        moved.rename(paths[5])
    page = (tmp_path / "hits.html").read_text()
    assert page.count('<div class="missing">no such file</div>') == 1 and page.count("<img") == 11
    assert page.count("<h4>") == 4 and "Nothing found" in page


def test_lines_for_a_terminal(archive):
    folder, _ = archive
    searcher = Searcher(load(folder / "space"), folder / "encoded")
    hits = searcher.search("bright", 3)
    lines = hits_as_text(Query.text("bright"), hits).splitlines()
    assert lines[0] == '"bright"' and len(lines) == 5
    assert lines[2].split()[:7] == [
        "1",
        f"{hits[0].calibrated:+.2f}",
        "top",
        f"{100 - hits[0].percentile:.1f}",
        "%",
        f"{hits[0].score:+.3f}",
        hits[0].modality,
    ]
    assert lines[2].endswith(f"{hits[0].path}  [<b>]")
    assert "nothing found" in hits_as_text(Query.text("bright"), [])


def run(*arguments):
    return CliRunner().invoke(app, ["search", *map(str, arguments)])


def test_the_command(archive, tmp_path):
    folder, paths = archive
    start = [folder / "encoded", "--space", folder / "space"]
    result = run(
        *start, "--text", "bright*2", "--file", f"{paths[2]}:grey", "--without", "dark", "-k", 4,
        "--where", "modality=grey", "--json", tmp_path / "hits.json", "--html", tmp_path / "hits.html",
        "--thumbnails", tmp_path / "pictures", "--files", folder / "in",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.startswith('2 "bright" + a file (grey) - 0.5 "dark"\n')
    written = json.loads((tmp_path / "hits.json").read_text())
    query = Query.text("bright", 2) + Query.file(paths[2], "grey") - 0.5 * Query.text("dark")
    hits = Searcher(load(folder / "space"), folder / "encoded").search(query, 4)
    assert {hit["modality"] for hit in written["hits"]} == {"grey"} and written["query"] == query.as_dict()
    assert all(hit["id"] in result.output or hit["path"] in result.output for hit in written["hits"])
    assert hits[0].modality != "grey" or written["hits"][0] == hits[0].as_dict()
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"00{rank}_grey.png" for rank in range(1, 5)]
    assert Image.open(tmp_path / "pictures" / names[0]).size == (160, 160)
    assert run(*start, "--item", "i1", "--per-modality", "-k", 2).output.count("\n") == 2 + 4
    asked = ["--file", f"{paths[2]}:grey", "--rank", "cosine", "-k", 3]
    given = [run(*start, *asked, *flag).output for flag in ([], ["--no-gap-correction"], ["--gap-correction"])]
    assert given[0] == given[1] != given[2]


def test_files_that_serve_would_not_show_are_not_shown(archive, tmp_path):
    folder, _ = archive
    start = [folder / "encoded", "--space", folder / "space", "--item", "i1", "-k", 3]
    result = run(*start, "--html", tmp_path / "hits.html", "--thumbnails", tmp_path / "t")
    assert result.exit_code == 1 and result.output.count("outside the folders that may be shown") == 3
    page = (tmp_path / "hits.html").read_text()
    assert not list(tmp_path.glob("t/*")) and "<img" not in page and page.count("outside the folders") == 4
    (tmp_path / "in").symlink_to(folder / "in")  # a link leads to where it leads
    assert run(*start, "--thumbnails", tmp_path / "t", "--files", tmp_path / "in").exit_code == 0
    assert len(list(tmp_path.glob("t/*"))) == 3


def test_a_missing_picture_costs_the_exit_code(archive, tmp_path):
    folder, paths = archive
    moved = paths[4].rename(tmp_path / "elsewhere.png")
    try:
        result = run(
            folder / "encoded", "--space", folder / "space", "--text", "x", "-k", 12, "--thumbnails", tmp_path / "t",
            "--files", folder / "in",
        )  # fmt: skip
    finally:
        moved.rename(paths[4])
    assert result.exit_code == 1 and len(list(Path(tmp_path / "t").iterdir())) == 11
    assert re.search(r"no image of \d\d\d_grey.png: no such file", result.output)


def test_possible_incompleteness_is_shown_for_a_hit(archive, tmp_path):
    """In lines for a terminal, as JSON values and on the page, escaped; of others nothing is said."""
    folder, _ = archive
    searcher = Searcher(load(folder / "space"), folder / "encoded")
    query = Query.text("bright")
    first, *rest = searcher.search(query, 3)
    part = replace(first, fields={**first.fields, "incomplete": "3 numbers <missing>"})
    lines = hits_as_text(query, [part, *rest])
    assert lines.count("may be incomplete: 3 numbers <missing>") == lines.count("incomplete") == 1
    assert part.as_dict()["fields"]["incomplete"] == part.incomplete and rest[0].incomplete == ""
    search_page(searcher, [(query, [part, *rest])], tmp_path / "hits.html")
    assert (tmp_path / "hits.html").read_text().count("may be incomplete: 3 numbers &lt;missing&gt;") == 1


def test_a_modality_with_little_to_say_is_named(archive):
    folder, _ = archive
    hits = Searcher(load(folder / "space"), folder / "encoded").search("bright", 3)
    assert "little to say" not in hits_as_text(Query.text("bright"), hits)
    quiet = [replace(hit, relevance=0.01) for hit in hits]
    assert hits_as_text(Query.text("bright"), quiet).splitlines()[-1].startswith("little to say to this query: ")
    assert in_its_modality(replace(hits[0], percentile=100.0)) == "top 0.2 %"
