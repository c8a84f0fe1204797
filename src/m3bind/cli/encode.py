"""Commands that turn an archive of files into embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3bind.cli.app import SEARCH, Device, Root, Workers, app, compute_of
from m3bind.core.launcher import processes
from m3bind.errors import ConfigError

if TYPE_CHECKING:
    from m3bind.data.records import BadRow, Record


@app.command(rich_help_panel=SEARCH)
def encode(
    paths: Annotated[list[Path], typer.Argument(help="files, folders and manifests")],
    space: Annotated[Path, typer.Option(help="space folder, e.g. runs/demo/space")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    modality: Annotated[str | None, typer.Option(help="modality of the files; default: detected")] = None,
    root: Root = None,
    keep: Annotated[
        str, typer.Option(help="manifest columns to store, e.g. id,label; they may identify patients")
    ] = "",
    device: Device = None,
    workers: Workers = None,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where faster at cosine >= 0.999")
    ] = "auto",
    batch: Annotated[
        int | None, typer.Option(help="inputs per forward pass; default 8 or 16 on a CPU, else 64")
    ] = None,
    parts: Annotated[int, typer.Option(help="maximum of tiles of a slide, or windows of a recording, to average")] = 64,
    seconds: Annotated[float, typer.Option(help="length of a recording's windows in seconds")] = 10.0,
    part_embeddings: Annotated[bool, typer.Option(help="also store the embeddings of tiles and windows")] = False,
    gap_correct: Annotated[bool, typer.Option(help="subtract each modality's mean; for image-to-image search")] = False,
    shard: Annotated[str, typer.Option(help="only this share of the files, e.g. 2/8; then m3bind merge")] = "",
) -> None:
    """Encode files into embeddings; bad files are quarantined.

    Stopped, the same command continues. quarantine.csv lists files that cannot be read, doubts.csv readable files that
    look wrong (a CT that is not in Hounsfield units, for instance).

    \b
    Examples:
      m3bind encode archive/ --space runs/demo/space --out encoded
      m3bind encode scans/*.png --modality xray --space runs/demo/space --out encoded
      accelerate launch -m m3bind encode archive/ --space runs/demo/space --out encoded
    """
    compute = compute_of(device, workers)
    from m3bind.data.records import BadRow
    from m3bind.encode.job import encode_files, encode_share
    from m3bind.index.roots import folder_of, remember
    from m3bind.modalities import Cut
    from m3bind.space import load

    opened = load(space, compute.device)
    options: Any = {
        "keep": [name for name in keep.split(",") if name],
        "precision": precision,
        "batch": batch,
        "workers": compute.workers,
        "cut": Cut(parts, seconds),
        "part_embeddings": part_embeddings,
        "gap_correct": gap_correct,
    }
    sources = _sources(paths, opened.modalities, root)
    files = [source for source in sources if not isinstance(source, BadRow)]
    roots = {folder_of(file if isinstance(file, Path) else file.path) for file in files}
    if shard:
        done, bad = encode_share(opened, sources, out, _share(shard), modality, **options)
        remember(f"{out}.parts", roots)
        print(f"share {shard}: {done} done, {bad} bad; all shares together: m3bind merge {out}.parts ... --out {out}")
    else:
        encoded = encode_files(opened, sources, out, modality, **options)
        bad = 0  # of several processes, the first reports for all
        if processes()[0] == 0:
            bad = encoded.bad
            remember(out, roots)
            print(encoded)
            print("\n".join(f"  {name}: {dtype}" for name, dtype in encoded.precision.items()))
            for text in filter(None, (encoded.unlike_text(), encoded.doubts_text())):
                print(text)
    if bad:
        raise typer.Exit(1)


@app.command(rich_help_panel=SEARCH)
def merge(
    parts: Annotated[list[Path], typer.Argument(help="folders of shards, one for each machine")],
    out: Annotated[Path, typer.Option(help="folder to write")],
) -> None:
    """Merge the shards of encode --shard into one folder.

    The result has the same bytes as one run.

    \b
    Example:
      m3bind merge a/encoded.parts b/encoded.parts --out encoded
    """
    from m3bind.encode.job import merge as merge_parts
    from m3bind.index.roots import remember, remembered

    encoded = merge_parts(parts, out)
    remember(out, [root for part in parts for root in remembered(part)])
    print(encoded)
    for text in filter(None, (encoded.unlike_text(), encoded.doubts_text())):
        print(text)
    if encoded.bad:
        raise typer.Exit(1)


def _sources(paths: list[Path], known: tuple[str, ...], root: Path | None) -> "list[Path | Record | BadRow]":
    """Paths as they are; manifests as their records and bad rows."""
    from m3bind.data.manifest import read_manifest
    from m3bind.data.manifest_rows import is_manifest

    sources: list[Path | Record | BadRow] = []
    if root and not any(map(is_manifest, paths)):
        raise ConfigError("--root has no effect: it is the folder of a manifest's paths, and no manifest is given")
    for path in paths:
        if is_manifest(path):
            found = read_manifest(path, root, modalities=known)
            sources += [*found.records, *found.bad]
        else:
            sources.append(path)
    return sources


def _share(text: str) -> tuple[int, int]:
    """ "2/8" as numbers."""
    index, _, of = text.partition("/")
    if not (index.isdigit() and of.isdigit()):
        raise ConfigError(f"--shard {text}: give i/n with i from 1 to n, e.g. 2/8")
    return int(index), int(of)
