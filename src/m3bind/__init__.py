"""m3bind: bind CLIP-like medical models of any modality into one text-anchored embedding space.

Importing the package alone is quick (no torch): everything public is imported on first use.
"""

import os
import sys


def _leave_current_folder() -> None:
    """Keep `python -m m3bind` from taking modules of the current folder, which may be an archive somebody sent.

    Until Python has found the module that it was asked to run, it says so in its arguments; nothing was imported from
    there so far, but m3bind itself where it lies there.
    """
    asked = sys.orig_argv[-len(sys.argv)].removeprefix("-m") if sys.argv[:1] == ["-m"] else ""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    first = "" if sys.flags.safe_path else sys.path[0]
    if asked.partition(".")[0] == "m3bind" and first and os.path.realpath(first) != home:
        del sys.path[0]


_leave_current_folder()

import importlib  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from m3bind.core.version import __version__  # noqa: E402

# Spinning OpenMP workers slow a busy machine down severely; torch reads this variable once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_LAZY = {
    "Query": "m3bind.search.query",
    "Searcher": "m3bind.search.searcher",
    "Space": "m3bind.space.bundle",
    "Where": "m3bind.index",
    "bind": "m3bind.pipeline.bind",
    "build_index": "m3bind.index",
    "create_index": "m3bind.index",
    "encode_files": "m3bind.encode.job",
    "export_arrays": "m3bind.export",
    "export_space": "m3bind.export",
    "load": "m3bind.space.bundle",
    "open_encoded": "m3bind.encode.encoded",
    "open_index": "m3bind.index",
    "read_manifest": "m3bind.data.manifest",
    "save_space": "m3bind.space.bundle",
}
_MODULES = ("align", "data", "distill", "encode", "errors", "evaluate", "experiments", "export", "hospital", "index",
            "modalities", "models", "pipeline", "pretrain", "report", "search", "serve", "space",
            "training")  # fmt: skip

if TYPE_CHECKING:
    from m3bind.data.manifest import read_manifest
    from m3bind.encode.encoded import open_encoded
    from m3bind.encode.job import encode_files
    from m3bind.export import export_arrays, export_space
    from m3bind.index import Where, build_index, create_index, open_index
    from m3bind.pipeline.bind import bind
    from m3bind.search.query import Query
    from m3bind.search.searcher import Searcher
    from m3bind.space.bundle import Space, load, save_space

__all__ = [
    "Query",
    "Searcher",
    "Space",
    "Where",
    "__version__",
    "bind",
    "build_index",
    "create_index",
    "encode_files",
    "export_arrays",
    "export_space",
    "load",
    "open_encoded",
    "open_index",
    "read_manifest",
    "save_space",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"m3bind.{name}")
    raise AttributeError(f"module 'm3bind' has no attribute {name!r}")
