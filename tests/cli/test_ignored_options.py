"""No option is ignored: a setting that is unknown, or has no effect in a form of a command, is an error."""

from itertools import product

import pytest
import typer

from m3bind.cli import app
from m3bind.errors import ConfigError

COMMANDS = typer.main.get_command(app).commands
WITH_SET = sorted(name for name, c in COMMANDS.items() if any("--set" in p.opts for p in c.params))
FORMS = {  # every form of the commands that take --set
    "demo": [],
    "demo --quick": ["--quick"],
    "fit": ["quick"],
    "prepare": ["quick"],
    "prepare --root": ["ptbxl", "--root", "."],
    "pretrain": ["quick"],
    "align": ["quick"],
    "align --closed-form": ["quick", "--closed-form"],
    "distill": ["quick"],
    "plan": ["quick"],
    "ablate": ["quick"],
    "ablate --methods": ["quick", "--methods"],
    "evaluate": ["run"],
    "evaluate --manifest": ["space", "--manifest", "m.csv"],
    "evaluate --suite": ["--suite", "mini5"],
    "evaluate --missing": ["--suite", "mini5", "--missing"],
}
WRONG = {
    "nonsense=1": "unknown (suite )?setting|--set has no effect",
    "align.mse_wieght=1": "mse_weight|suite setting|--set has no effect",
    "evaluate.bootstrap=none": "evaluate.bootstrap|suite setting|--set has no effect",
}


def run(name, *arguments):
    app([name.split()[0], *arguments], standalone_mode=False)


def test_every_command_with_settings_has_its_forms_here():
    assert {name.split()[0] for name in FORMS} == set(WITH_SET)


@pytest.mark.parametrize(("form", "setting"), product(FORMS, WRONG))
def test_a_wrong_setting_ends_every_form(form, setting, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=WRONG[setting]):
        run(form, *FORMS[form], "--set", setting)
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize(
    "setting", ["align.dim=64", "evaluate.probe=true", "evaluate.post=[pc]", "evaluate.agreement_texts=5", "seed=3"]
)
def test_settings_without_effect_on_a_finished_space_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"{setting.split('=')[0]}' has no effect with --manifest.*evaluate.tasks"):
        run("evaluate", "space", "--manifest", "m.csv", "--set", setting)


IGNORED = {  # form -> options without effect in it
    "evaluate": ["--split", "--set", "--prompts", "--out", "--only", "--missing"],
    "evaluate --manifest": ["--out", "--only", "--missing"],
    "evaluate --suite": ["--manifest", "--root", "--split", "--prompts", "SPACE"],
    "prepare": ["--limit"],
    "prepare --root": ["--set", "--seed"],
}
VALUES = {"--set": "seed=1", "--limit": "3", "--seed": "1", "--missing": None}


@pytest.mark.parametrize(("form", "option"), [(form, option) for form in IGNORED for option in IGNORED[form]])
def test_options_without_effect_are_refused(form, option):
    value = VALUES.get(option, "x")
    arguments = ["x"] if option == "SPACE" else [option, *([value] if value else [])]
    with pytest.raises(ConfigError, match=f"{option} has no effect with"):
        run(form, *FORMS.get(form, ["m.csv"]), *arguments)
