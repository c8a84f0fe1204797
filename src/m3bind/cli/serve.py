"""Commands that serve a space and an index: a web page and an API."""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3bind.cli.app import SERVE, Device, Files, Workers, app, compute_of
from m3bind.errors import ConfigError

if TYPE_CHECKING:
    from m3bind.core.device import Compute

Host = Annotated[str, typer.Option(help="address to bind; any other than loopback needs a token")]
Port = Annotated[int, typer.Option(help="port; 0: any free one", min=0, max=65535)]
TokenFile = Annotated[
    Path | None, typer.Option(help="file with the access token of clients; default: environment M3BIND_TOKEN")
]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="further host name of the service, as behind a proxy; repeatable")
]
Texts = Annotated[
    list[Path] | None, typer.Option(help="file of phrases, one per line, for 'nearest phrases'; repeatable")
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(help="YAML file of classes and prompts, offered for zero-shot classification; repeatable"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no log line per request")]


@app.command(rich_help_panel=SERVE)
def serve(
    space: Annotated[Path, typer.Option(help="space folder, e.g. runs/demo/space")],
    index: Annotated[str, typer.Option(help="index (folder or Milvus URI), or folder of encode")],
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_file: TokenFile = None,
    allow_host: AllowHost = None,
    texts: Texts = None,
    prompts: Prompts = None,
    files: Files = None,
    device: Device = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Serve an index as a web page and an API.

    Binds to this machine alone unless --host is given. Ctrl-C or SIGTERM stops it after the running requests.

    \b
    Example:
      m3bind serve --space runs/demo/space --index index
    """
    begun = time.monotonic()
    compute = _begin(device, workers)
    from m3bind.index.roots import remembered

    roots = [Path(index), *(files or remembered(index))]
    _run(space, index, host, port, token_file, allow_host, texts, prompts, quiet, roots, compute, begun)


@app.command("serve-demo", rich_help_panel=SERVE)
def serve_demo(
    out: Annotated[Path, typer.Option("--out", help="folder of all runs")] = Path("runs"),
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_file: TokenFile = None,
    device: Device = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Serve virtual patients, made on first use (2 min).

    \b
    Example:
      m3bind serve-demo
    """
    begun = time.monotonic()
    compute = _begin(device, workers)
    from m3bind.cli.serve_demo import prepare

    folder = prepare(out, compute)
    at = str(folder / "index")
    _run(folder / "space", at, host, port, token_file, None, None, None, quiet, [out], compute, begun)


def _run(
    space: Path,
    index: str,
    host: str,
    port: int,
    token_file: Path | None,
    names: list[str] | None,
    texts: list[Path] | None,
    prompts: list[str] | None,
    quiet: bool,
    roots: list[Path],
    compute: "Compute",
    begun: float,
) -> None:
    from m3bind.core.stored import lines_given
    from m3bind.evaluate.own_prompts import read_classes
    from m3bind.modalities.formats.isolation import allow
    from m3bind.serve.access import read_token
    from m3bind.serve.app import make_app
    from m3bind.serve.middleware import LOOPBACK
    from m3bind.serve.run import is_loopback, leave, log_to_stderr, refuse_open, serve
    from m3bind.serve.settings import ServiceSettings
    from m3bind.space.bundle import load

    token = read_token(token_file)
    classes = [own for source in prompts or [] for own in read_classes(source)]
    phrases = [line.strip() for file in texts or [] for line in lines_given(file, "--texts")]
    refuse_open(host, token)
    log_to_stderr(logging.WARNING if quiet else logging.INFO)
    hosts = [*LOOPBACK, host, *(names or [])] if is_loopback(host) or names else None
    allow(compute.workers)
    settings = ServiceSettings(decoders=max(2, compute.workers))  # the second draws while the first reads
    opened = load(space, compute.device)
    made = make_app(
        opened, index, token=token, hosts=hosts, texts=phrases, settings=settings, roots=roots, classes=classes
    )
    items = sum(made.service.archive.items.values())

    def started(address: str) -> None:
        seconds = time.monotonic() - begun
        print(f"m3bind serves {items} items at {address} (started in {seconds:.1f} s)", flush=True)
        print("for research only; stop with Ctrl-C", flush=True)

    serve(made, host, port, settings, started)
    print("stopped", flush=True)
    leave()


def _begin(device: str | None, workers: str | None) -> "Compute":
    """Check the extra, and set the limits of decoding before anything reads them; the decoders inherit them.

    Raises:
        ConfigError: the libraries of the extra are not installed.
    """
    import importlib.util

    for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{name} is not installed, which serving needs: pip install 'm3bind[serve]'")
    from m3bind.serve.settings import DECODING

    os.environ.setdefault("M3BIND_LIMITS", DECODING)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin cost ten times the work on a busy machine
    return compute_of(device, workers)
