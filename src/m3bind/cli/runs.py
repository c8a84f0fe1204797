"""Commands that train: from data sets to a bound space."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import (
    BIND,
    MODELS,
    Change,
    Device,
    Name,
    Out,
    Seed,
    Settings,
    Workers,
    app,
    finish,
    refuse_ignored,
    run_of,
)
from m3bind.errors import ConfigError

ONLINE = ("accept_licences", "mirror")  # options that --download alone uses


@app.command(rich_help_panel=BIND)
def demo(
    out: Out = Path("runs"),
    quick: Annotated[bool, typer.Option(help="a smaller cohort, about 2 minutes")] = False,
    change: Change = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Bind five modalities of virtual patients, end to end.

    Makes the patients, trains five dual encoders, binds and distils them, evaluates, and writes a report.

    \b
    Example:
      m3bind demo
    """
    finish(run_of("quick" if quick else "demo", change, out, device=device, workers=workers), "distill")


@app.command(rich_help_panel=BIND)
def fit(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    until: Annotated[str, typer.Option(help="last stage: pretrain, closed_form, align or distill")] = "distill",
) -> None:
    """Run all stages: pretrain, align, distill, evaluate, report.

    Resumable: the same command continues after a kill.

    \b
    Examples:
      m3bind fit mini5 --set data.manifest=mini5/manifest.csv
      m3bind fit mine.yaml --seed 1
    """
    finish(run_of(settings, change, out, name, seed, device, workers), until)


@app.command(rich_help_panel=MODELS)
def prepare(
    context: typer.Context,
    settings: Annotated[str, typer.Argument(help="settings of a run; with --root or --download a data set or open5")],
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    root: Annotated[
        Path | None,
        typer.Option(help="folder of the data set in its official layout; with --download: where it is put"),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="fetch an open data set first, or the five of open5; resumable")
    ] = False,
    accept_licences: Annotated[
        bool, typer.Option("--accept-licences", help="with --download: accept what is shown, without a question")
    ] = False,
    mirror: Annotated[
        list[str] | None,
        typer.Option(help="with --download: address of a folder with the same files, tried first; repeatable"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="rows per split, for a quick trial", min=1)] = None,
) -> None:
    """Write a data set's manifest, or read all files of a run.

    With --root: checks the folder, writes OUT/data/NAME/manifest.csv and compares the counts with the published ones.
    With --download: fetches the files first, into OUT/data/downloads.
    With settings: reads the manifest and every file, quarantines bad ones with reasons, and fills the cache.

    \b
    Examples:
      m3bind prepare ptbxl --root ptb-xl-1.0.3
      m3bind prepare open5 --download
      m3bind prepare mini5 --set data.manifest=m/manifest.csv
    """
    from m3bind.config import presets
    from m3bind.evaluate import benchmarks
    from m3bind.evaluate.benchmarks._collections import COLLECTIONS, sets_of

    if root is not None or download:
        refuse_ignored(context, "with --root or --download", "change", "seed", *([] if download else ONLINE))
        place = root or out / "data" / "downloads"
        roots = {each: place / each if download or settings in COLLECTIONS else place for each in sets_of(settings)}
        if download:
            _download(roots, accept_licences, mirror or [])
        raise typer.Exit(_prepare_sets(settings, roots, out / "data", name, limit))
    if settings not in presets() and settings in benchmarks.names():
        raise ConfigError(f"{settings} is a data set: give its folder with --root\n{benchmarks.get(settings).layout}")
    refuse_ignored(context, "without --root or --download", "limit", *ONLINE)
    run = run_of(settings, change, out, name, seed, device, workers)
    data = run.prepare().dataset
    for modality, splits in data.records.items():
        print(f"{modality:12s} " + "  ".join(f"{split} {len(records)}" for split, records in splits.items()))
    print(f"texts: {len(data.table)} distinct, {len(data.held_out)} held out for text agreement")
    if data.bad:
        print(f"{len(data.bad)} rows or files quarantined: {run.folder / 'quarantine.csv'}")
        raise typer.Exit(1)


def _download(roots: dict[str, Path], accepted: bool, mirrors: list[str]) -> None:
    """Fetch data sets into their folders, after their licences were shown and accepted."""
    from m3bind.evaluate.benchmarks import get
    from m3bind.evaluate.benchmarks._download import download, files_text

    print(files_text(list(roots)))
    if not accepted and not sys.stdin.isatty():
        raise ConfigError("read the licences above; if you accept them, add --accept-licences")
    if not accepted and not typer.confirm("Download these files under these licences?"):
        raise typer.Exit(1)
    for name, folder in roots.items():
        download(get(name), folder, mirrors)


def _prepare_sets(settings: str, roots: dict[str, Path], out: Path, name: str | None, limit: int | None) -> int:
    """Write the manifests of a data set or collection and print what they hold; 1 if rows were quarantined."""
    from m3bind.evaluate import benchmarks
    from m3bind.evaluate.benchmarks._collections import COLLECTIONS, prepare_together

    if settings in COLLECTIONS:
        done, manifest = prepare_together(name or settings, roots, out, limit)
    else:
        done = [benchmarks.prepare(benchmarks.get(settings), roots[settings], out / (name or settings), limit)]
        manifest = done[0].manifest
    print("\n".join([*(part.report() for part in done), f"manifest: {manifest}"]))
    return int(any(part.faults for part in done))


@app.command(rich_help_panel=MODELS)
def datasets(
    name: Annotated[str | None, typer.Argument(help="show all details of this data set")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="write the table into this Markdown file, between its markers")
    ] = None,
) -> None:
    """List known data sets: size, licence, access, layout.

    \b
    Examples:
      m3bind datasets
      m3bind datasets odir200x3
    """
    from m3bind.evaluate.benchmarks import _listing

    if markdown:
        _listing.update_document(markdown)
        return
    print(_listing.describe(name) if name else _listing.as_text())


@app.command(rich_help_panel=BIND)
def pretrain(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Stage 0: train the dual encoders without published weights.

    \b
    Example:
      m3bind pretrain demo
    """
    finish(run_of(settings, change, out, name, seed, device, workers), "pretrain")


@app.command(rich_help_panel=BIND)
def align(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    closed_form: Annotated[
        bool, typer.Option("--closed-form", help="bind without training (Procrustes, seconds)")
    ] = False,
) -> None:
    """Stage 1: bind the text spaces, trained or in closed form.

    \b
    Examples:
      m3bind align demo
      m3bind align demo --closed-form
    """
    finish(run_of(settings, change, out, name, seed, device, workers), "closed_form" if closed_form else "align")


@app.command(rich_help_panel=BIND)
def distill(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Stage 2: distil the text encoders into one student (SESKD).

    \b
    Example:
      m3bind distill demo
    """
    finish(run_of(settings, change, out, name, seed, device, workers), "distill")
