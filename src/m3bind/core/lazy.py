"""Public names of a package that are imported on first use, so that importing the package alone is quick.

* `lazy_names`: the package's `__getattr__`.
"""

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any


def lazy_names(package: str, names: Mapping[str, str], modules: Collection[str] = ()) -> Callable[[str], Any]:
    """`__getattr__` of `package`; it raises AttributeError for every other name.

    Args:
        package: its `__name__`.
        names: public name -> module that defines it, relative to the package.
        modules: submodules that are imported by their own name.
    """

    def get(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
