import os
import subprocess
import sys
from pathlib import Path

import pytest

from known import only
from space import tiny


@pytest.fixture(autouse=True, scope="module")
def _registered():
    """Only the tiny model and modalities are known, until the tests of a file are over."""
    with only(tiny.register):
        yield


@pytest.fixture
def start():
    """Start Python code that may say `from space import tiny` in another process."""
    folder = str(Path(__file__).parent.parent)

    def run(code, *arguments, stderr=None):
        path = os.pathsep.join(p for p in (folder, os.environ.get("PYTHONPATH", "")) if p)
        command = [sys.executable, "-c", code, *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": path}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)

    return run
