"""m3bind COMMAND: thin layer that parses, calls and prints. Heavy libraries are imported inside the commands.

Exit code 0 only when everything asked for was done; 1 when work failed or parts were set aside; 2 for wrong use.
"""

import errno
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from m3bind.errors import ConfigError, M3BindError

app = typer.Typer(
    name="m3bind",
    help="Bind CLIP-like medical models of any modality into one text-anchored embedding space.\n\n"
    "Start with:  m3bind demo   (virtual patients, about 5 minutes on two cores)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Settings = Annotated[
    str, typer.Argument(metavar="SETTINGS", help="preset (demo, mini5, paper, paper-literal, quick) or a YAML file")
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a setting, e.g. --set align.lam=1; repeatable"),
]
Out = Annotated[Path, typer.Option("--out", help="folder of all runs")]
Name = Annotated[str | None, typer.Option("--name", help="name of the run's folder; default: the preset's name")]
Seed = Annotated[int | None, typer.Option("--seed", help="seed of everything random")]
Json = Annotated[Path | None, typer.Option("--json", help="also write what is printed as JSON")]


INTERRUPTED = 130


def main() -> None:
    """Entry point: errors become one clear line and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except M3BindError as error:
        print(f"m3bind: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("m3bind: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        place = error.filename or "a log or cache file"
        print(f"m3bind: {error.strerror}: {place}; free space, then run the same command", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        show: Callable[[], str] | None = getattr(error, "format_message", None)  # click's usage errors
        if show is None:
            raise
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        print(f"m3bind: {show().rstrip('.')}{hint}", file=sys.stderr)
        sys.exit(2)


def _run(settings: str, change: list[str] | None, out: Path, name: str | None, seed: int | None) -> Any:
    """The run a command works on."""
    from m3bind.config import load_config

    overrides = list(change or [])
    if name:
        overrides.append(f"name={name}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    config = load_config(settings, overrides)
    _prepare_torch()
    from m3bind.fit import Run

    return Run(config, out / config.name, cache=out / "cache")


def _prepare_torch() -> None:
    import torch

    torch.set_float32_matmul_precision("medium")


def _finish(run: Any, until: str) -> None:
    """Train up to a stage, print before/after, write bundle and report."""
    from m3bind.finish import finish

    code = finish(run, until)
    if code:
        raise typer.Exit(code)


@app.command()
def demo(
    out: Out = Path("runs"),
    quick: Annotated[bool, typer.Option(help="a smaller cohort, for CI")] = False,
    change: Change = None,
) -> None:
    """Make virtual patients, train five dual encoders, bind and distil them, measure, write a report.

    Example:  m3bind demo
    """
    _finish(_run("quick" if quick else "demo", change, out, None, None), "distill")


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
    _finish(_run(settings, change, out, name, seed), until)


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
    run = _run(settings, change, out, name, seed)
    for modality, splits in run.corpus.records.items():
        print(f"{modality:12s} " + "  ".join(f"{split} {len(records)}" for split, records in splits.items()))
    print(f"texts: {len(run.corpus.table)} distinct, {len(run.corpus.held_out)} held out for text agreement")
    if run.corpus.bad:
        print(f"{len(run.corpus.bad)} rows or files set aside: {run.folder / 'quarantine.csv'}")
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
    _finish(_run(settings, change, out, name, seed), "pretrain")


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
    _finish(_run(settings, change, out, name, seed), "closed_form" if closed_form else "align")


@app.command()
def distill(
    settings: Settings, change: Change = None, out: Out = Path("runs"), name: Name = None, seed: Seed = None
) -> None:
    """Stage 2: distil the bound text towers into one shared text encoder (SESKD).

    Example:  m3bind distill demo
    """
    _finish(_run(settings, change, out, name, seed), "distill")


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
    _prepare_torch()
    if suite is not None:
        from m3bind.experiments import evaluate_suite

        code = evaluate_suite(suite, change or [], out, only or [], missing, json_file)
        raise typer.Exit(code)
    if space is None:
        raise ConfigError("give a run or space folder, or a suite with --suite (paper, mini5)")
    if manifest is None:
        from m3bind.finish import show_results

        table, bad = show_results(space), False
    else:
        from m3bind.experiments import evaluate_space

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
    from m3bind.experiments import compare_runs

    text, rows = compare_runs(first, second, everything)
    print(text)
    if json_file:
        from m3bind.files import write_json

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
    from m3bind.experiments import leak_report

    _prepare_torch()
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
    from m3bind import ablate as ablations
    from m3bind.config import load_config
    from m3bind.files import write_json

    config = load_config(settings, change or [])
    _prepare_torch()
    if methods:
        from m3bind import ablate_methods

        table = ablate_methods.compare_methods(
            config, out / (name or f"methods-{config.name}"), range(seeds), only or ()
        )
        print(ablate_methods.as_text(table))
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
    _prepare_torch()
    if paper:
        from m3bind.experiments import report_suite

        print(report_suite(run))
        return
    from m3bind.finish import rewrite_report

    if run is None:
        raise ConfigError("give a run folder, e.g. runs/demo")
    print(rewrite_report(run))


@app.command()
def encode(
    paths: Annotated[list[Path], typer.Argument(help="files, or one manifest")],
    space: Annotated[Path, typer.Option(help="space folder, e.g. runs/demo/space")],
    out: Annotated[Path, typer.Option(help="folder for embeddings.npy and items.parquet")],
    modality: Annotated[str | None, typer.Option(help="what the files are (not needed for a manifest)")] = None,
) -> None:
    """Files -> embeddings; bad files go to quarantine.csv, the rest goes on.

    Example:  m3bind encode scans/*.png --modality xray --space runs/demo/space --out encoded
    """
    from m3bind.finish import encode_paths

    _prepare_torch()
    if encode_paths(space, paths, modality, out):
        raise typer.Exit(1)


@app.command()
def search(
    encoded: Annotated[Path, typer.Argument(help="folder written by encode")],
    space: Annotated[Path, typer.Option(help="space folder")],
    text: Annotated[str | None, typer.Option(help="query in words")] = None,
    file: Annotated[Path | None, typer.Option(help="query by a file of any modality")] = None,
    modality: Annotated[str | None, typer.Option(help="modality of the query file")] = None,
    target: Annotated[str | None, typer.Option(help="only hits of this modality")] = None,
    k: Annotated[int, typer.Option(help="number of hits")] = 10,
    json_file: Json = None,
) -> None:
    """Exact search over encoded files, by words or by a file of any modality.

    Examples:  m3bind search encoded --space runs/demo/space --text "atrial fibrillation"
               m3bind search encoded --space runs/demo/space --file a.png --modality xray --target ecg
    """
    from m3bind.finish import search_encoded

    if (text is None) == (file is None):
        raise ConfigError("search needs either --text or --file")
    if file is not None and modality is None:
        raise ConfigError("--file needs --modality (what the query file is)")
    _prepare_torch()
    search_encoded(encoded, space, text, file, modality, target, k, json_file)


@app.command()
def check(
    paths: Annotated[list[Path], typer.Argument(help="files, folders or manifests")],
    modality: Annotated[str, typer.Option(help="what the files are; default: recognised")] = "",
    sheet: Annotated[Path | None, typer.Option(help="contact sheet to write, .png or .html")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="warnings and refusals only, no steps")] = False,
    json_file: Json = None,
) -> None:
    """What every file is, what was done to read it, what looks wrong. Names that could be a person's are masked.

    Examples:  m3bind check scans/ --sheet scans.html   |   m3bind check manifest.csv --json check.json
    """
    from m3bind import check as checks
    from m3bind.files import write_json

    if sheet and sheet.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--sheet {sheet}: a contact sheet is a .png or a .html")
    answers = checks.check_items(checks.find_items(paths, modality), pictures=sheet is not None)
    print(checks.as_text(answers, verbose=not quiet))
    if sheet:
        (checks.contact_page if sheet.suffix.lower() == ".html" else checks.contact_sheet)(answers, sheet)
        chosen = len(checks.on_sheet(len(answers)))
        print(f"contact sheet: {sheet}" + (f" ({chosen} of {len(answers)})" if chosen < len(answers) else ""))
    if json_file:
        write_json(json_file, {"files": [answer.as_dict() for answer in answers]})
    if any(answer.status == "refused" for answer in answers):
        raise typer.Exit(1)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="folder for the cohort")],
    patients: Annotated[int, typer.Option(help="number of virtual patients")] = 600,
    seed: Annotated[int, typer.Option(help="seed")] = 0,
    dicom: Annotated[bool, typer.Option("--dicom", help="also write them as DICOM, into its folder dicom")] = False,
) -> None:
    """Write virtual patients (SYNTHETIC: five modalities from one clinical state) with a manifest.

    Examples:  m3bind phantom cohort --patients 200   |   m3bind phantom cohort --patients 20 --dicom
    """
    from m3bind.data.phantom import generate

    print(generate(out, patients=patients, seed=seed))
    if dicom:
        from m3bind.data.phantom.dicom import write_dicom

        print(write_dicom(out, out / "dicom"))


@app.command()
def plan(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    gpu: Annotated[str, typer.Option(help="also estimate for a GPU by its published rates, e.g. a100-80gb")] = "",
    json_file: Json = None,
) -> None:
    """What a run will take: parameters, memory, disk and time per stage, from a short measurement.

    Examples:  m3bind plan paper   |   m3bind plan paper --gpu a100-80gb --json plan.json
    """
    import tempfile

    from m3bind import plan as plans
    from m3bind.config import load_config
    from m3bind.files import write_json

    config = load_config(settings, change or [])
    _prepare_torch()
    with tempfile.TemporaryDirectory() as temporary:
        work, assets = plans.work_of(config, Path(temporary) / "plan", out / "cache")
        found = plans.make_plan(config, assets, work, gpu)
    print(plans.as_text(found))
    if json_file:
        write_json(json_file, found.to_json())


@app.command()
def models(
    json_file: Json = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table into this Markdown file, as in docs/")] = None,
) -> None:
    """All models: what for, input, dimension, licences of code and weights, where the weights are, how verified.

    Example:  m3bind models --json models.json
    """
    from m3bind.files import write_json
    from m3bind.models import catalog

    found = catalog.rows()
    catalog.print_table(found)
    if markdown:
        catalog.update_document(markdown)
    if json_file:
        write_json(json_file, catalog.as_dict(found))


@app.command(name="check-model")
def check_model(
    model: Annotated[str, typer.Argument(help="a published model, see m3bind models")],
    checkpoint: Annotated[
        str | None, typer.Argument(help="its weights: file, folder, or hub id owner/name or owner/name:file")
    ] = None,
    revision: Annotated[str, typer.Option(help="commit, for a hub id")] = "",
    save_reference: Annotated[
        bool, typer.Option("--save-reference", help="keep today's embeddings, to compare with at the next call")
    ] = False,
    json_file: Json = None,
) -> None:
    """Does a model compute here what it should: stored embeddings without any file, then a checkpoint of yours.

    Examples:  m3bind check-model flair   |   m3bind check-model flair flair_resnet.zip --save-reference
    """
    from m3bind.files import write_json
    from m3bind.models import reference

    found = reference.check_model(model, checkpoint, revision, save_reference)
    print(found.as_text())
    if found.saved:
        print(f"reference: {found.saved}")
    if json_file:
        write_json(json_file, found.as_dict())
    if not found.passed:
        print(f"m3bind: {model} does not compute what it should; see FAIL above", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def convert(
    file: Annotated[
        Path, typer.Argument(help="checkpoint that is refused: .ckpt, .pt, .pth, TorchScript, a zip with one")
    ],
    out: Annotated[Path, typer.Argument(help="the .safetensors file to write")],
    trusted: Annotated[bool, typer.Option("--i-trust-this-file", help="you trust the file's authors")] = False,
) -> None:
    """A checkpoint that holds other things beside weights, as safetensors. Nothing of the file is executed.

    Example:  m3bind convert vit_base.ckpt vit_base.safetensors --i-trust-this-file
    """
    from m3bind.models.convert import convert as converted

    print(converted(file, out, trusted).as_text())
    print(out)


@app.command()
def doctor(json_file: Json = None) -> None:
    """What this machine has: versions, threads, memory, precision, optional weights; says what is missing.

    Example:  m3bind doctor
    """
    from m3bind.doctor import examine

    raise typer.Exit(examine(json_file))


if __name__ == "__main__":
    main()
