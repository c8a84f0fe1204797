"""Process exit while a map is still being computed in a native library, which Python must not terminate midway."""

import subprocess
import sys

import pytest

CODE = """
import atexit, sys, threading, time
from m3bind.serve.run import leave

atexit.register(print, "ended by Python")
threading.Thread(target=time.sleep, args=(2,), name=sys.argv[1], daemon=True).start()
print("stopped")
leave()
print("went on")
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [("map", "stopped\n"), ("warm-up", "stopped\n"), ("another", "stopped\nwent on\nended by Python\n")],
)
def test_it_ends_at_once_and_well_where_something_is_still_computed(name, said):
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    done = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, said)
