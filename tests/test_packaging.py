"""pyproject.toml, the lock files, the workflows and the README state the same Pythons and packages."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def direct() -> list[Requirement]:
    """Every dependency that pyproject.toml names, of the package and its extras, other than the package itself."""
    named = [*PROJECT["dependencies"], *(name for extra in PROJECT["optional-dependencies"].values() for name in extra)]
    return [found for found in map(Requirement, named) if found.name != PROJECT["name"]]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.!+-]+", str(one.specifier)) for one in found)
    versions = {canonicalize_name(one.name): Version(str(one.specifier)[2:]) for one in found}
    assert len(versions) == len(found), "a package has two versions"
    return versions


@pytest.mark.parametrize("needed", direct(), ids=str)
def test_a_dependency_has_a_floor_which_is_what_the_lowest_set_takes_and_the_lock_fits_it(needed: Requirement) -> None:
    assert str(needed.specifier).startswith(">=") and "," not in str(needed.specifier)
    name, floor = canonicalize_name(needed.name), Version(str(needed.specifier)[2:])
    assert pins("lowest.txt")[name].release[: len(floor.release)] == floor.release, "make lock"
    assert needed.specifier.contains(pins("locked.txt")[name]), "make lock"


def test_the_developers_extra_brings_what_the_other_extras_do_but_the_weights() -> None:
    itself = next(
        found for found in map(Requirement, PROJECT["optional-dependencies"]["dev"]) if found.name == "m3bind"
    )
    assert itself.extras == set(PROJECT["optional-dependencies"]) - {"dev", "compact"}


def test_the_range_of_pythons_is_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    told = [name.split(" :: ")[-1] for name in PROJECT["classifiers"] if "Python ::" in name]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    tried = [step["with"]["python-version"] for step in jobs["ci"]["steps"] if "python-version" in step.get("with", {})]
    assert told == PYTHONS == [*tried, *jobs["pythons"]["strategy"]["matrix"]["python"]]
    for page in ("README.md", "docs/quickstart.md"):
        assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / page).read_text()


def test_what_the_workflows_call_is_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            names = [entry["packages"] for entry in job.get("strategy", {}).get("matrix", {}).get("include", [])]
            for command in (step["run"] for step in job["steps"] if step.get("run", "").startswith("make ")):
                asked = command.removeprefix("make ")
                made = {asked.replace("${{ matrix.packages }}", name) for name in names or [""]}
                assert made <= set(targets)
