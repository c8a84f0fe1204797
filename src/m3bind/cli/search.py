"""Commands that find things in what was encoded."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from m3bind.cli.app import Files, Json, app, prepare_torch


@app.command()
def search(
    source: Annotated[str, typer.Argument(metavar="INDEX", help="index (folder or Milvus URI), or folder of encode")],
    space: Annotated[Path, typer.Option(help="space folder, e.g. runs/demo/space")],
    text: Annotated[list[str] | None, typer.Option(help='words; repeatable, weight: "words*0.5"')] = None,
    file: Annotated[
        list[str] | None, typer.Option(help="file of any modality: PATH, or PATH:MODALITY; repeatable, weight: *0.5")
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="item of the index by its id; repeatable")] = None,
    without: Annotated[list[str] | None, typer.Option(help="words to avoid, weight 0.5; repeatable")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="modality=ct,xray, label=normal, patient=..., date>=2020-01-01, id!=...; repeatable"),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="number of hits")] = 10,
    per_modality: Annotated[bool, typer.Option("--per-modality", help="as many hits of each modality")] = False,
    rank: Annotated[
        str, typer.Option(help="order of hits of several modalities: calibrated, or cosine")
    ] = "calibrated",
    gap_correction: Annotated[
        bool | None,
        typer.Option(help="take the modality's mean out of files; default: as the index was made"),
    ] = None,
    json_file: Json = None,
    files: Files = None,
    html: Annotated[Path | None, typer.Option(help="also write a page with pictures of query and hits")] = None,
    thumbnails: Annotated[Path | None, typer.Option(help="also write the hits' pictures into this folder")] = None,
) -> None:
    """From words, files or items, alone or together, to the nearest items of any modality.

    Hits of several modalities are ranked by their calibrated score z: standard deviations above the usual cosine.

    Examples:  m3bind search index --space runs/demo/space --text "atrial fibrillation" --where modality=ecg
               m3bind search index --space runs/demo/space --file a.png:xray --without "effusion" --html hits.html
    """
    from m3bind.core.files import write_json
    from m3bind.index.base import Where
    from m3bind.index.roots import Roots, remembered
    from m3bind.search.query import parse_query
    from m3bind.search.searcher import Searcher
    from m3bind.search.sheet import hits_as_text, search_page
    from m3bind.search.thumbnails import write_thumbnails
    from m3bind.space.bundle import load

    prepare_torch()
    conditions = Where.parse(where or [])
    searcher = Searcher(load(space), source)
    query = parse_query(text or [], file or [], item or [], without or [], searcher.space.modalities)
    hits = searcher.search(
        query, k, conditions, rank=cast(Any, rank), per_modality=per_modality, gap_correction=gap_correction
    )
    roots = Roots([Path(source), *(files or remembered(source))])
    print(hits_as_text(query, hits))
    if json_file:
        write_json(json_file, {"query": query.as_dict(), "hits": [hit.as_dict() for hit in hits]})
    if html:
        search_page(searcher, [(query, hits)], html, per_modality, roots)
    bad = write_thumbnails(hits, thumbnails, roots=roots) if thumbnails else {}
    for name, reason in bad.items():
        print(f"no picture {name}: {reason}")
    if bad:
        raise typer.Exit(1)


@app.command()
def index(
    encoded: Annotated[
        Path | None, typer.Argument(help="folder of m3bind encode; without it the index is shown")
    ] = None,
    out: Annotated[
        str, typer.Option(help="folder, milvus:FILE.db#COLLECTION or milvus+http://HOST:PORT#COLLECTION")
    ] = "index",
    add: Annotated[bool, typer.Option("--add", help="into an index that is there; same ids are replaced")] = False,
    delete_ids: Annotated[Path | None, typer.Option(help="file with one id per line: forget these items")] = None,
    commit: Annotated[bool, typer.Option("--commit", help="all changes into the fastest form, calibrate")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="mend a damaged index in a folder")] = False,
    json_file: Json = None,
) -> None:
    """Encoded items -> an index to search, to add to and to delete from. Stopped, the same command continues.

    Examples:  m3bind index encoded --out index
               m3bind index more --out index --add
               m3bind index --out index --delete-ids gone.txt
    """
    from m3bind.core.files import write_json
    from m3bind.core.stored import lines_given
    from m3bind.index import build_index, open_index
    from m3bind.index.about import about, as_text
    from m3bind.index.calibration import calibrate
    from m3bind.index.roots import remember, remembered

    if repair:
        from m3bind.index.repair import repair as mend

        print(mend(out))
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
