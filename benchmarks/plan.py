"""How far `m3bind plan` is from the run: planned and measured seconds of every stage, and their ratio.

    python benchmarks/plan.py [--cpu] [--json FILE]         the demo in small, `quick`; also: demo
    python benchmarks/plan.py paper [--cpu] [--steps 2]     the paper's networks and batch sizes on generated files

--cpu compares processor seconds of one thread, with readers inside this process: for a busy machine. The run's files
are generated, its weights are random, and it is deleted afterwards. A stage's first step is not counted.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

from _generated import write_manifest, write_text_encoder
from m3bind.config import RunConfig, load_config
from m3bind.core import progress
from m3bind.core.device import release_memory
from m3bind.pipeline import plan as plans
from m3bind.pipeline.plan import cost, decode_cost, step_cost
from m3bind.pipeline.plan.table import as_text
from m3bind.pipeline.run import Run

CPU = "--cpu" in sys.argv
clock = time.process_time if CPU else time.perf_counter
PASSES = {"features": "embed before binding", "embed": "embed before binding", "encode": "texts", "read": "ingest"}


def planned(config: RunConfig, folder: Path) -> plans.RunPlan:
    """The plan, with this script's clock."""
    for module in (cost, decode_cost, step_cost):
        module.time = SimpleNamespace(perf_counter=clock, monotonic=time.monotonic)
    notes: list[str] = []
    machine = plans.machine_of(config, cores=1 if CPU else None)
    work, assets = plans.work_of(config, folder / "plan", folder / "cache", notes)
    return plans.make_plan(config, assets, work, machine, notes)


def measured(config: RunConfig, folder: Path) -> dict[str, list[float]]:
    """Label of each piece of work of a run -> [seconds, items, seconds of all but the first item]."""
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    enter, leave, advance = progress.Progress.__enter__, progress.Progress.__exit__, progress.Progress.advance

    def start(bar):
        bar.began, bar.first = clock(), None
        return enter(bar)

    def count(bar, n=1, note=None):
        bar.first = bar.first or clock()
        advance(bar, n, note)

    def end(bar, *error):
        label = bar.label if not (evaluating and bar.label.startswith("encode")) else "texts of the evaluation"
        row, now = found[label], clock()
        row[0] += now - bar.began
        row[1] += bar.done - bar._first
        row[2] += now - (bar.first or now)
        return leave(bar, *error)

    progress.Progress.__enter__, progress.Progress.__exit__, progress.Progress.advance = start, end, count
    run, evaluating = Run(config, folder / "run", folder / "cache"), []
    evaluate = run.evaluate

    def judged(stage):
        evaluating.append(stage)
        rows = evaluate(stage)
        evaluating.clear()
        return rows

    run.evaluate = judged
    run.fit()
    return found


def compare(plan: plans.RunPlan, found: dict[str, list[float]]) -> list[dict]:
    """One row per stage that both know: seconds of a step (or of the pass), and measured / planned."""
    rows = []
    for stage in plan.stages:
        if stage.name in found and stage.steps > 1:
            _, items, later = found[stage.name]
            seconds, expected = later / max(items - 1, 1), stage.seconds_per_step
        else:
            names = [n for n in found if n == stage.name or _stage_of(n) == stage.name]
            seconds, expected = sum(found[n][0] for n in names), stage.seconds
        if seconds and expected:
            rows.append({"stage": stage.name, "planned": expected, "measured": seconds, "ratio": expected / seconds})
    return rows


def _stage_of(label: str) -> str:
    first, _, rest = label.partition(" ")
    stage = PASSES.get(first, "")
    return f"ingest {rest}" if stage == "ingest" else stage


def paper(folder: Path, steps: int) -> RunConfig:
    """The paper's settings on generated files: one batch of each modality, networks with random weights."""
    text = write_text_encoder(folder / "bert")
    changes = [f"{stage}={steps}" for stage in ("pretrain.steps", "align.steps", "distill.steps", "distill.steps_b")]
    changes += [f"data.manifest={write_manifest(folder / 'files')}", f"distill.student.text={text}", "data.minimum=2"]
    config = load_config("paper", [*changes, "evaluate.probe=false", "evaluate.bootstrap=20"])
    for settings in config.modalities.values():
        settings.checkpoint = None
        settings.settings = {key: str(text) for key in settings.settings}
    return config


def main() -> None:
    """Plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="?", choices=["quick", "demo", "paper"], default="quick")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, help="folder for generated files, which are not deleted")
    arguments = parser.parse_args()
    if CPU:
        torch.set_num_threads(1)
        os.environ["M3BIND_ISOLATION"] = "off"
    os.environ["M3BIND_PROGRESS"] = "plain"
    folder = arguments.cache or Path(tempfile.mkdtemp(prefix="m3bind-plan-"))
    config = paper(folder, arguments.steps) if arguments.settings == "paper" else load_config(arguments.settings)
    try:
        plan = planned(config, folder)
        print(as_text(plan), flush=True)
        release_memory()  # else the run seems to need what the plan had
        rows = compare(plan, measured(config, folder))
    finally:
        if not arguments.cache:
            shutil.rmtree(folder)
    print(f"{'stage':24s} {'planned':>10s} {'measured':>10s} {'planned / measured':>20s}")
    for row in rows:
        print(f"{row['stage']:24s} {row['planned']:10.3g} {row['measured']:10.3g} {row['ratio']:20.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"cpu": CPU, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
