"""The stored outputs of the authors' code are complete, and this numpy generates the weights they were made with."""

import json

import numpy as np
import pytest

from models.golden import FOLDER, _module


def test_this_numpy_draws_the_weights_that_the_authors_code_was_run_with() -> None:
    _, different = _module("weights").check()
    assert not different


@pytest.mark.parametrize("meta", sorted(FOLDER.glob("out/*.json")), ids=lambda path: path.name)
def test_a_fixture_has_its_keys_and_a_tolerance_for_every_output(meta) -> None:
    stored = json.loads(meta.read_text())
    assert _module("weights").read_keys(str(FOLDER / stored["keys_file"]))
    with np.load(meta.with_suffix(".npz")) as arrays:
        outputs = {name for name in arrays.files if not name.startswith("prep/")}
    assert outputs == set(stored["suggested_abs_tolerance"])


def test_there_are_fixtures() -> None:
    assert len(list(FOLDER.glob("out/*.json"))) >= 24
