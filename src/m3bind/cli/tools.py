"""Commands about files, models and the machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import (
    MODELS,
    TOOLS,
    Change,
    Device,
    Json,
    Out,
    Root,
    Settings,
    Workers,
    app,
    compute_of,
    prepare_torch,
)
from m3bind.errors import ConfigError


@app.command(rich_help_panel=MODELS)
def check(
    paths: Annotated[list[Path], typer.Argument(help="files, folders or manifests")],
    modality: Annotated[str, typer.Option(help="modality of the files; default: detected")] = "",
    root: Root = None,
    space: Annotated[
        Path | None, typer.Option(help="space: also report files that are unlike its training data, with the reason")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="contact sheet to write, .png or .html")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print warnings and refusals only")] = False,
    json_file: Json = None,
) -> None:
    """Show how each file is read and what looks wrong.

    Names that could be a person's are masked.

    \b
    Examples:
      m3bind check scans/ --sheet scans.html
      m3bind check manifest.csv --json check.json
      m3bind check scans/ --space runs/demo/space
    """
    from m3bind.core.files import write_json
    from m3bind.pipeline import check as checks

    if sheet and sheet.suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"--sheet {sheet}: a contact sheet is a .png or .html file")
    opened = None
    if space is not None:
        from m3bind.space.bundle import load

        opened = load(space, compute_of(None, None, default="cpu").device)
        if not opened.measures:
            raise ConfigError(f"{space} holds no measure of unlike files; fit it again with this version")
    answers = checks.check_items(checks.find_items(paths, modality, root), thumbnails=sheet is not None, space=opened)
    print(checks.as_text(answers, verbose=not quiet))
    if sheet:
        (checks.contact_page if sheet.suffix.lower() == ".html" else checks.contact_sheet)(answers, sheet)
        chosen = len(checks.on_sheet(len(answers)))
        print(f"contact sheet: {sheet}" + (f" ({chosen} of {len(answers)})" if chosen < len(answers) else ""))
    if json_file:
        write_json(json_file, {"files": [answer.as_dict() for answer in answers]})
    if any(answer.status == "refused" for answer in answers):
        raise typer.Exit(1)


@app.command(rich_help_panel=MODELS)
def phantom(
    out: Annotated[Path, typer.Argument(help="folder for the cohort")],
    patients: Annotated[int, typer.Option(help="number of virtual patients")] = 600,
    seed: Annotated[int, typer.Option(help="random seed")] = 0,
    dicom: Annotated[bool, typer.Option("--dicom", help="also write them as DICOM, into OUT/dicom")] = False,
) -> None:
    """Write virtual patients: five modalities, synthetic.

    \b
    Examples:
      m3bind phantom cohort --patients 200
      m3bind phantom cohort --patients 20 --dicom
    """
    from m3bind.data.phantom import generate

    print(generate(out, patients=patients, seed=seed))
    if dicom:
        from m3bind.data.phantom.dicom import write_dicom

        print(write_dicom(out, out / "dicom"))


@app.command(rich_help_panel=TOOLS)
def plan(
    settings: Settings,
    change: Change = None,
    out: Out = Path("runs"),
    gpu: Annotated[str, typer.Option(help="also estimate for a GPU by its published rates, e.g. a100-80gb")] = "",
    gpus: Annotated[int, typer.Option(help="number of GPUs that share each batch", min=1)] = 1,
    cores: Annotated[int | None, typer.Option(help="cores that decode files; default: this machine's", min=1)] = None,
    disk: Annotated[float, typer.Option(help="speed of the disk in GB/s", min=0.001, max=10000)] = 1.0,
    json_file: Json = None,
) -> None:
    """Estimate time, memory and disk of each stage, and what binds.

    Times come from a short measurement on this machine. What is missing (data, weights, tokenizers) is assumed.

    \b
    Examples:
      m3bind plan paper
      m3bind plan paper --gpu a100-80gb --gpus 8 --cores 64 --json plan.json
    """
    import tempfile

    from m3bind.config import load_config
    from m3bind.core.files import write_json
    from m3bind.pipeline import plan as plans
    from m3bind.pipeline.plan.table import as_text

    config = load_config(settings, change or [])
    machine = plans.machine_of(config, gpu, gpus, cores, disk)
    prepare_torch()
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        work, assets = plans.work_of(config, Path(temporary) / "plan", out / "cache", notes)
        found = plans.make_plan(config, assets, work, machine, notes, gpu)
    print(as_text(found))
    if json_file:
        write_json(json_file, found.to_json())


@app.command(rich_help_panel=MODELS)
def models(
    json_file: Json = None,
    markdown: Annotated[Path | None, typer.Option(help="write the table into this Markdown file")] = None,
) -> None:
    """List all models: input, dimension, licences, weights.

    \b
    Example:
      m3bind models --json models.json
    """
    from m3bind.core.files import write_json
    from m3bind.models import catalog

    found = catalog.rows()
    catalog.print_table(found)
    if markdown:
        catalog.update_document(markdown)
    if json_file:
        write_json(json_file, catalog.as_dict(found))


@app.command("check-model", rich_help_panel=MODELS)
def check_model(
    model: Annotated[str, typer.Argument(help="a published model, see m3bind models")],
    checkpoint: Annotated[
        str | None, typer.Argument(help="its weights: file, folder, or hub id owner/name or owner/name:file")
    ] = None,
    revision: Annotated[str, typer.Option(help="commit, for a hub id")] = "",
    save_reference: Annotated[
        bool, typer.Option("--save-reference", help="store the embeddings, compared at the next call")
    ] = False,
    device: Device = "cpu",
    workers: Workers = None,
    json_file: Json = None,
) -> None:
    """Verify a model against reference embeddings.

    Without a checkpoint: stored embeddings of fixed weights. With one: your checkpoint as well.

    \b
    Examples:
      m3bind check-model flair
      m3bind check-model flair flair_resnet.zip --save-reference
    """
    from m3bind.core.files import write_json
    from m3bind.models.weights.check import check_model

    place = compute_of(device, workers, default="cpu").device
    found = check_model(model, checkpoint, revision, save_reference, place)
    print(found.as_text())
    if found.saved:
        print(f"reference: {found.saved}")
    if json_file:
        write_json(json_file, found.as_dict())
    if not found.passed:
        print(f"m3bind: {model} does not reproduce its reference; see FAIL above", file=sys.stderr)
        raise typer.Exit(1)


@app.command(rich_help_panel=MODELS)
def convert(
    file: Annotated[Path, typer.Argument(help="refused checkpoint: .ckpt, .pt, .pth, TorchScript, or a zip of one")],
    out: Annotated[Path, typer.Argument(help="the .safetensors file to write")],
    trusted: Annotated[bool, typer.Option("--i-trust-this-file", help="you trust the file's authors")] = False,
) -> None:
    """Convert a checkpoint to safetensors, executing nothing.

    For checkpoints that hold other objects beside weights.

    \b
    Example:
      m3bind convert vit_base.ckpt vit_base.safetensors --i-trust-this-file
    """
    from m3bind.models.weights.convert import convert as converted

    print(converted(file, out, trusted).as_text())
    print(out)


@app.command(rich_help_panel=TOOLS)
def doctor(json_file: Json = None) -> None:
    """Report versions, hardware and extras, and what is missing.

    \b
    Example:
      m3bind doctor
    """
    from m3bind.pipeline.doctor import examine

    raise typer.Exit(examine(json_file))
