"""Commands that search encoded files."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from m3bind.cli.app import SEARCH, Device, Files, Json, Workers, app, compute_of


@app.command(rich_help_panel=SEARCH)
def search(
    source: Annotated[str, typer.Argument(metavar="INDEX", help="index (folder or Milvus URI), or folder of encode")],
    space: Annotated[Path, typer.Option(help="space folder, e.g. runs/demo/space")],
    text: Annotated[list[str] | None, typer.Option(help='text query; repeatable, weight: "text*0.5"')] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="file of any modality: PATH, or PATH:MODALITY; repeatable, weight: *0.5")
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="item of the index by its id; repeatable")] = None,
    without: Annotated[list[str] | None, typer.Option(help="text to avoid, weight 0.5; repeatable")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="modality=ct,xray, label=normal, patient=..., date>=2020-01-01, id!=...; repeatable"),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="number of hits")] = 10,
    per_modality: Annotated[bool, typer.Option("--per-modality", help="this number of hits of each modality")] = False,
    rank: Annotated[
        str, typer.Option(help="order of hits of several modalities: calibrated, or cosine")
    ] = "calibrated",
    along: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="TEXT TEXT", help='"more like this, as to ...": two opposites, e.g. normal abnormal'),
    ] = None,
    gap_correction: Annotated[
        bool | None,
        typer.Option(help="subtract the modality's mean from files; default: as in the index"),
    ] = None,
    device: Device = None,
    workers: Workers = None,
    json_file: Json = None,
    files: Files = None,
    html: Annotated[Path | None, typer.Option(help="also write an HTML page with images of query and hits")] = None,
    thumbnails: Annotated[Path | None, typer.Option(help="also write the hits' images into this folder")] = None,
) -> None:
    """Search by text, file, item, or a weighted mix.

    Hits of several modalities are ranked by what their modality has to say to the query and by their score z in it.

    \b
    Examples:
      m3bind search index --space runs/demo/space --text "atrial fibrillation" --where modality=ecg
      m3bind search index --space runs/demo/space --file a.png:xray --without "effusion" --html hits.html
      m3bind search index --space runs/demo/space --file a.png:xray --along normal abnormal
    """
    compute = compute_of(device, workers)
    from m3bind.core.files import write_json
    from m3bind.index.base import Where
    from m3bind.index.roots import Roots, remembered
    from m3bind.search.query import parse_query
    from m3bind.search.searcher import Searcher
    from m3bind.search.sheet import hits_as_text, search_page
    from m3bind.search.thumbnails import write_thumbnails
    from m3bind.space.bundle import load

    conditions = Where.parse(where or [])
    searcher = Searcher(load(space, compute.device), source, compute.workers)
    query = parse_query(text or [], file or [], item or [], without or [], searcher.space.modalities)
    hits = searcher.search(
        query,
        k,
        conditions,
        rank=cast(Any, rank),
        per_modality=per_modality,
        gap_correction=gap_correction,
        along=along,
    )
    roots = Roots([Path(source), *(files or remembered(source))])
    print(hits_as_text(query, hits))
    if json_file:
        write_json(json_file, {"query": query.as_dict(), "hits": [hit.as_dict() for hit in hits]})
    if html:
        search_page(searcher, [(query, hits)], html, per_modality, roots)
    bad = write_thumbnails(hits, thumbnails, roots=roots) if thumbnails else {}
    for name, reason in bad.items():
        print(f"no image of {name}: {reason}")
    if bad:
        raise typer.Exit(1)


@app.command(rich_help_panel=SEARCH)
def index(
    encoded: Annotated[
        Path | None, typer.Argument(help="folder of m3bind encode; without it the index is described")
    ] = None,
    out: Annotated[
        str, typer.Option(help="folder, milvus:FILE.db#COLLECTION or milvus+http://HOST:PORT#COLLECTION")
    ] = "index",
    add: Annotated[bool, typer.Option("--add", help="add to an existing index; equal ids are replaced")] = False,
    delete_ids: Annotated[Path | None, typer.Option(help="file with one id per line: delete these items")] = None,
    commit: Annotated[bool, typer.Option("--commit", help="rebuild the fastest form and calibrate again")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="repair a damaged index in a folder")] = False,
    json_file: Json = None,
) -> None:
    """Build, extend, commit or repair a search index.

    Stopped, the same command continues.

    \b
    Examples:
      m3bind index encoded --out index
      m3bind index more --out index --add
      m3bind index --out index --delete-ids gone.txt
    """
    from m3bind.core.files import write_json
    from m3bind.core.stored import lines_given
    from m3bind.index import build_index, open_index
    from m3bind.index.calibration import calibrate
    from m3bind.index.roots import remember, remembered
    from m3bind.index.summary import about, as_text

    if repair:
        from m3bind.index.repair import repair as repair_index

        print(repair_index(out))
    if encoded:
        from m3bind.encode.encoded import open_encoded

        known = [*remembered(encoded), *remembered(out)] if add else remembered(encoded)
        build_index(open_encoded(encoded), out, add=add).close()
        remember(out, known)
    if delete_ids or commit:
        with open_index(out, writable=True) as opened:
            if delete_ids:
                ids = lines_given(delete_ids, "--delete-ids")
                print(f"{opened.delete(ids)} of {len(ids)} items deleted")
            if commit:
                opened.commit()
                calibrate(opened)
    with open_index(out) as opened:
        summary = about(opened)
    print(as_text(summary))
    if json_file:
        write_json(json_file, summary)
