"""Opens hostile folders and files under a Python audit hook: is anything run, imported, fetched or written?

How to add items (`spaces`, `models`, `folders` do):

    def items(folder: Path) -> list[Action]:      # write hostile files below `folder`, define how each is opened
        return [Action("a space that names code", command=("evaluate", str(made))),
                Action("the same from Python", call="m3bind.space.bundle:load", args=(str(made),))]

    def test_...(tmp_path):
        actions = items(tmp_path / "in")
        assert faults(actions, run(actions, tmp_path)) == []

* An `Action` is an m3bind command line, or a call "module:function" with JSON-serialisable arguments. The function is
  in m3bind or a module of tests/ ("hostile.folders:open_app"); its return value is discarded.
* All actions of one `run` are carried out in ONE child Python started with -P (torch is imported only once); if one of
  them ends that process or takes longer than 40 s, the rest continues in a new one. Standard input answers "y".
* `run` returns a `Report` for each action, in order. `faults` describes each fault (empty list: none):
  - code: exec of a file outside the installation, of text, an import from elsewhere (also a folder imported as a
    package), a library loaded by ctypes, pickle.find_class, a prompt on the terminal;
  - processes: anything but our own workers (`CHILDREN`) with -P or -I and a PYTHONPATH inside the installation; these
    run under the same hook;
  - connections: any address looked up, connected or bound (also refused, so nothing waits for a network);
  - files: written, renamed or removed outside `Action.writes`, the temporary folder and the home of the child; any file
    in `Action.private` opened at all;
  - `HARM` executed: use it in hostile Python files, so that code that runs before a hook is installed is detected too;
  - an exception that is neither an M3BindError nor an exit, an exit code that is not in `Action.codes`, the name of an
    exception's class in the output, more than `SECONDS` (times `patience`; first repeated alone) or more than `MEMORY`
    above the level before.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import m3bind

SECONDS, MEMORY = 10.0, 1_500_000_000
TESTS = Path(__file__).resolve().parents[1]
CHILDREN = [
    [sys.executable, "-P", "-m", "m3bind.modalities.formats.worker"],
    [sys.executable, "-P", "-m", "m3bind.data.phantom.worker"],
    [sys.executable, "-I", str(Path(m3bind.__file__).with_name("models") / "weights/safe_unpickle.py")],
]
WARM = ("m3bind.cli", "torch", "transformers", "pandas", "pyarrow.parquet", "faiss", "m3bind.encode.job",
        "m3bind.search.searcher", "m3bind.serve.app", "m3bind.pipeline.outputs",
        "m3bind.experiments.commands")  # fmt: skip
HARM = (
    "import os\n"
    "with open(os.environ.get('M3BIND_TEST_HARM', '/dev/null'), 'a') as handle:\n"
    "    handle.write(__file__ + chr(10) if '__file__' in dir() else 'code' + chr(10))\n"
)


@dataclass(frozen=True)
class Action:
    """Something to do with hostile things: a `command`, or a `call` with `args`. See the module."""

    name: str
    command: Sequence[str] = ()
    call: str = ""
    args: Sequence[Any] = ()
    cwd: Path | str = ""  # default: an empty folder
    writes: Sequence[Path | str] = ()  # folders where it may write
    private: Sequence[Path | str] = ()  # files and folders it must not even open
    codes: Sequence[int] = (0, 1, 2)  # exit codes that are right


@dataclass
class Report:
    """What became of an action."""

    name: str
    events: list[str] = field(default_factory=list)  # what must not happen
    code: int | None = None  # None: the process ended
    error: str = ""  # the typed error of a call
    uncaught: str = ""
    output: str = ""
    seconds: float = 0.0
    memory: int = 0  # bytes more than before, at the peak

    def faults(self, action: Action) -> list[str]:
        """What is wrong, in words."""
        found = list(dict.fromkeys(self.events))
        said = self.output + self.error.partition(": ")[2]
        if self.code is None:
            found.append("ended the process or took longer than 40 s")
        elif self.uncaught:
            found.append(f"uncaught: {self.uncaught}")
        elif self.code not in action.codes:
            found.append(f"exit code {self.code}: {said[-500:]}")
        if names := re.findall(r"\b[A-Z]\w*(?:Error|Exception|Warning)\b", said):
            found.append(f"says {names[0]}: {said[-500:]}")
        if self.seconds > SECONDS * patience():
            found.append(f"{self.seconds:.1f} s")
        if self.memory > MEMORY:
            found.append(f"{self.memory / 1e9:.1f} GB")
        return [f"{self.name}: {fault}" for fault in found]


def run(actions: Sequence[Action], scratch: Path, warm: Sequence[str] = WARM) -> list[Report]:
    """A report for each action; `scratch` is an empty folder for what the harness needs.

    What is hostile must not lie in `scratch`/audit, where writing is allowed.
    """
    assert len({action.name for action in actions}) == len(actions), "two actions of one name"
    reports = _run(actions, scratch / "audit", warm)
    slow = [action for action, report in zip(actions, reports) if report.seconds > SECONDS * patience()]
    again = {report.name: report for report in _run(slow, scratch / "audit-again", warm)} if slow else {}
    return [again.get(report.name, report) for report in reports]


def patience() -> float:
    """How many times longer work takes on this machine than if it had nothing else to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def faults(actions: Sequence[Action], reports: Sequence[Report]) -> list[str]:
    """Everything that is wrong with the reports, in words."""
    return [fault for action, report in zip(actions, reports, strict=True) for fault in report.faults(action)]


def _run(actions: Sequence[Action], scratch: Path, warm: Sequence[str]) -> list[Report]:
    reports: list[Report] = []
    while len(reports) < len(actions):
        rest = actions[len(reports) :]
        found = _in_one_child(rest, scratch / f"{len(reports):03d}", warm)
        assert found, "the child could not start"
        reports += found
    return reports


def _in_one_child(actions: Sequence[Action], scratch: Path, warm: Sequence[str]) -> list[Report]:
    """Reports of the actions it came to; the last one may have ended it."""
    for name in ("empty", "tmp", "home", "out"):
        (scratch / name).mkdir(parents=True)
    ask = [sys.executable, "-P", "-c", r"import sys; print(*sys.path, sep='\n')"]
    found = subprocess.check_output(ask, text=True, cwd=scratch / "empty").splitlines()
    roots = sorted({os.path.realpath(entry) for entry in [*filter(None, found), str(TESTS), sys.prefix]})
    plan = {
        "roots": roots,
        "paths": [str(TESTS)],
        "children": CHILDREN,
        "warm": list(warm),
        "patience": patience(),
        "writes": [os.path.realpath(scratch / name) for name in ("tmp", "home", "out", "harm")],
        "actions": [
            {
                "name": action.name,
                "command": list(action.command),
                "call": action.call,
                "args": list(action.args),
                "cwd": str(action.cwd or scratch / "empty"),
                "output": str(scratch / "out" / f"{number}.txt"),
                "writes": [os.path.realpath(path) for path in action.writes],
                "private": [os.path.realpath(path) for path in action.private],
            }
            for number, action in enumerate(actions)
        ],
    }
    for name in ("plan.json", "log.plan"):  # the second: for children of the child
        (scratch / name).write_text(json.dumps(plan), encoding="utf-8")
    (scratch / "log").touch()
    (scratch / "harm").touch()
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "M3BIND_", "PYTHON", "TORCH"))
    }
    environment = {
        **kept,
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "MPLCONFIGDIR": str(scratch / "home"),
        "M3BIND_TEST_HARM": str(scratch / "harm"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-P", str(Path(__file__).with_name("_audited.py")), str(scratch / "log")]
    with open(scratch / "yes", "w+b") as yes, open(scratch / "errors", "wb") as errors:
        yes.write(b"y\n" * 100_000)
        yes.seek(0)
        done = subprocess.run(
            [*command, str(scratch / "plan.json")], cwd=scratch / "empty", env=environment, stdin=yes, stderr=errors,
            stdout=errors, check=False, timeout=(60 + 50 * len(actions)) * patience(),
        )  # fmt: skip
    reports = list(_reports(scratch, plan["actions"]))
    assert reports, f"exit code {done.returncode}: {(scratch / 'errors').read_text()[-3000:]}"
    return reports


def _reports(scratch: Path, actions: Sequence[dict[str, Any]]) -> Iterator[Report]:
    """From the log. What happens between two actions (imports before the first) counts for the later one."""
    outputs = {action["name"]: Path(action["output"]) for action in actions}
    events: list[str] = []
    report: Report | None = None
    peak = 0
    for line in (scratch / "log").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "event" in entry:
            (events if report is None else report.events).append(f"{entry['event']} {entry['detail']}")
        elif "start" in entry:
            report, events, peak = Report(entry["start"], events), [], entry["memory"]
        elif report is not None:
            report.code, report.seconds = entry["code"], entry["seconds"]
            report.error, report.uncaught = entry.get("error", ""), entry.get("uncaught", "")
            report.memory = (entry["memory"] - peak) * 1024
            report.output = outputs[report.name].read_text(encoding="utf-8", errors="replace")
            yield report
            report = None
    if report is not None:
        report.output = outputs[report.name].read_text(encoding="utf-8", errors="replace")
        yield report
