"""Commands that find things in what was encoded."""

from pathlib import Path
from typing import Annotated

import typer

from m3bind.cli.app import Json, app, prepare_torch
from m3bind.errors import ConfigError


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
    prepare_torch()
    search_encoded(encoded, space, text, file, modality, target, k, json_file)
