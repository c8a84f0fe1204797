"""Run by test_processes.py, in one or several processes: `m3bind fit` that records which files are decoded as inputs.

LOG: folder for the names. DIE: step of stage 1 at which rank 1 dies. SLOW: seconds of the first evaluation, which is
then longer than the collectives' timeout.
"""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from m3bind.align.stage import AlignStage
from m3bind.cli import main
from m3bind.pipeline import run, stored_inputs

rank = int(os.environ.get("RANK", "0"))
log = Path(os.environ["LOG"]) / str(rank)
read, measure, batch = stored_inputs.FileReader.read, run.measure, AlignStage.batch
slow = float(os.environ.get("SLOW", "0"))


def counting(self, path, *others):
    with log.open("a") as file:
        file.write(f"{Path(path).name}\n")
    return read(self, path, *others)


def measuring(*arguments):
    global slow
    time.sleep(slow)
    slow = 0.0
    return measure(*arguments)


def dying(self, step):
    if rank == 1 and step == int(os.environ.get("DIE", "-1")):
        os._exit(9)
    return batch(self, step)


if __name__ == "__main__":
    stored_inputs.FileReader.read, run.measure, AlignStage.batch = counting, measuring, dying
    if slow:
        dist.init_process_group("gloo", timeout=timedelta(seconds=0.8 * slow))
    main()
