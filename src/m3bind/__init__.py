"""m3bind: bind CLIP-like medical models of any modality into one text-anchored embedding space.

Importing the package alone is quick (no torch): everything public is imported on first use.
"""

import os
import sys


def _leave_current_folder() -> None:
    """Keep `python -m m3bind` from importing modules of the current folder, which may be an untrusted archive.

    Until Python has found the module of `-m`, `sys.argv[0]` is "-m"; nothing has been imported from the current folder
    yet, except m3bind itself if it lies there.
    """
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m") if sys.argv[:1] == ["-m"] else ""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    first = "" if sys.flags.safe_path else sys.path[0]
    if module.partition(".")[0] == "m3bind" and first and os.path.realpath(first) != home:
        del sys.path[0]


_leave_current_folder()

from typing import TYPE_CHECKING  # noqa: E402

from m3bind.core.lazy import lazy_names  # noqa: E402
from m3bind.core.version import __version__  # noqa: E402

# Spinning OpenMP workers slow a busy machine down severely; torch reads this variable once, when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_LAZY = {
    "Query": "search.query",
    "Searcher": "search.searcher",
    "Space": "space.bundle",
    "Where": "index",
    "bind": "pipeline.bind",
    "build_index": "index",
    "class_prompts": "evaluate.own_prompts",
    "create_index": "index",
    "encode_files": "encode.job",
    "export_arrays": "export",
    "export_space": "export",
    "load": "space.bundle",
    "open_encoded": "encode.encoded",
    "open_index": "index",
    "read_manifest": "data.manifest",
    "save_space": "space.bundle",
}
_MODULES = ("align", "data", "distill", "encode", "errors", "evaluate", "experiments", "export", "hospital", "index",
            "modalities", "models", "pipeline", "pretrain", "report", "search", "serve", "space",
            "training")  # fmt: skip

if TYPE_CHECKING:
    from m3bind.data.manifest import read_manifest
    from m3bind.encode.encoded import open_encoded
    from m3bind.encode.job import encode_files
    from m3bind.evaluate.own_prompts import class_prompts
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
    "class_prompts",
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

__getattr__ = lazy_names(__name__, _LAZY, _MODULES)
