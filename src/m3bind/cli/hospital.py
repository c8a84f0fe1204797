"""Commands for a PACS: receive or fetch objects, de-identify and index them, return results."""

import contextlib
import functools
import inspect
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from m3bind.cli.app import SERVE, Device, Workers, app, compute_of
from m3bind.errors import ConfigError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from m3bind.hospital.dicomweb import Pull
    from m3bind.hospital.encoder import SpoolEncoder
    from m3bind.hospital.intake import Intake
    from m3bind.hospital.mapping import Mapping
    from m3bind.hospital.results import Finding
    from m3bind.hospital.tls import Certificates
    from m3bind.index import Index
    from m3bind.space.bundle import Space as OpenedSpace

Space = Annotated[Path, typer.Option("--space", help="space folder, e.g. runs/demo/space")]
IndexAt = Annotated[str, typer.Option("--index", help="index to write, created if missing (folder or Milvus URI)")]
Keep = Annotated[
    Path | None, typer.Option("--keep-files", help="store de-identified files here, so that items have images")
]
Salt = Annotated[
    Path | None,
    typer.Option("--salt-file", help="secret key of the pseudonyms; default M3BIND_SALT, or ~/.config/m3bind/salt"),
]
SpoolAt = Annotated[Path | None, typer.Option("--spool", help="folder of waiting objects; default: beside the index")]
Dates = Annotated[str, typer.Option("--dates", help="none, or shift: by a random number of days per patient")]
BurnedIn = Annotated[bool, typer.Option("--burned-in", help="also accept images declared to have burned-in text")]
MappingAt = Annotated[
    Path | None, typer.Option("--mapping", help="also store the original object of every item; it identifies patients")
]
MostMb = Annotated[int, typer.Option("--max-mb", help="maximum size of an object in MB")]
SpoolGb = Annotated[int, typer.Option("--spool-gb", help="maximum size of the spool in GB")]
Auth = Annotated[
    Path | None,
    typer.Option("--auth-file", help="file with the Authorization header; default: M3BIND_DICOMWEB_AUTH"),
]
TlsCert = Annotated[Path | None, typer.Option("--tls-cert", help="our certificate (PEM), for TLS")]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="its key (PEM, without password)")]
TlsCa = Annotated[
    Path | None, typer.Option("--tls-ca", help="CA certificates (PEM) that the peer's certificate is verified with")
]


@dataclass(frozen=True, kw_only=True)
class _Tls:
    tls_cert: TlsCert = None
    tls_key: TlsKey = None
    tls_ca: TlsCa = None

    def certificates(self) -> "Certificates | None":
        """None if no file is named."""
        from m3bind.hospital.tls import Certificates

        return Certificates.of(self.tls_cert, self.tls_key, self.tls_ca)


@dataclass(frozen=True, kw_only=True)
class _Receive:
    """Options of listen and pull."""

    space: Space
    index: IndexAt
    keep_files: Keep = None
    salt_file: Salt = None
    spool: SpoolAt = None
    dates: Dates = "none"
    burned_in: BurnedIn = False
    mapping: MappingAt = None
    max_mb: MostMb = 1024
    spool_gb: SpoolGb = 50
    device: Device = None
    workers: Workers = None


@dataclass(frozen=True, kw_only=True)
class _Listen:
    port: Annotated[int, typer.Option(help="port; 0 takes a free one")] = 11112
    aet: Annotated[str, typer.Option(help="own application entity title, which senders must use")] = "M3BIND"
    host: Annotated[str, typer.Option(help="address to bind; any other than loopback needs --allow")] = "127.0.0.1"
    allow: Annotated[list[str] | None, typer.Option(help="AE title that may send; repeatable; default: all")] = None
    associations: Annotated[int, typer.Option(help="maximum of simultaneous senders")] = 8
    complete: Annotated[
        str, typer.Option(help="a series is complete after: quiet (see --quiet) or release (of its association)")
    ] = "quiet"
    quiet: Annotated[float, typer.Option(help="seconds without a new object after which a series is complete")] = 10.0
    grace: Annotated[float, typer.Option(help="seconds for running associations at shutdown")] = 30.0


@dataclass(frozen=True, kw_only=True)
class _Pull:
    url: Annotated[str, typer.Argument(help="DICOMweb root, e.g. http://127.0.0.1:8042/dicom-web")]
    modality: Annotated[str, typer.Option(help="DICOM code, e.g. CT; default: all modalities of the space")] = ""
    since: Annotated[str, typer.Option("--from", help="first study date, e.g. 2020-01-31")] = ""
    until: Annotated[str, typer.Option("--until", help="last study date")] = ""
    limit: Annotated[int, typer.Option(help="maximum of series to fetch; 0: all")] = 0
    page: Annotated[int, typer.Option(help="studies per query")] = 100
    timeout: Annotated[float, typer.Option(help="seconds without data after which a response is abandoned")] = 60.0
    series_minutes: Annotated[float, typer.Option(help="maximum of minutes for one series")] = 60.0
    auth_file: Auth = None


@dataclass(frozen=True, kw_only=True)
class _SendResults:
    index: Annotated[str, typer.Argument(help="index that listen or pull wrote")]
    space: Space
    labels: Annotated[str, typer.Option(help="candidate labels, separated by commas")] = ""
    prompts: Annotated[
        str, typer.Option(help="in place of --labels: YAML file of classes and prompts, or FILE:TASK")
    ] = ""
    item: Annotated[list[str] | None, typer.Option(help="id of an item; repeatable")] = None
    modality: Annotated[str, typer.Option(help="all items of this modality")] = ""
    mapping: Annotated[Path | None, typer.Option(help="file that listen or pull wrote with --mapping")] = None
    out: Annotated[Path | None, typer.Option(help="folder for the reports")] = None
    to: Annotated[str, typer.Option(help="AET@HOST:PORT, or a DICOMweb root: send the reports there")] = ""
    sidecar: Annotated[bool, typer.Option("--json", help="JSON into --out in place of DICOM SR")] = False
    answer_unlike: Annotated[
        bool, typer.Option("--answer-unlike", help="return labels of items unlike the training data too")
    ] = False
    auth_file: Auth = None
    device: Device = None
    workers: Workers = None


def _grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters are dataclasses of options: their fields become its options, required ones first."""
    groups = {name: parameter.annotation for name, parameter in inspect.signature(command).parameters.items()}
    options = [option for kind in groups.values() for option in inspect.signature(kind).parameters.values()]
    options.sort(key=lambda option: option.default is not option.empty)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        objects = {}
        for name, kind in groups.items():
            objects[name] = kind(**{key: values[key] for key in inspect.signature(kind).parameters if key in values})
        command(**objects)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # read by typer
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


@app.command(rich_help_panel=SERVE)
@_grouped
def listen(options: _Listen, receive: _Receive, tls: _Tls) -> None:
    """Receive DICOM by C-STORE, de-identify and index.

    Ctrl-C or SIGTERM finishes what was accepted.

    \b
    Example:
      m3bind listen --space runs/demo/space --index index --keep-files files --allow PACS
    """
    if options.complete not in ("quiet", "release"):
        raise ConfigError(f"--complete {options.complete}: quiet or release")
    _need("pynetdicom")
    from m3bind.hospital.listener import Listener, ListenerSettings, refuse_open

    files, allow, host = tls.certificates(), options.allow or (), options.host
    context = files.server() if files else None
    refuse_open(host, allow, proven=bool(tls.tls_ca))
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    settings = ListenerSettings(
        options.aet, allow, options.associations, complete=cast(Any, options.complete), tls=context
    )
    with _opened(receive, options.quiet) as (intake, encoder):
        listener = Listener(intake, settings)
        listener.start(host, options.port)
        print(f"listening as {options.aet} on {host}:{listener.port}{' over TLS' if context else ''}", flush=True)
        threading.Thread(target=_print_states, args=(intake, encoder, stop), daemon=True).start()
        encoder.run(stop)
        listener.stop(options.grace)
        encoder.drain()
        print(_state(intake, encoder), flush=True)
        quarantined = intake.spool.quarantine.count
    if quarantined:
        raise typer.Exit(1)


@app.command(rich_help_panel=SERVE)
@_grouped
def pull(options: _Pull, receive: _Receive, tls: _Tls) -> None:
    """Fetch series from a DICOMweb server, de-identify and index.

    Stopped, the same command continues. Exit code 0 only when everything requested is in the index.

    \b
    Example:
      m3bind pull http://127.0.0.1:8042/dicom-web --space runs/demo/space --index index --modality CT
    """
    _need("httpx")
    from m3bind.hospital.dicomweb import Pull
    from m3bind.hospital.http import Bounds, Web, authorization
    from m3bind.hospital.qido import Wanted

    wanted = Wanted(options.modality, options.since, options.until, options.limit, options.page)
    wanted.check()
    if options.timeout <= 0 or options.series_minutes <= 0:
        raise ConfigError("--timeout and --series-minutes are more than 0")
    bounds = Bounds(silence=options.timeout, seconds=60 * options.series_minutes)
    files = tls.certificates()
    with (
        Web(options.url, authorization(options.auth_file), bounds, files.client() if files else None) as web,
        _opened(receive, float("inf")) as (intake, encoder),
    ):
        left = intake.spool.waiting()
        encoder.drain()  # units that an earlier run received to their end
        resumed = left - intake.spool.waiting()
        run = Pull(web, intake, wanted, encoder.place)
        try:
            for _ in run:
                encoder.drain()
        finally:
            encoder.drain()
            print(f"{_pulled(run, resumed)}; {_state(intake, encoder)}")
        waiting = intake.spool.waiting()
        if not run.whole or intake.counts["refused"] or intake.spool.quarantine.count or waiting:
            _print_missing(run, intake, waiting)
            raise typer.Exit(1)


def _pulled(run: "Pull", resumed: int) -> str:
    """The counts of a pull in one line."""
    usual = [f"resumed {resumed}"]
    usual += [f"{word} {run.counts[name]}" for word, name in
              (("fetched", "series"), ("skipped", "skipped"), ("failed", "failed"))]  # fmt: skip
    others = [
        f"{name} {run.counts[name]}" for name in ("incomplete", "listed before", "other kinds") if run.counts[name]
    ]
    return f"series: {', '.join(usual + others)}"


def _print_missing(run: "Pull", intake: "Intake", waiting: int) -> None:
    """Print on stderr what is missing, and where the reasons are."""
    for reason, count in run.reasons.most_common(5):
        print(f"  {count} x {reason}", file=sys.stderr)
    if waiting:
        print(
            f"  {waiting} items of incomplete series wait in the spool; if the server no longer has these "
            "series, m3bind listen with this spool indexes them, marked as incomplete",
            file=sys.stderr,
        )
    listed = intake.spool.folder / "aside.csv"
    print(f"not everything requested is in the index: see {listed}; the same command resumes", file=sys.stderr)


@app.command("send-results", rich_help_panel=SERVE)
@_grouped
def send_results(options: _SendResults, tls: _Tls) -> None:
    """Return zero-shot results as DICOM SR (research use).

    The reports refer to the original studies, which needs the mapping; --json writes JSON without them.

    \b
    Example:
      m3bind send-results index --space runs/demo/space --modality xray --labels normal,pneumonia \\
          --mapping mapping.db --to PACS@127.0.0.1:4242
    """
    if not (options.out or options.to) or (options.sidecar and not options.out):
        raise ConfigError("name the destination: --out DIR, --to AET@HOST:PORT, or --to a DICOMweb root")
    if not options.sidecar and options.mapping is None:
        raise ConfigError(
            "a DICOM SR refers to the original objects: give --mapping, or --json for a file without them"
        )
    if bool(options.labels) == bool(options.prompts):
        raise ConfigError("name the classes: --labels normal,pneumonia, or --prompts FILE")
    if bool(options.item) == bool(options.modality):
        raise ConfigError("name the items: --item ID (repeatable), or --modality NAME")
    if not options.sidecar:
        _need("highdicom")
    from m3bind.evaluate.own_prompts import class_prompts
    from m3bind.hospital.mapping import Mapping
    from m3bind.hospital.results import findings
    from m3bind.index import Where, open_index
    from m3bind.space.bundle import load

    compute = compute_of(options.device, options.workers)
    names = [name.strip() for name in options.labels.split(",") if name.strip()]
    labels = functools.partial(class_prompts, options.prompts) if options.prompts else names
    files = tls.certificates()
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(open_index(options.index))
        mapping = stack.enter_context(Mapping(options.mapping, make=False)) if options.mapping else None
        items = options.item or index.sample(len(index), Where(modality=options.modality))[0]
        space = load(options.space, compute.device)
        found = findings(space, index, items, labels, abstain=not options.answer_unlike)
        count = _deliver(found, mapping, options, files.client() if files else None)
    print(f"{count} results {'written' if options.out and not options.to else 'sent'}")
    if count < len(found):
        raise typer.Exit(1)


def _deliver(
    found: "Sequence[Finding]", mapping: "Mapping | None", options: _SendResults, tls: ssl.SSLContext | None
) -> int:
    """Write or send results; the number accepted. One that is refused is named, and the others are sent."""
    from m3bind.core.files import atomic_path, write_json
    from m3bind.hospital.results import as_json, as_report

    out = options.out
    if options.sidecar and out:
        for finding in found:
            write_json(out / f"{finding.item}.json", as_json(finding, mapping.origins(finding.item) if mapping else ()))
        return len(found)
    assert mapping is not None
    reports = [(finding.item, as_report(finding, mapping.origins(finding.item))) for finding in found]
    for name, report in reports if out else ():
        with atomic_path(cast(Path, out) / f"{name}.dcm") as temporary:
            report.save_as(temporary, enforce_file_format=True)
            temporary.chmod(0o600)
    if options.to:
        from m3bind.hospital.http import authorization
        from m3bind.hospital.send import destination

        kinds = [str(report.SOPClassUID) for _, report in reports[:1]]
        with destination(options.to, kinds, authorization(options.auth_file), tls=tls) as send:
            return sum(_sent(send, name, report) for name, report in reports)
    return len(reports)


def _sent(send: "Callable[[Dataset], None]", name: str, report: "Dataset") -> bool:
    """Whether a report was accepted.

    Raises:
        ServerUnavailableError: the archive cannot be reached.
    """
    from m3bind.hospital.responses import WebError
    from m3bind.hospital.send import SendError

    try:
        send(report)
    except (SendError, WebError) as error:
        print(f"{name}: refused: {error}", file=sys.stderr)
        return False
    return True


def _need(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"this command needs the package {package}: pip install 'm3bind[hospital]'")


@contextlib.contextmanager
def _opened(options: _Receive, quiet: float) -> "Iterator[tuple[Intake, SpoolEncoder]]":
    """Intake and encoder between a spool and an index."""
    from m3bind.hospital.deidentify import Deidentifier
    from m3bind.hospital.encoder import SpoolEncoder
    from m3bind.hospital.intake import Intake
    from m3bind.hospital.mapping import Mapping
    from m3bind.hospital.pseudonyms import Pseudonyms, open_salt
    from m3bind.hospital.spool import Spool
    from m3bind.index.roots import remember, remembered
    from m3bind.space.bundle import load

    if options.dates not in ("none", "shift"):
        raise ConfigError(f"--dates {options.dates}: none or shift")
    if options.spool is None and ":" in options.index:
        raise ConfigError(f"{options.index}: name a folder for waiting objects, --spool DIR")
    salt = open_salt(options.salt_file)
    place = options.spool or Path(f"{options.index.rstrip('/')}.spool")
    compute = compute_of(options.device, options.workers)
    opened = load(options.space, compute.device)
    with contextlib.ExitStack() as stack:
        spool = stack.enter_context(Spool(place, quiet, options.spool_gb << 30))
        mapping = stack.enter_context(Mapping(options.mapping)) if options.mapping else None
        target = stack.enter_context(_index(options.index, opened))
        names = Deidentifier(Pseudonyms(salt), cast(Any, options.dates), options.burned_in)
        if options.keep_files:
            options.keep_files.mkdir(parents=True, exist_ok=True, mode=0o700)
            remember(options.index, [options.keep_files, *remembered(options.index)])
        intake = Intake(spool, names, opened.modalities, mapping, options.max_mb << 20)
        yield intake, SpoolEncoder(opened, target, spool, options.keep_files, compute.workers)


def _index(uri: str, space: "OpenedSpace") -> "Index":
    """The index, open for writing; a new one if missing."""
    from m3bind.index import create_index, open_index
    from m3bind.index.uri import exists

    if not exists(uri):
        return create_index(uri, space.dim, space.fingerprint)
    found = open_index(uri, writable=True)
    if found.fingerprint != space.fingerprint:
        found.close()
        raise ConfigError(f"{uri} belongs to another space; name the space it was built with, or another index")
    return found


def _state(intake: "Intake", encoder: "SpoolEncoder") -> str:
    """The counts in one line."""
    from m3bind.hospital.encoder import OTHERS

    kinds = {name: count for name, count in sorted(encoder.counts.items()) if name not in OTHERS}
    listed = f" ({', '.join(f'{name} {count}' for name, count in kinds.items())})" if kinds else ""
    parts = [
        f"objects {intake.counts['received']}, refused {intake.counts['refused']}",
        f"items {sum(kinds.values())}{listed}",
        ", ".join(f"{name} {encoder.counts[name]}" for name in ("incomplete", "repeated", "replaced")),
        f"quarantined {intake.spool.quarantine.count}",
        f"waiting {intake.spool.waiting()}",
    ]
    return "; ".join(parts)


def _print_states(intake: "Intake", encoder: "SpoolEncoder", stop: threading.Event, every: float = 5.0) -> None:
    """Print the state when it has changed, until `stop`."""
    last, since = "", time.monotonic()
    while not stop.wait(0.5):
        now = _state(intake, encoder)
        if now != last and time.monotonic() - since > every:
            print(now, file=sys.stderr, flush=True)
            last, since = now, time.monotonic()
