"""Child Pythons, started so that nothing can run that merely lies where the user stands.

* `command`: what to start for one of our modules: Python with -P, which leaves the current folder out of the places to
  import from. * `environment`: this process's, with its places to import from as PYTHONPATH.
* `import_path`: these places. * `home_of`: where a module of the user's own lies, if it is none of them.

This process may look for modules in its current folder (`python -c`, a notebook) or beside a script; such a folder can
be an archive somebody sent, where `nibabel.py` or a folder `dl` would stand in for a library. It is not handed on,
unless m3bind itself came from there or PYTHONPATH names it. A modality defined there is found all the same: its folder
is told to the worker, which looks there last, so that nothing in it can take a library's place.
"""

import os
import sys
from pathlib import Path

_STARTED = os.getcwd()


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Of a child: this process's, `more`, and where modules are found."""
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(import_path())}


def import_path() -> list[str]:
    """Where a child looks for modules, in order: `sys.path` without the current folder and the script's."""
    named = {os.path.realpath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p)}
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    left_out = {os.path.realpath(_STARTED), os.path.realpath(os.getcwd())}
    if script:
        left_out.add(os.path.dirname(os.path.realpath(script)))
    left_out -= {*named, str(Path(__file__).resolve().parents[2])}
    return [entry for entry in sys.path if os.path.isabs(entry) and os.path.realpath(entry) not in left_out]


def home_of(module: str) -> str | None:
    """The folder that a loaded module was found in, where it is none that a child looks in by itself."""
    top = sys.modules[module.partition(".")[0]]
    places = [*getattr(top, "__path__", ())] or [getattr(top, "__file__", None) or ""]
    homes = [os.path.dirname(os.path.realpath(place)) for place in places if place]
    known = {os.path.realpath(entry) for entry in import_path()}
    return next((home for home in homes if home not in known), None)
