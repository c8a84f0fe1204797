"""What the commands share: the application, shared options, errors as one line and an exit code.

* `main`: the entry point. * `run_of`, `finish`: the run a command works on, trained up to a stage.
* `refuse_ignored`: options without effect in the chosen form of a command are errors.
* `compute_of`: device and workers of any other command, before its first computation.
* `hush`: silences libraries whose log lines quote file contents.
"""

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from m3bind.core.version import __version__
from m3bind.errors import ConfigError, M3BindError

if TYPE_CHECKING:
    from m3bind.config import RunConfig
    from m3bind.core.device import Compute
    from m3bind.pipeline.run import Run

BIND, EVALUATE, SEARCH, SERVE, MODELS, TOOLS = GROUPS = (
    "Bind",
    "Evaluate",
    "Search",
    "Serve and hospital",
    "Models and data",
    "Tools",
)  # of commands, in the order of m3bind --help


class _CommandGroups(TyperGroup):
    """Lists the commands under the headings of `GROUPS`; click has one list."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for group in GROUPS:
            rows = [
                (name.ljust(width), command.get_short_help_str(formatter.width - width - 6))
                for name, command in self.commands.items()
                if getattr(command, "rich_help_panel", None) == group
            ]
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    name="m3bind",
    cls=_CommandGroups,
    help="Bind CLIP-like medical models of any modality into one embedding space.\n\n"
    "Start with:  m3bind demo   (virtual patients, about 5 minutes on two cores)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Settings = Annotated[
    str,
    typer.Argument(metavar="SETTINGS", help="preset (demo, mini5, open5, paper, paper-literal, quick) or a YAML file"),
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change a setting, e.g. --set align.mse_weight=1; repeatable"),
]
Out = Annotated[Path, typer.Option("--out", help="folder of all runs")]
Name = Annotated[str | None, typer.Option("--name", help="name of the run's folder; default: the preset's name")]
Seed = Annotated[int | None, typer.Option("--seed", help="random seed")]
Device = Annotated[
    str | None, typer.Option("--device", help="where to compute: auto (a GPU if available), cpu, cuda, cuda:1, mps")
]
Workers = Annotated[
    str | None, typer.Option("--workers", metavar="N", help="processes that read files; auto: one per core")
]
Files = Annotated[
    list[Path] | None,
    typer.Option(
        help="folder whose files may be shown; repeatable; default: the folders given to encode, listen or pull"
    ),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="folder that a manifest's paths are relative to, and inside; default: its own folder"),
]
Json = Annotated[Path | None, typer.Option("--json", help="also write the output as JSON")]


INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"m3bind {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors become one clear line and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    hush()
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except M3BindError as error:
        print(f"m3bind: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("m3bind: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        place = error.filename or "a log or cache file"
        print(f"m3bind: {error.strerror}: {place}; free space, then run the same command", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        parallel = sys.modules.get("m3bind.training.parallel")
        if parallel is not None and parallel.is_loss_of_process(error):
            print(
                "m3bind: another process of this run ended, so this one stops too; the other one's message states why. "
                "The same command resumes from the last checkpoint",
                file=sys.stderr,
            )
            sys.exit(1)
        show: Callable[[], str] | None = getattr(error, "format_message", None)  # click's usage errors
        if show is None:
            raise
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        print(f"m3bind: {show().rstrip('.')}{hint}", file=sys.stderr)
        sys.exit(2)


def hush() -> None:
    """Silence warnings of DICOM libraries in all threads: they quote UIDs and header values."""
    logging.getLogger("pydicom").disabled = True  # its level is set again when it is imported
    for name in ("pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(pydicom|pynetdicom|highdicom|openpyxl|m3bind)\b")


def run_of(
    settings: str,
    change: list[str] | None,
    out: Path,
    name: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    workers: str | None = None,
) -> "Run":
    """The run that a command works on."""
    given = {"name": name, "seed": seed, "compute.device": device, "compute.workers": workers}
    config = config_of(settings, change, **given)
    prepare_torch()
    from m3bind.pipeline.run import Run

    return Run(config, out / config.name, cache=out / "cache")


def config_of(settings: str, change: list[str] | None, **given: object) -> "RunConfig":
    """The settings, changed by `change`, then by the options that were given."""
    from m3bind.config import load_config

    overrides = [f"{key}={value}" for key, value in given.items() if value not in (None, "")]
    config = load_config(settings, [*(change or []), *overrides])
    if set(config.compute.trackers) - {"tensorboard"}:
        from m3bind.training.monitor import check_trackers

        check_trackers(config.compute.trackers)  # now: the first stage begins after all files are read
    return config


def refuse_ignored(context: typer.Context, form: str, *names: str) -> None:
    """Refuse options that were given, but have no effect in this form of the command (`form`: "with --suite").

    Raises:
        ConfigError: the first of the parameters `names` that is on the command line.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name) if parameter.name in names else None
        if source is not None and source.name != "DEFAULT":
            option = parameter.opts[0]
            raise ConfigError(f"{option if option[0] == '-' else option.upper()} has no effect {form}; leave it out")


def compute_of(device: str | None, workers: str | None, default: str = "auto") -> "Compute":
    """Where a command computes, from its options. Imports torch.

    `default`: the command's own device; if it is the CPU, an unused GPU is not worth a warning.

    Raises:
        ConfigError: no such device, or not a number of workers.
    """
    prepare_torch()
    from m3bind.core.device import pick

    count = int(workers) if workers and workers.isdecimal() else workers or "auto"
    return pick(device or default, workers=count, warn=default == "auto" or device != default)


def prepare_torch() -> None:
    """Set the precision of float32 products. Imports torch."""
    import torch

    from m3bind.core.device import may_round

    if may_round():
        torch.set_float32_matmul_precision("medium")


def finish(run: "Run", until: str) -> None:
    """Train up to a stage, print before/after, write bundle and report."""
    from m3bind.pipeline.outputs import finish as finished

    code = finished(run, until)
    if code:
        raise typer.Exit(code)
