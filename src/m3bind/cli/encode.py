"""Commands that turn an archive of files into embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import app, prepare_torch


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

    prepare_torch()
    if encode_paths(space, paths, modality, out):
        raise typer.Exit(1)
