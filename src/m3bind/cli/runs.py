"""Commands that train: from data sets to a bound space."""

from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import Change, Name, Out, Seed, Settings, app, finish, run_of
from m3bind.errors import ConfigError


@app.command()
def demo(
    out: Out = Path("runs"),
    quick: Annotated[bool, typer.Option(help="a smaller cohort, for CI")] = False,
    change: Change = None,
) -> None:
    """Make virtual patients, train five dual encoders, bind and distil them, measure, write a report.

    Example:  m3bind demo
    """
    finish(run_of("quick" if quick else "demo", change, out, None, None), "distill")


@app.command()
def fit(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    until: Annotated[str, typer.Option(help="last stage: pretrain, closed_form, align or distill")] = "distill",
) -> None:
    """All stages, resumable: the same command after a kill goes on where it stopped.

    Examples:  m3bind fit mini5 --set data.manifest=mini5/manifest.csv   |   m3bind fit mine.yaml --seed 1
    """
    finish(run_of(settings, change, out, name, seed), until)


@app.command()
def prepare(
    settings: Annotated[str, typer.Argument(help="settings of a run, or a data set's name with --root")],
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    root: Annotated[Path | None, typer.Option(help="folder of the data set, as its publisher lays it out")] = None,
    limit: Annotated[int | None, typer.Option(help="rows per split, for a quick look", min=1)] = None,
) -> None:
    """Make a data set's manifest from its official layout; or read all files of a run. Trains nothing.

    With --root: checks the folder, writes OUT/data/NAME/manifest.csv and compares the counts with the published ones.
    With settings: reads the manifest and every file, sets bad ones aside with reasons, and fills the cache.

    Examples:  m3bind prepare ptbxl --root ptb-xl-1.0.3   |   m3bind prepare mini5 --set data.manifest=m/manifest.csv
    """
    from m3bind.config import presets
    from m3bind.evaluate import benchmarks

    if root is not None:
        done = benchmarks.prepare(benchmarks.get(settings), root, out / "data" / (name or settings), limit)
        print(f"{done.report()}\nmanifest: {done.manifest}")
        raise typer.Exit(1 if done.faults else 0)
    if settings not in presets() and settings in benchmarks.names():
        raise ConfigError(f"{settings} is a data set: give its folder with --root\n{benchmarks.get(settings).layout}")
    run = run_of(settings, change, out, name, seed)
    data = run.prepare().dataset
    for modality, splits in data.records.items():
        print(f"{modality:12s} " + "  ".join(f"{split} {len(records)}" for split, records in splits.items()))
    print(f"texts: {len(data.table)} distinct, {len(data.held_out)} held out for text agreement")
    if data.bad:
        print(f"{len(data.bad)} rows or files set aside: {run.folder / 'quarantine.csv'}")
        raise typer.Exit(1)


@app.command()
def datasets(
    name: Annotated[str | None, typer.Argument(help="show everything about this one")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table into this file, between its marks")] = None,
) -> None:
    """The data sets that prepare knows: what for, size, licence, how to get them, layout.

    Examples:  m3bind datasets   |   m3bind datasets odir200x3
    """
    from m3bind.evaluate.benchmarks import _listing

    if markdown:
        _listing.update_document(markdown)
        return
    print(_listing.describe(name) if name else _listing.as_text())


@app.command()
def pretrain(
    settings: Settings, change: Change = None, out: Out = Path("runs"), name: Name = None, seed: Seed = None
) -> None:
    """Stage 0: train the dual encoders that have no published weights.

    Example:  m3bind pretrain demo
    """
    finish(run_of(settings, change, out, name, seed), "pretrain")


@app.command()
def align(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seed: Seed = None,
    closed_form: Annotated[
        bool, typer.Option("--closed-form", help="bind without training (Procrustes, seconds)")
    ] = False,
) -> None:
    """Stage 1: bind the text spaces; with --closed-form by rotation alone, without training.

    Examples:  m3bind align demo   |   m3bind align demo --closed-form
    """
    finish(run_of(settings, change, out, name, seed), "closed_form" if closed_form else "align")


@app.command()
def distill(
    settings: Settings, change: Change = None, out: Out = Path("runs"), name: Name = None, seed: Seed = None
) -> None:
    """Stage 2: distil the bound text towers into one shared text encoder (SESKD).

    Example:  m3bind distill demo
    """
    finish(run_of(settings, change, out, name, seed), "distill")
