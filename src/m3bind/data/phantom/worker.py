"""One process of a cohort's generation: `python -m m3bind.data.phantom.worker FOLDER SHARE OF`.

Prints one line per written patient; stops when its output is closed.
"""

import sys
from pathlib import Path

from m3bind.data.phantom.cohort import load_settings, work


def _done() -> None:
    print("done", flush=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]), load_settings(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), _done)
