"""Commands that evaluate: metrics of a run, whole tables, differences, leaks, ablations."""

from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import (
    EVALUATE,
    Change,
    Device,
    Json,
    Name,
    Out,
    Root,
    Settings,
    Workers,
    app,
    compute_of,
    config_of,
    prepare_torch,
    refuse_ignored,
)
from m3bind.errors import ConfigError


@app.command(rich_help_panel=EVALUATE)
def evaluate(
    context: typer.Context,
    space: Annotated[Path | None, typer.Argument(help="run folder or space folder")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="evaluate the space on this manifest instead of showing the run's results")
    ] = None,
    root: Root = None,
    split: Annotated[str, typer.Option(help="split to evaluate")] = "test",
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="with --manifest: YAML file of classes and prompts, or a packaged prompt set; repeatable"),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="compute whole tables: paper, mini5, open5, or a settings file")
    ] = None,
    change: Change = None,
    out: Out = Path("runs"),
    only: Annotated[
        list[str] | None,
        typer.Option(help="with --suite: cells that match this term (table=1, retina, clip ...); repeatable"),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="with --suite: list missing cells and the reasons, compute nothing")
    ] = False,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="the run's test files at lower resolution, with noise, JPEG, ...")
    ] = False,
    device: Device = None,
    workers: Workers = None,
    json_file: Json = None,
) -> None:
    """Zero-shot, retrieval and text agreement, with intervals.

    Every value comes with its number of items and chance level. With --suite: whole tables of the paper.

    \b
    Examples:
      m3bind evaluate runs/demo
      m3bind evaluate runs/demo --robustness
      m3bind evaluate runs/demo/space --manifest mine.csv --json out.json
      m3bind evaluate runs/demo/space --manifest mine.csv --prompts mine.yaml
      m3bind evaluate --suite paper --set data=runs/data --only table=1
    """
    if suite is not None:
        refuse_ignored(context, "with --suite", "space", "manifest", "root", "split", "prompts", "robustness")
    elif manifest is not None:
        refuse_ignored(context, "with --manifest", "out", "only", "missing", "robustness")
    else:
        shown = "manifest", "root", "split", "prompts", "change", "out", "only", "missing"
        refuse_ignored(context, "without --manifest or --suite: the run's stored results are shown", *shown)
    compute = compute_of(device, workers)
    if suite is not None:
        from m3bind.experiments.commands import evaluate_suite

        code = evaluate_suite(suite, change or [], out, only or [], missing, json_file, compute)
        raise typer.Exit(code)
    if space is None:
        raise ConfigError("give a run or space folder, or a suite with --suite (paper, mini5, open5)")
    if robustness:
        from m3bind.pipeline.outputs import show_robustness

        table, bad = show_robustness(space, compute), False
    elif manifest is None:
        from m3bind.pipeline.outputs import show_results

        table, bad = show_results(space), False
    else:
        from m3bind.experiments.commands import evaluate_space, evaluation_settings

        settings = evaluation_settings(change or [], prompts or [])
        table, bad = evaluate_space(space, manifest, root, split, compute, settings)
    if json_file:
        table.save(json_file)
    raise typer.Exit(1 if bad else 0)


@app.command(rich_help_panel=EVALUATE)
def compare(
    first: Annotated[Path, typer.Argument(help="run folder")],
    second: Annotated[Path, typer.Argument(help="run folder")],
    everything: Annotated[bool, typer.Option("--all", help="all metrics, not only those that changed")] = False,
    json_file: Json = None,
) -> None:
    """Compare two runs: settings, data, versions, paired tests.

    The paired test of each metric resamples patients.

    \b
    Example:
      m3bind compare runs/demo runs/demo-literal
    """
    from m3bind.experiments.commands import compare_runs

    text, rows = compare_runs(first, second, everything)
    print(text)
    if json_file:
        from m3bind.core.files import write_json

        write_json(json_file, rows)


@app.command(rich_help_panel=EVALUATE)
def leaks(
    manifest: Annotated[Path, typer.Argument(help="manifest")],
    root: Root = None,
    space: Annotated[Path | None, typer.Option(help="space: also data sets that its models were trained on")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="minimum correlation of near-duplicates; default 0.9", min=0.5, max=1.0)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="folder that stores what was read of the files, to resume or repeat")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page with the pairs as images")] = None,
    json_file: Json = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Find what the splits share, and near-duplicates within them.

    Patients, file contents, and near-duplicates: files that show the same after another compression, size, crop or
    flip. Exits with 1 if splits share something, rows could not be compared, or a model of --space was trained on them.

    \b
    Examples:
      m3bind leaks runs/data/odir200x3/manifest.csv --page leaks.html
      m3bind leaks runs/data/odir200x3/manifest.csv --space runs/paper/space
    """
    compute = compute_of(device, workers)
    from m3bind.experiments.leaks import LeakOptions, leak_report

    text, found = leak_report(manifest, LeakOptions(root, space, threshold, cache, page, json_file), compute)
    print(text)
    raise typer.Exit(1 if found else 0)


@app.command(rich_help_panel=EVALUATE)
def ablate(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    name: Name = None,
    seeds: Annotated[int, typer.Option(help="number of seeds: 0, 1, ...")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="run only these variants; repeatable")] = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="compare binding methods: Procrustes, C-MCR, TextME, ...")
    ] = False,
    device: Device = None,
    workers: Workers = None,
    json_file: Json = None,
) -> None:
    """Ablations or binding methods, mean and spread over seeds.

    The paper's Tables 4 and 5 and our own ablations; with --methods every binding method.

    \b
    Examples:
      m3bind ablate demo --seeds 3
      m3bind ablate demo --methods --seeds 5
    """
    from m3bind.core.files import write_json
    from m3bind.experiments import ablation as ablations

    config = config_of(settings, change, **{"compute.device": device, "compute.workers": workers})
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


@app.command(rich_help_panel=EVALUATE)
def report(
    run: Annotated[Path | None, typer.Argument(help="run folder, or with --paper a suite's folder")] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="the paper's tables beside ours: value, difference, interval, missing cells"),
    ] = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Rewrite report.html, or the paper's tables with --paper.

    \b
    Examples:
      m3bind report runs/demo
      m3bind report runs/suite-paper --paper
    """
    compute = compute_of(device, workers)
    if paper:
        from m3bind.experiments.commands import report_suite

        print(report_suite(run))
        return
    from m3bind.pipeline.outputs import rewrite_report

    if run is None:
        raise ConfigError("give a run folder, e.g. runs/demo")
    print(rewrite_report(run, compute))
