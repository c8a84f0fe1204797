"""The command that exports a space or its embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3bind.cli.app import MODELS, Device, Root, Workers, app, compute_of
from m3bind.errors import ConfigError

if TYPE_CHECKING:
    from m3bind.export import EvaluationResult


@app.command(rich_help_panel=MODELS)
def export(
    source: Annotated[Path, typer.Argument(metavar="SPACE", help="space folder; for parquet, npz: folder of encode")],
    to: Annotated[str, typer.Option(help="sentence-transformers, hf, onnx, hub, parquet or npz")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    results: Annotated[
        Path | None, typer.Option(help="hub: results.json for the model card; default: that of the space's run")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="onnx: files to verify the image towers on; default: generated ones")
    ] = None,
    root: Root = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="parquet, npz: column beside id and modality, e.g. path; may identify patients"),
    ] = None,
    device: Device = "cpu",
    workers: Workers = None,
) -> None:
    """Export a space: sentence-transformers, ONNX, hub, Parquet.

    ONNX files are made on the CPU, and compared with the space on --device.

    \b
    Examples:
      m3bind export runs/demo/space --to sentence-transformers --out student
      m3bind export runs/demo/space --to hub --out repository
      m3bind export encoded --to parquet --out table --column path
    """
    if root and not manifest:
        raise ConfigError("--root has no effect: it is the folder of a manifest's paths, and no --manifest is given")
    if manifest and to != "onnx":
        raise ConfigError(f"--manifest has no effect with --to {to}: its files verify the image towers of onnx")
    from m3bind.export import ARRAYS, export_arrays, export_space
    from m3bind.export.samples import read_inputs

    if to in ARRAYS:
        from m3bind.encode.job import open_encoded

        done = export_arrays(open_encoded(source), to, out, column or ())
    else:
        from m3bind.space.bundle import load

        compute = compute_of(device, workers, default="cpu")
        space = load(source, compute.device)
        inputs = read_inputs(space, manifest, compute.workers, root) if manifest else None
        done = export_space(space, to, out, inputs=inputs, results=_results(source, results) if to == "hub" else ())
    print(f"{done.folder}: {done.kind}; open it with: {done.use}")
    if done.refused:
        raise typer.Exit(1)


def _results(source: Path, results: Path | None) -> list["EvaluationResult"]:
    """The headline results of a run at its last stage."""
    from m3bind.evaluate.pivot import headline
    from m3bind.evaluate.results import PROTOCOLS, ResultTable
    from m3bind.export import EvaluationResult

    path = results or source.parent / "results.json"
    if results is None and not path.is_file():
        return []
    data = headline(ResultTable.load(path))
    lines = []
    for line in data.lines:
        name, cell = list(line.cells.items())[-1]
        task = line.task.replace("_", " ") or line.dataset
        what = ", ".join(filter(None, (PROTOCOLS[line.protocol], task, line.variant, name)))
        chance, low, high = (value if value == value else None for value in (cell.chance, cell.ci_low, cell.ci_high))
        lines.append(EvaluationResult(what, line.modality, line.metric, cell.counted, chance, cell.value, low, high))
    return lines
