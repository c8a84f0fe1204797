"""Commands that measure: figures of a run, whole tables, differences, leaks, ablations."""

from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import Change, Json, Name, Out, Settings, app, prepare_torch
from m3bind.errors import ConfigError


@app.command()
def evaluate(
    space: Annotated[Path | None, typer.Argument(help="run folder or space folder")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="measure the space on this manifest instead of showing the run's figures")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="folder the manifest's paths are relative to")] = None,
    split: Annotated[str, typer.Option(help="split to measure")] = "test",
    suite: Annotated[
        str | None, typer.Option(help="compute whole tables instead: paper, mini5, or a settings file")
    ] = None,
    change: Change = None,
    out: Out = Path("runs"),
    only: Annotated[
        list[str] | None, typer.Option(help="of a suite: cells with this word (table=1, retina, clip ...); repeatable")
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="of a suite: only list what is missing, and why")] = False,
    json_file: Json = None,
) -> None:
    """Zero-shot, retrieval and text agreement, each with n, chance and interval; or whole tables with --suite.

    Examples:  m3bind evaluate runs/demo   |   m3bind evaluate runs/demo/space --manifest mine.csv --json out.json
    |   m3bind evaluate --suite paper --set data=runs/data --only table=1
    """
    prepare_torch()
    if suite is not None:
        from m3bind.experiments.commands import evaluate_suite

        code = evaluate_suite(suite, change or [], out, only or [], missing, json_file)
        raise typer.Exit(code)
    if space is None:
        raise ConfigError("give a run or space folder, or a suite with --suite (paper, mini5)")
    if manifest is None:
        from m3bind.pipeline.outputs import show_results

        table, bad = show_results(space), False
    else:
        from m3bind.experiments.commands import evaluate_space

        table, bad = evaluate_space(space, manifest, root, split)
    if json_file:
        table.save(json_file)
    raise typer.Exit(1 if bad else 0)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="run folder")],
    second: Annotated[Path, typer.Argument(help="run folder")],
    everything: Annotated[bool, typer.Option("--all", help="every figure, not only those that changed")] = False,
    json_file: Json = None,
) -> None:
    """What differs between two runs: settings, data, versions, and figures with a paired test over patients.

    Example:  m3bind compare runs/demo runs/demo-literal
    """
    from m3bind.experiments.commands import compare_runs

    text, rows = compare_runs(first, second, everything)
    print(text)
    if json_file:
        from m3bind.core.files import write_json

        write_json(json_file, rows)


@app.command()
def leaks(
    manifest: Annotated[Path, typer.Argument(help="manifest")],
    root: Annotated[Path | None, typer.Option(help="folder the manifest's paths are relative to")] = None,
    space: Annotated[Path | None, typer.Option(help="space: look for near-duplicates by embedding, too")] = None,
    threshold: Annotated[float | None, typer.Option(help="cosine of a near-duplicate")] = None,
) -> None:
    """What the test split shares with the training split: patients, contents, near-duplicates, and models' own data.

    Example:  m3bind leaks runs/data/odir200x3/manifest.csv --space runs/paper/space
    """
    from m3bind.experiments.commands import leak_report

    prepare_torch()
    text, found = leak_report(manifest, root, space, threshold)
    print(text)
    raise typer.Exit(1 if found else 0)


@app.command()
def ablate(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seeds: Annotated[int, typer.Option(help="number of seeds: 0, 1, ...")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="run only these variants; repeatable")] = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="compare ways to bind instead: Procrustes, C-MCR, TextME, ...")
    ] = False,
    json_file: Json = None,
) -> None:
    """The paper's Tables 4 and 5 and our own ablations, mean and spread over seeds; or all ways to bind side by side.

    Examples:  m3bind ablate demo --seeds 3   |   m3bind ablate demo --methods --seeds 5
    """
    from m3bind.config import load_config
    from m3bind.core.files import write_json
    from m3bind.experiments import ablation as ablations

    config = load_config(settings, change or [])
    prepare_torch()
    if methods:
        from m3bind.experiments import method_comparison

        table = method_comparison.compare_methods(
            config, out / (name or f"methods-{config.name}"), range(seeds), only or ()
        )
        print(method_comparison.as_text(table))
        if json_file:
            write_json(json_file, table)
        return
    rows = ablations.ablate(config, out / (name or f"ablate-{config.name}"), range(seeds), only or ())
    print(ablations.as_text(rows))
    if json_file:
        write_json(json_file, rows)


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(help="run folder, or with --paper a suite's folder")] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="the paper's tables beside ours: value, difference, interval, what is missing"),
    ] = False,
) -> None:
    """Write report.html of a finished run again; with --paper the tables of a suite, printed and as tables.html.

    Examples:  m3bind report runs/demo   |   m3bind report runs/suite-paper --paper
    """
    prepare_torch()
    if paper:
        from m3bind.experiments.commands import report_suite

        print(report_suite(run))
        return
    from m3bind.pipeline.outputs import rewrite_report

    if run is None:
        raise ConfigError("give a run folder, e.g. runs/demo")
    print(rewrite_report(run))
