"""m3bind leaks: what the splits of a manifest share.

* `leak_report`: reads and compares the files; text, JSON and a page. * `leak_page`: the page with the pairs as images.
"""

import html
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from m3bind import modalities
from m3bind.core.device import Compute
from m3bind.core.files import write_json, write_text
from m3bind.core.progress import progress
from m3bind.data.cache import FLUSH_BYTES, FLUSH_SECONDS, FeatureCache, Rows
from m3bind.data.file_keys import with_rescale
from m3bind.data.manifest import read_manifest
from m3bind.data.prefetch import ahead
from m3bind.data.records import Record, format_bad_rows
from m3bind.data.shards import KEY, ShardFolder
from m3bind.errors import ReadError
from m3bind.evaluate.benchmarks import known_as
from m3bind.evaluate.leaks import Copy, LeakReport, copies_of, seen_by, split_leaks
from m3bind.evaluate.near_duplicates import THRESHOLD, VERSION, near_duplicates, thumbprint
from m3bind.experiments.evaluated_model import EvaluatedModel, of_space
from m3bind.pipeline.features import FeatureExtractor
from m3bind.pipeline.stored_inputs import rescaled
from m3bind.report.gallery import picture_uri
from m3bind.report.page import page
from m3bind.space.bundle import load

SHOWN = 100  # pairs of a modality on the page
SIDE = 240  # pixels of their images


@dataclass(frozen=True)
class LeakOptions:
    """`space`: also data sets that its models were trained on. `threshold`: minimum correlation of near-duplicates.

    `root`: folder of the manifest's paths. `cache`: stores what was read; by default a temporary folder. `page`,
    `json`: files to write.
    """

    root: Path | None = None
    space: Path | None = None
    threshold: float | None = None
    cache: Path | None = None
    page: Path | None = None
    json: Path | None = None


def leak_report(manifest: Path, options: LeakOptions, compute: Compute) -> tuple[str, bool]:
    """What the splits of a manifest share, as text, and whether they share anything or rows could not be compared."""
    content = read_manifest(manifest, root=options.root)
    threshold = THRESHOLD if options.threshold is None else options.threshold
    reports: dict[str, LeakReport] = {}
    files: dict[str, list[Record]] = {}
    with nullcontext(options.cache) if options.cache else TemporaryDirectory() as folder:
        extractor = FeatureExtractor(FeatureCache(folder), workers=compute.workers)
        model = of_space("space", load(options.space, compute.device), extractor) if options.space else None
        for m in dict.fromkeys(record.modality for record in content.records):
            records = files[m] = [record for record in content.records if record.modality == m]
            keys, prints, contents = _thumbprints(records, extractor.cache, extractor.workers)
            report = reports[m] = split_leaks(records, keys, content.bad)
            report.threshold = threshold
            report.copies = copies_of(records, contents, near_duplicates(prints, threshold, extractor.workers))
            report.compared = sum(map(len, contents))
            report.skipped = len(records) - report.compared
            if model is not None and m in model.models:
                report.seen = _seen(model, m, records)
    if options.json:
        write_json(options.json, {m: report.as_dict() for m, report in reports.items()})
    if options.page:
        write_text(options.page, leak_page(reports, files))
    unusable = [row for row in content.bad if row.kind != "that would leak"]
    parts = [f"{m}\n{report.report()}" for m, report in reports.items()]
    parts += [f"not compared: {format_bad_rows(unusable)}"] if unusable else []
    return "\n\n".join(parts), bool(unusable) or any(report.leaked for report in reports.values())


def _seen(model: EvaluatedModel, modality: str, records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Data sets of the records that the modality's model was trained on."""
    seen = {s: seen_by(model.training_data(modality), known_as(s)) for s in sorted({r.set for r in records})}
    return {f"{modality} model ({s})": entries for s, entries in seen.items() if entries}


# ---- reading ---------------------------------------------------------------------------------------------------------


def _thumbprints(
    records: Sequence[Record], cache: FeatureCache, workers: int
) -> tuple[list[str | None], Rows, list[list[int]]]:
    """Content keys of the files of one modality; thumbprints of distinct contents, and the records of each.

    What is stored is not read again; files that cannot be read have no thumbprint.
    """
    modality = modalities.get(records[0].modality)
    shards = cache.shards(f"thumbprint {VERSION}/{modality.name} {modality.version}")
    keys: list[str | None] = []
    with progress(f"hash {modality.name}", len(records)) as bar:
        for record in records:
            keys.append(_content(record, cache))
            bar.advance(1)
    cache.files.save()
    contents: dict[bytes, list[int]] = {}
    for place, known in enumerate(keys):
        if known is not None:
            contents.setdefault(bytes.fromhex(known), []).append(place)
    table = np.array(list(contents), KEY)
    shards.refresh()
    missing = [key for key, shard in zip(contents, shards.find(table)[:, 0].tolist(), strict=True) if shard < 0]

    def read(key: bytes) -> NDArray[np.uint8] | None:
        record = records[contents[key][0]]
        try:
            return thumbprint(rescaled(modalities.decode(modality, record.path), record.rescale))
        except ReadError:
            return None

    new: list[tuple[bytes, NDArray[np.uint8]]] = []
    since = time.monotonic()
    with progress(f"read {modality.name}", len(table), done=len(table) - len(missing)) as bar:
        for key, row in zip(missing, ahead(read, missing, workers, 4 * workers, _nbytes), strict=True):
            bar.advance(1)
            if row is not None:
                new.append((key, row))
            if len(new) * _nbytes(row) >= FLUSH_BYTES or time.monotonic() - since >= FLUSH_SECONDS:
                _store(shards, new)
                new, since = [], time.monotonic()
    _store(shards, new)
    shards.refresh()
    where = shards.find(table)
    good = where[:, 0] >= 0
    shape = shards.shards[0].tensors["rows"][2][1:] if shards.shards else (1, 1)
    places = [part for part, stored in zip(contents.values(), good.tolist(), strict=True) if stored]
    return keys, Rows(shards, where[good], shape, np.uint8), places


def _content(record: Record, cache: FeatureCache) -> str | None:
    """Hash of a file and of the rescaling in its row; None if it cannot be read."""
    try:
        return with_rescale(cache.files.key(record.path), record.rescale)
    except (ReadError, OSError):
        return None


def _store(shards: ShardFolder, new: Sequence[tuple[bytes, NDArray[np.uint8]]]) -> None:
    if new:
        shards.add(np.array([key for key, _ in new], KEY), {"rows": [row[None] for _, row in new]})


def _nbytes(row: NDArray[np.uint8] | None) -> int:
    return 0 if row is None else row.nbytes


# ---- the page --------------------------------------------------------------------------------------------------------


def leak_page(reports: Mapping[str, LeakReport], files: Mapping[str, Sequence[Record]]) -> str:
    """One self-contained HTML page: the findings of each modality and its pairs as images, between splits first.

    It contains rows of the manifest, but no names of files or patients.
    """
    sections = []
    for m, report in reports.items():
        findings = "".join(f"<li>{html.escape(line)}</li>" for line in report.report().splitlines())
        shown = report.copies[:SHOWN]
        pictures = {place: _picture(files[m][place], m) for copy in shown for place in copy.places}
        articles = "".join(_pair(copy, pictures) for copy in shown)
        more = f"<p>{len(report.copies) - SHOWN:,} more pairs are in the JSON.</p>" * (len(report.copies) > SHOWN)
        sections.append((m, modalities.get(m).title, f'<ul>{findings}</ul><div class="found">{articles}</div>{more}'))
    return page("near-duplicates and leaks", sections, kind="m3bind leaks")


def _pair(copy: Copy, pictures: Mapping[int, str]) -> str:
    """The two images of a pair; framed as wrong if they are in different splits."""
    how = "same bytes" if copy.same_bytes else f"correlation {copy.correlation:.3f}"
    facts = [how, f"flipped {copy.flip}" if copy.flip else "", "same patient" if copy.same_patient else ""]
    kind = "wrong" if copy.between else "open"
    figures = "".join(
        f'<figure class="hit {kind}">{pictures[place]}'
        f'<figcaption><span class="mark">{split}</span><span class="what">row {row}</span></figcaption></figure>'
        for place, split, row in zip(copy.places, copy.splits, copy.rows, strict=True)
    )
    return f'<article class="hits"><h4>{", ".join(filter(None, facts))}</h4><div class="row">{figures}</div></article>'


def _picture(record: Record, modality: str) -> str:
    try:
        kind = modalities.get(modality)
        uri = picture_uri(kind.thumbnail(rescaled(modalities.decode(kind, record.path), record.rescale), SIDE), SIDE)
    except ReadError:
        return '<div class="missing">image not readable</div>'
    return f'<img src="{uri}" alt="row {record.row}, {record.split}" loading="lazy">'
