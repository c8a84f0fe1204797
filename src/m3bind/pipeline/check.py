"""m3bind check: how every file is read, its reading steps and warnings, and thumbnails of the models' input.

* `find_items`: files, DICOM series and WFDB records below the given paths, or the rows of a manifest.
* `check_items`: read every item; `Checked` is the result of one.
* `as_text`: the results for a terminal.
* `contact_sheet`, `contact_page`: all thumbnails on one PNG, or an HTML page with steps and warnings.
"""

import html
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from m3bind import modalities
from m3bind.core.files import atomic_path, write_text
from m3bind.core.progress import progress
from m3bind.encode.decode_pool import reason_of
from m3bind.errors import ConfigError, ReadError
from m3bind.modalities.base import Sample
from m3bind.modalities.formats.detect import recognise
from m3bind.modalities.formats.files import files_below
from m3bind.modalities.formats.isolation import WORKERS
from m3bind.privacy import NOT_UTF8, is_utf8, redact_path

if TYPE_CHECKING:
    from m3bind.space.bundle import Space

SIDE = 168  # pixels of a thumbnail
COLUMNS = 6
MOST = 600  # thumbnails on a contact sheet
TONES = {"ok": (40, 120, 60), "doubt": (190, 110, 0), "refused": (180, 30, 30)}


@dataclass(frozen=True)
class CheckItem:
    """A file, a folder with a series, or a record to read. `modality` is "" if unknown.

    `fault`: why a row of a manifest cannot be used.
    """

    path: Path
    modality: str = ""
    fault: str = ""


@dataclass
class Checked:
    """The result for one item. `path` is masked if it could name a person."""

    path: str
    status: str  # read | refused
    reason: str = ""
    modality: str = ""
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    number: int = 0  # position in the list, from 1
    thumbnail: Image.Image | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values, without number and thumbnail."""
        names = ("path", "status", "reason", "modality", "steps", "warnings")
        return {name: getattr(self, name) for name in names}

    @property
    def kind(self) -> str:
        """ok, doubt or refused."""
        return "refused" if self.status == "refused" else "doubt" if self.warnings else "ok"


def find_items(paths: Sequence[Path | str], modality: str = "", root: Path | str | None = None) -> list[CheckItem]:
    """The items below `paths`; in folders, hidden files and files that no modality reads are skipped.

    `root`: the folder of a manifest's paths, by default its own.

    Raises:
        ConfigError: no item, a path that does not exist, or `root` without a manifest.
        UnknownNameError: no such modality.
    """
    if modality:
        modalities.get(modality)
    from m3bind.data.manifest import read_manifest
    from m3bind.data.manifest_rows import is_manifest

    items: list[CheckItem] = []
    if root and not any(map(is_manifest, map(Path, paths))):
        raise ConfigError("--root has no effect: it is the folder of a manifest's paths, and no manifest is given")
    for path in map(Path, paths):
        if not path.exists() and not path.with_name(path.name + ".hea").exists():
            raise ConfigError(f"{path}: no such file or folder")
        if path.is_dir():
            items += [CheckItem(file, modality) for file in files_below(path, [modality] if modality else [])]
        elif is_manifest(path):
            manifest = read_manifest(path, root)
            items += [CheckItem(record.path, record.modality) for record in manifest.records]
            items += [
                CheckItem(Path(row.path), fault=f"row {row.row} of the manifest: {row.reason}") for row in manifest.bad
            ]
        else:
            items.append(CheckItem(path, modality))
    if not items:
        raise ConfigError(f"{', '.join(map(str, paths))}: no file that any modality reads")
    return items


def on_sheet(count: int) -> range:
    """Positions of the items on a contact sheet: all, or every k-th of more than `MOST`."""
    return range(0, count, -(-count // MOST) or 1)


def check_items(items: Sequence[CheckItem], thumbnails: bool = False, space: "Space | None" = None) -> list[Checked]:
    """Read every item, in order; with `thumbnails`, include those of the items on a contact sheet.

    With a `space`, items that are unlike its training data get a warning with the reason.
    """
    drawn = set(on_sheet(len(items))) if thumbnails else set()

    def check(place: int) -> Checked:
        item, name, number = items[place], redact_path(items[place].path), place + 1
        if item.fault:
            return Checked(name, "refused", item.fault, item.modality, number=number)
        try:
            sample = modalities.read(item.modality, item.path) if item.modality else recognise(item.path)
        except ReadError as error:
            return Checked(name, "refused", error.advice, item.modality, number=number)
        if not is_utf8(item.path):
            sample.warnings.append(f"encode skips it: {NOT_UTF8}")
        if space is not None and sample.modality in space.measures:
            sample.warnings += _unlike(space, sample)
        thumbnail = modalities.get(sample.modality).thumbnail(sample, SIDE) if place in drawn else None
        return Checked(name, "read", "", sample.modality, sample.steps, sample.warnings, number, thumbnail)

    answers = []
    with ThreadPoolExecutor(WORKERS) as pool, progress("check", len(items)) as bar:
        for answer in pool.map(check, range(len(items))):
            answers.append(answer)
            bar.advance(1)
    return answers


def _unlike(space: "Space", sample: Sample) -> list[str]:
    """A warning if a sample is unlike the training data of the space, or cannot be encoded."""
    try:
        _, (reason,) = space.examine_inputs([space.model(sample.modality).preprocess(sample)], sample.modality)
    except Exception as error:  # models refuse samples in many ways
        return [f"cannot be encoded: {reason_of(error)}"]
    return [f"unusual: {reason}"] if reason else []


def as_text(answers: Sequence[Checked], verbose: bool = True) -> str:
    """One paragraph per file and a line of counts."""
    lines = []
    for answer in answers:
        lines.append(f"{answer.number:4d}  {answer.kind:7s}  {answer.modality or '-':10s} {answer.path}")
        if answer.reason:
            lines.append(f"      {answer.reason}")
        if verbose:
            lines += [f"      {step}" for step in answer.steps]
        lines += [f"      ! {warning}" for warning in answer.warnings]
    counts = Counter(answer.status for answer in answers)
    doubtful = sum(bool(answer.warnings) for answer in answers)
    lines.append(f"{counts['read']} read ({doubtful} with doubts), {counts['refused']} refused")
    if any("~" in answer.path for answer in answers):
        lines.append("names that could be a person's are masked (~); M3BIND_IDENTIFIERS=show prints them")
    return "\n".join(lines)


def contact_sheet(answers: Sequence[Checked], target: Path) -> None:
    """One PNG with thumbnails in order (at most `MOST`, at equal distances); refused items are empty frames.

    Raises:
        DiskError: it cannot be written.
    """
    box, answers = SIDE + 22, [answers[place] for place in on_sheet(len(answers))]
    rows = -(-len(answers) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8) + 8, max(1, rows) * (box + 8) + 8), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for place, answer in enumerate(answers):
        x, y = 8 + (place % COLUMNS) * (SIDE + 8), 8 + (place // COLUMNS) * (box + 8)
        if answer.thumbnail is not None:
            width, height = answer.thumbnail.size
            sheet.paste(answer.thumbnail, (x + (SIDE - width) // 2, y + (SIDE - height) // 2))
        tone = TONES[answer.kind]
        pen.rectangle([x - 1, y - 1, x + SIDE, y + SIDE], outline=tone, width=1 if answer.kind == "ok" else 2)
        word = answer.modality if answer.kind == "ok" else answer.kind
        pen.text((x, y + SIDE + 4), f"{answer.number}  {word}", fill=tone, font_size=13)
    with atomic_path(target) as temporary:
        sheet.save(temporary, "png")


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1f2933;
background:#fff}h1{font-size:1.4rem}.files{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));
gap:1rem}article{border:1px solid #d5dbe1;border-left:5px solid #2f7d4f;border-radius:6px;padding:.7rem;
overflow-wrap:anywhere}article.doubt{border-left-color:#c07a00}article.refused{border-left-color:#b42318}
img{max-width:168px;display:block;margin-bottom:.4rem}h2{font-size:1rem;margin:0}p,ul{margin:.2rem 0}
ul{padding-left:1.1rem}.warn{color:#8a5200}.refused p{color:#b42318}
@media(prefers-color-scheme:dark){body{background:#1a2129;color:#e4e9ee}article{border-color:#3b4754}
.warn{color:#f0b860}.refused p{color:#ff9a90}}"""


def contact_page(answers: Sequence[Checked], target: Path) -> None:
    """One self-contained HTML page with thumbnails, reading steps and warnings.

    Raises:
        DiskError: it cannot be written.
    """
    from m3bind.report.gallery import picture_uri

    articles = []
    for answer in (answers[place] for place in on_sheet(len(answers))):
        image = f'<img src="{picture_uri(answer.thumbnail, SIDE)}" alt="">' if answer.thumbnail else ""
        reason = f"<p>{html.escape(answer.reason)}</p>" if answer.reason else ""
        warnings = "".join(f'<li class="warn">{html.escape(text)}</li>' for text in answer.warnings)
        steps = "".join(f"<li>{html.escape(text)}</li>" for text in answer.steps)
        title = f"{answer.number} · {html.escape(answer.modality or 'unknown')} · {html.escape(answer.path)}"
        articles.append(
            f'<article class="{answer.kind}"><h2>{title}</h2>{image}{reason}<ul>{warnings}{steps}</ul></article>'
        )
    last = html.escape(next(line for line in as_text(answers).splitlines() if " read (" in line))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>m3bind check</title><style>{_STYLE}</style><h1>m3bind check</h1><p>{last}</p>"
        f'<div class="files">{"".join(articles)}</div></html>'
    )
    write_text(target, page)
