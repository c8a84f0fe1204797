import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3bind import modalities
from m3bind.models import registry
from space import tiny


@pytest.fixture(autouse=True, scope="module")
def _registered():
    """Only the tiny model and modalities are known, until the tests of a file are over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry._registry, "_classes", None)
        patch.setattr(modalities.base._registry, "_classes", None)
        tiny.register()
        yield


@pytest.fixture
def start():
    """Start Python code that may say `from space import tiny` in another process."""
    folder = str(Path(__file__).parent.parent)

    def run(code, *arguments):
        path = os.pathsep.join(p for p in (folder, os.environ.get("PYTHONPATH", "")) if p)
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)

    return run
