"""A writer that tests kill: changes an index in an endless loop and reports each acknowledged change.

Change i is deterministic for a given seed, so that a test can replay it.
"""

import os
import sys

import numpy as np

from index.made import DIM, items, names, vectors
from m3bind.index import ann, embedded


def small():
    """Codes and graph from a few hundred rows."""
    ann.CODES_FROM, ann.NEAR_FROM, embedded.SMALL, embedded.RUN = 150, 300, 150, 5


def change(index, seed, number):
    """Apply change `number`; publishing changes nothing that an index holds."""
    rng = np.random.default_rng([seed, number])
    start, n = int(rng.integers(0, 600)), int(rng.integers(1, 120))
    kind = rng.choice(["upsert", "upsert", "delete", "commit"])
    if kind == "upsert":
        index.upsert(vectors(n, [seed, number]), items(names(start, n), [seed, number]))
    elif kind == "delete":
        index.delete(names(start, n // 3 + 1))
    elif hasattr(index, "commit"):
        index.commit()


def write(folder, seed, first):
    """Change the index from change `first` on, until killed."""
    from m3bind.index import create_index, open_index
    from m3bind.index.uri import exists

    index = open_index(folder, writable=True) if exists(folder) else create_index(folder, DIM, "space")
    while True:
        change(index, seed, first)
        os.write(1, f"{first}\n".encode())
        first += 1


def main(folder, seed):
    """For each line with the number of a change: a writer that begins there. "writer ID", what it did, "end"."""
    small()
    for line in sys.stdin:
        ready, go = os.pipe()
        child = os.fork()
        if not child:
            os.read(ready, 1)
            write(folder, seed, int(line))
        os.write(1, f"writer {child}\n".encode())
        os.write(go, b".")
        os.waitpid(child, 0)
        os.close(ready), os.close(go)
        os.write(1, b"end\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
