"""Commands about files, models and the machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import Change, Json, Out, Settings, app, prepare_torch
from m3bind.errors import ConfigError


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
    from m3bind.core.files import write_json
    from m3bind.pipeline import check as checks

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

    from m3bind.config import load_config
    from m3bind.core.files import write_json
    from m3bind.pipeline import plan as plans

    config = load_config(settings, change or [])
    prepare_torch()
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
    from m3bind.core.files import write_json
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
    from m3bind.core.files import write_json
    from m3bind.models.weights import reference

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
    from m3bind.models.weights.convert import convert as converted

    print(converted(file, out, trusted).as_text())
    print(out)


@app.command()
def doctor(json_file: Json = None) -> None:
    """What this machine has: versions, threads, memory, precision, optional weights; says what is missing.

    Example:  m3bind doctor
    """
    from m3bind.pipeline.doctor import examine

    raise typer.Exit(examine(json_file))
