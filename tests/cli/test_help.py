"""`m3bind --help`: groups that fit a screen, one whole line per command, examples one per line."""

import re

import pytest
import typer
from typer.testing import CliRunner

from m3bind.cli import app
from m3bind.cli.app import GROUPS
from m3bind.core.version import __version__

COMMANDS = typer.main.get_command(app).commands


def shown(*args, columns=80):
    return CliRunner().invoke(app, list(args), terminal_width=columns, catch_exceptions=False).output


def test_help_lists_every_command_once_under_its_group_on_one_screen():
    lines = shown("--help").splitlines()
    headings = [line.removesuffix(":") for line in lines if line and not line.startswith(" ")]
    assert headings == [headings[0], "Options", *GROUPS] and len(lines) <= 50
    listed = [line.split()[0] for line in lines if re.match(r"  [a-z]", line) and "..." not in line]
    assert sorted(listed) == sorted(COMMANDS)
    assert not any(line.endswith("...") for line in lines[9:])  # nothing is cut at 80 columns


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_states_what_it_does_in_one_sentence_and_shows_examples_one_per_line(name):
    first, *_ = COMMANDS[name].help.split("\n\n")
    assert first.endswith(".") and "\n" not in first and len(first) <= 62
    text = shown(name, "--help")
    examples = text.partition("Example")[2].partition("\n\n")[0].splitlines()[1:]
    assert examples and all(re.match(r"    (m3bind|accelerate launch -m m3bind|    --)", line) for line in examples)
    assert any(f"m3bind {name}" in line for line in examples)


def test_version():
    assert shown("--version") == f"m3bind {__version__}\n"
