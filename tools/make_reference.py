"""Writes docs/reference/: commands, settings, Python API and errors, read from the code.

    python tools/make_reference.py            # write the pages
    python tools/make_reference.py --check    # only list those that are not current (exit code 1)

* `commands`, `settings`, `api`, `errors`: one page each, as Markdown. * `pages`: all of them by file name.
"""

import ast
import importlib
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import m3bind
from m3bind import config
from m3bind import errors as families
from m3bind.cli import app
from m3bind.cli.app import GROUPS

FOLDER = Path(__file__).parent.parent / "docs" / "reference"
MADE = "<!-- Written by tools/make_reference.py (make docs): change the code, not this page. -->\n\n"

RELATED = (
    "m3bind.encode.job.Options",
    "m3bind.search.searcher.Hit",
    "m3bind.index.base.Index",
    "m3bind.encode.encoded.Encoded",
    "m3bind.data.records.Manifest",
    "m3bind.data.records.Record",
)
EXTENDED = (
    "m3bind.modalities.base.Modality",
    "m3bind.modalities.base.Sample",
    "m3bind.models.base.DualEncoder",
    "m3bind.models.base.ModelCard",
    "m3bind.align.methods.base.BindingMethod",
    "m3bind.evaluate.benchmarks.base.Benchmark",
    "m3bind.evaluate.adapters.base.Adapter",
)


def pages() -> dict[str, str]:
    """Every generated page by its file name."""
    return {"cli.md": commands(), "settings.md": settings(), "python.md": api(), "errors.md": errors()}


# --- commands -----------------------------------------------------------------------------------------------------


def commands() -> str:
    """The command line: every command with its arguments, options and examples, in the order of `m3bind --help`."""
    group = typer.main.get_command(app)
    found = dict(group.commands.items())
    text = (
        "# Command line\n\nEvery command explains itself: `m3bind COMMAND --help`. Exit code 0 means that everything "
        "requested was done, 1 that work failed or parts were quarantined, 2 wrong use, 130 interrupted.\n\n"
        "| command | what it does |\n|---|---|\n"
    )
    for heading in GROUPS:
        text += f"| **{heading}** | |\n"
        for name, command in found.items():
            if command.rich_help_panel == heading:
                text += f"| [`m3bind {name}`](#{name}) | {_first(command.help)} |\n"
    for name, command in found.items():
        text += f"\n## {name}\n\n{_command(name, command)}"
    return MADE + text


def _command(name: str, command: Any) -> str:
    words = command.help or ""
    about, _, examples = words.partition("\b")  # the mark of click for lines that stay as they are
    signature = inspect.signature(command.callback).parameters
    hints = typing.get_type_hints(command.callback)
    arguments, options = [], []
    usage = [f"m3bind {name}"]
    for parameter in command.params:
        if parameter.name in ("help",):
            continue
        kind, many = _value(hints[parameter.name])
        default = signature[parameter.name].default
        if parameter.param_type_name == "argument":
            word = (parameter.metavar or parameter.name).upper()
            usage.append((word if parameter.required else f"[{word}]") + ("..." if many else ""))
            arguments.append(f"| `{word}` | {_cell(parameter.help)} |\n")
            continue
        names = " / ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
        value = "" if kind is bool else f" `{parameter.metavar or _WORDS.get(kind, 'TEXT')}`"
        if parameter.required:
            usage.append(f"{parameter.opts[0]} {_WORDS.get(kind, 'TEXT')}")
        shown = "required" if parameter.required else _default(default)
        options.append(f"| {names}{value} | {_cell(parameter.help)} | {shown} |\n")
    text = "".join(f"{paragraph}\n\n" for paragraph in about.strip().split("\n\n"))
    text += f"```text\n{' '.join([*usage, '[OPTIONS]'] if options else usage)}\n```\n\n"
    if arguments:
        text += "| argument | meaning |\n|---|---|\n" + "".join(arguments) + "\n"
    if options:
        text += "| option | meaning | default |\n|---|---|---|\n" + "".join(options) + "\n"
    lines = [line.removeprefix("  ") for line in examples.strip().splitlines()[1:]]  # after "Examples:"
    return text + ("```bash\n" + "\n".join(lines) + "\n```\n" if lines else "")


_WORDS: dict[Any, str] = {str: "TEXT", Path: "PATH", int: "N", float: "X"}


def _value(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether several are allowed."""
    options = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _value(options[0])
    if typing.get_origin(hint) is list:
        return options[0], True
    return hint, False


def _default(value: Any) -> str:
    if value is None or value is False or value == "" or value is inspect.Parameter.empty:
        return ""
    return "yes" if value is True else f"`{value}`"


# --- settings -----------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting of a run, by section, with default, allowed values and explanation; and the presets."""
    text = (
        "# Settings\n\nA run is one tree of settings: a preset's name or a YAML file, changed on the command line by "
        "`--set section.key=value`. A file may start from another with `extends: NAME`; mappings are merged key by "
        "key, anything else is replaced, and a modality set to `null` is left out. An unknown key stops with the "
        "nearest known one. Equation numbers are those of the paper.\n\n## Presets\n\n"
        "| preset | what it is |\n|---|---|\n"
    )
    text += "".join(f"| `{name}` | {_cell(_preset(name))} |\n" for name in config.presets())
    sections: dict[type[BaseModel], list[str]] = {}
    _collect(config.RunConfig, "", sections)
    for section, places in sections.items():
        heading = ", ".join(f"`{place}`" for place in places) or "The run"
        text += (
            f"\n## {heading} {{#{section.__name__.removesuffix('Config').lower()}}}\n\n{_first(section.__doc__)}\n\n"
        )
        text += "| setting | default | values | meaning |\n|---|---|---|---|\n"
        for name, field in section.model_fields.items():
            if _section(field) is None:
                text += f"| `{name}` | {_shown(field)} | {_allowed(field)} | {_yaml(explanation(section, name))} |\n"
    return MADE + text


def _collect(section: type[BaseModel], place: str, found: dict[type[BaseModel], list[str]]) -> None:
    found.setdefault(section, [])
    if place:
        found[section].append(place)
    for name, field in section.model_fields.items():
        inner = _section(field)
        if inner is not None:
            key = f"{place}.{name}".lstrip(".")
            _collect(inner, f"{key}.NAME" if typing.get_origin(field.annotation) is dict else key, found)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The settings below a setting if it is a section."""
    for part in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _shown(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value in (None, [], {}, "") else f"`{_plain(value)}`"


def _yaml(text: str) -> str:
    """An explanation with values in YAML notation."""
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return _cell(text)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(field: FieldInfo) -> str:
    kinds = [part for part in (typing.get_args(field.annotation) or (field.annotation,)) if part is not types.NoneType]
    if typing.get_origin(field.annotation) is Literal:
        return " ".join(f"`{value}`" for value in typing.get_args(field.annotation))
    if typing.get_origin(field.annotation) in (list, dict, tuple):
        text = {list: "list", dict: "mapping", tuple: "list"}[typing.get_origin(field.annotation)]
    else:
        words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
        text = words.get(kinds[0], "mapping" if typing.get_origin(kinds[0]) is dict else "list")
        if typing.get_origin(kinds[0]) is Literal:  # or a number
            number, bounded = typing.get_args(kinds[1])
            values = " ".join(f"`{value}`" for value in typing.get_args(kinds[0]))
            return ", ".join([f"{values} or {words[number]}", *_signs(bounded.metadata)])
    return ", ".join([text, *_signs(field.metadata)])


def _signs(limits: Sequence[Any]) -> list[str]:
    return [f"{sign} {value:g}" for limit in limits for sign, value in _bounds(limit)]


def _bounds(limit: Any) -> Iterator[tuple[str, float]]:
    for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        if getattr(limit, key, None) is not None:
            yield sign, getattr(limit, key)


def _preset(name: str) -> str:
    """The comment at the top of a preset's file."""
    lines = (resources.files("m3bind.configs") / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    return " ".join(comment)


def explanation(section: type[BaseModel], name: str) -> str:
    """The comment beside a setting in config.py, from its class or the nearest base class with a comment."""
    for base in section.__mro__:
        found = _comments().get((base.__name__, name))
        if found:
            return found
    return ""


def _comments() -> dict[tuple[str, str], str]:
    """(class, setting) -> the comment on its lines."""
    source = inspect.getsource(config)
    beside = _beside(source)
    found = {}
    for node in ast.parse(source).body:
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                found[node.name, part.target.id] = _comment(part, beside)
    return found


def _beside(source: str) -> dict[int, str]:
    """Comments by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _comment(node: ast.AnnAssign, beside: dict[int, str]) -> str:
    """The comments on the lines of a definition."""
    return " ".join(beside[line] for line in range(node.lineno, (node.end_lineno or 0) + 1) if line in beside)


# --- Python -------------------------------------------------------------------------------------------------------


def api() -> str:
    """The names of `m3bind`, the classes its functions return, and the base classes of extensions."""
    text = (
        "# Python reference\n\nSignatures and docstrings of what programs use. For a walk through all of it with "
        "examples that are executed, read [Python API](../api.md).\n"
    )
    public = [getattr(m3bind, name) for name in m3bind.__all__ if name != "__version__"]
    named = [(f"m3bind.{thing.__name__}", thing) for thing in public]
    text += "\n## In `m3bind` {#m3bind}\n" + "".join(_entry(name, thing) for name, thing in named)
    for heading, anchor, names in (
        ("What they take and return", "related", RELATED),
        ("To extend", "extended", EXTENDED),
    ):
        text += f"\n## {heading} {{#{anchor}}}\n" + "".join(_entry(name, _import(name)) for name in names)
    return MADE + text


def _import(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _entry(name: str, thing: Any) -> str:
    """A function, or a class with its public methods and properties."""
    module, _, short = name.rpartition(".")
    heading = name if module == "m3bind" else short
    text = f"\n### `{heading}` {{#{name.lower().replace('.', '-')}}}\n\n"
    text += "" if module == "m3bind" else f"`from {module} import {short}`\n\n"
    if inspect.isfunction(thing):
        return text + _signature(thing) + _prose(thing.__doc__)
    text += _prose(thing.__doc__) + _fields(thing)
    for key, part in vars(thing).items():
        if isinstance(part, property):
            text += f"\n**`{key}`**\n\n{_prose(part.__doc__)}"
        elif (
            key == "__init__"
            and inspect.isfunction(part)
            and part.__doc__
            and part.__qualname__.startswith(thing.__name__)
        ):
            text += "\n" + _signature(part, thing.__name__) + _prose(part.__doc__)
        elif not key.startswith("_") and isinstance(part, types.FunctionType | staticmethod | classmethod):
            method = getattr(part, "__func__", part)
            text += f"\n**`{key}`**\n\n" + _signature(method) + _prose(method.__doc__)
    return text


def _fields(thing: Any) -> str:
    """The annotated attributes of a class, with the comments beside them."""
    source = textwrap.dedent(inspect.getsource(thing))
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    beside = _beside(source)
    rows = ""
    for part in body.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_":
            kind = re.sub(r"^ClassVar\[(.*)\]$", r"\1", ast.unparse(part.annotation)).strip("'")
            default = f"`{_cell(ast.unparse(part.value))}`" if part.value is not None else ""
            rows += f"| `{part.target.id}` | `{_cell(kind)}` | {default} | {_cell(_comment(part, beside))} |\n"
    return f"\n| attribute | type | default | meaning |\n|---|---|---|---|\n{rows}" if rows else ""


def _signature(function: Any, name: str = "") -> str:
    """The definition as code, one argument per line if it is long; `name` replaces the function's own."""
    node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(node, ast.FunctionDef)
    parts = list(_arguments(node.args))
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None and not name else ""
    line = f"{name or node.name}({', '.join(parts)}){result}"
    if len(line) > 100:
        line = f"{name or node.name}(\n    " + ",\n    ".join(parts) + f",\n){result}"
    return f"```python\n{line}\n```\n\n"


def _arguments(given: ast.arguments) -> Iterator[str]:
    """Each argument as written in the source, without self and cls."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    for argument, default in zip(plain, defaults):
        if argument.arg not in ("self", "cls"):
            yield _argument(argument, default)
    if given.vararg:
        yield f"*{ast.unparse(given.vararg)}"
    elif given.kwonlyargs:
        yield "*"
    for argument, default in zip(given.kwonlyargs, given.kw_defaults):
        yield _argument(argument, default)
    if given.kwarg:
        yield f"**{ast.unparse(given.kwarg)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    equals = " = " if argument.annotation else "="
    return ast.unparse(argument) + (f"{equals}{ast.unparse(default)}" if default is not None else "")


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown: indented lists (Raises, Args, Returns) as bullets, examples as code."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    out: list[str] = []
    for line in lines:
        if re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            out += ["", f"*{line[:-1]}*", ""]
        elif re.match(r"    \w[^:]*: ", line):
            name, _, rest = line.strip().partition(": ")
            out.append(f"- `{name}`: {rest}")
        elif line.startswith("     ") and out and out[-1].startswith("- "):
            out[-1] += f" {line.strip()}"
        elif line.startswith(">>>") or (out and out[-1].startswith("    >>>")):
            out.append("    " + line)
        else:
            out.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip() + "\n"


# --- errors -------------------------------------------------------------------------------------------------------


def errors() -> str:
    """The error classes with their exit codes."""
    rows = ""
    for name, thing in vars(families).items():
        if isinstance(thing, type) and issubclass(thing, families.M3BindError):
            base = thing.__bases__[0].__name__
            rows += f"| `{name}` | `{base}` | {thing.exit_code} | {_cell(_first(thing.__doc__))} |\n"
    return MADE + (
        "# Errors and exit codes\n\nEverything that m3bind refuses or cannot do is raised as one of these, from "
        "`m3bind.errors`. The message says what happened, in which file, row or setting, and what to do. The command "
        "line prints it as one line, `m3bind: ...`, on standard error. What the messages mean and what to do: "
        "[Troubleshooting](../troubleshooting.md).\n\n"
        "| error | a kind of | exit code | raised when |\n|---|---|---|---|\n"
        f"{rows}\n"
        "| exit code | meaning |\n|---|---|\n"
        "| 0 | everything asked for was done |\n"
        "| 1 | work failed, or parts were quarantined (their list is named) |\n"
        "| 2 | wrong use: an unknown option, name or setting |\n"
        "| 130 | interrupted; the same command goes on |\n\n"
        "```python\n"
        "from m3bind.errors import M3BindError, ReadError\n\n"
        "try:\n"
        '    space.encode_image(["a.dcm"], "xray")\n'
        "except ReadError as error:  # one file\n"
        "    print(error.path, error.reason, error.hint)\n"
        "except M3BindError as error:  # any other error of m3bind\n"
        "    print(error)\n"
        "```\n"
    )


def _first(text: str | None) -> str:
    """The first paragraph on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _cell(text: str | None) -> str:
    """Text for a cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    stale = [
        name for name, text in pages().items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{name} is not current: make docs" for name in stale) or "docs/reference is current")
        sys.exit(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(stale)} pages changed")
