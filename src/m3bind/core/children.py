"""Child Python processes that cannot import modules from the current folder by accident.

* `command`: the command line for one of our modules: Python with -P, which excludes the current folder from imports.
* `environment`: this process's environment, with `import_path` as PYTHONPATH.
* `usable_cores`: how many can compute at the same time.
* `import_path`: the folders a child imports from. * `home_of`: the folder of a user's module outside `import_path`.

This process may import from its current folder (`python -c`, a notebook) or from the folder of a script; such a folder
can be an untrusted archive, where `nibabel.py` or a folder `dl` would shadow a library. It is not passed to children,
unless m3bind itself was imported from there or PYTHONPATH names it. A modality defined there still works: the worker
gets its folder and searches it last, so that nothing in it can shadow a library.
"""

import os
import sys
from pathlib import Path

from m3bind.core.launcher import local_processes

_STARTED = os.getcwd()


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: this process's, `more`, and PYTHONPATH."""
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(import_path())}


def usable_cores() -> int:
    """Cores that this process may use (its CPU affinity), divided among the processes that a launcher started here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_processes())


def import_path() -> list[str]:
    """The folders a child imports from, in order: `sys.path` without the current folder and the script's."""
    named = {os.path.realpath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p)}
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    excluded = {os.path.realpath(_STARTED), os.path.realpath(os.getcwd())}
    if script:
        excluded.add(os.path.dirname(os.path.realpath(script)))
    excluded -= {*named, str(Path(__file__).resolve().parents[2])}
    return [entry for entry in sys.path if os.path.isabs(entry) and os.path.realpath(entry) not in excluded]


def home_of(module: str) -> str | None:
    """The folder a loaded module was imported from; None if a child searches that folder anyway."""
    top = sys.modules[module.partition(".")[0]]
    places = [*getattr(top, "__path__", ())] or [getattr(top, "__file__", None) or ""]
    homes = [os.path.dirname(os.path.realpath(place)) for place in places if place]
    known = {os.path.realpath(entry) for entry in import_path()}
    return next((home for home in homes if home not in known), None)
