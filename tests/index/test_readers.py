"""Readers in other processes search in a loop while a writer adds, deletes and commits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from index import killed
from index.made import DIM, vectors
from m3bind.index import create_index
from reference.search import NaiveIndex

READERS, CHANGES, ROUNDS = 3, 40, 12
READER = """
import json, sys
from m3bind.index import open_index
from index import killed
from index.made import vectors
killed.small()
for line in range(int(sys.argv[2])):
    with open_index(sys.argv[1]) as index:
        first, second = (index.search(vectors(3, 9), 5, exact=True).ids for _ in range(2))
        assert first == second
        items = index.items(first[0])
        print(json.dumps([index.store.state.state, len(index), first]), flush=True)
print("done", flush=True)
"""


def test_every_answer_is_that_of_an_acknowledged_state(tmp_path, small):
    folder, oracle = tmp_path / "index", NaiveIndex()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    truth = {}
    with create_index(folder, DIM, "space") as index:

        def remember():
            hits = [[name for name, _ in oracle.search(query, 5)] for query in vectors(3, 9)]
            truth[index.store.state.state] = [len(oracle.kept), hits]

        remember()
        command = [sys.executable, "-c", READER, str(folder), str(ROUNDS)]
        readers = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(READERS)
        ]
        number = 0
        while any(reader.poll() is None for reader in readers) or number < CHANGES:
            for each in (index, oracle):
                killed.change(each, 3, number)
            remember()
            number += 1
        answers = [json.loads(line) for reader in readers for line in reader.stdout if line != "done\n"]
        assert all(reader.wait() == 0 for reader in readers)
    assert len(answers) == READERS * ROUNDS
    for state, n, hits in answers:
        assert [n, hits] == truth[state]
    assert len({state for state, _, _ in answers}) > 1, np.array(answers, object)
