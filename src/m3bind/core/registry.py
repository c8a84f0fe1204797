"""Finding siblings by themselves: every file of a folder that defines a subclass of a base class is known by name.

A modality, a model, a binding method or a data set is added by dropping one file into its package (or by an entry
point of an installed distribution); nothing else is edited.
"""

import importlib
import importlib.metadata
import inspect
import pkgutil
from typing import Generic, TypeVar

from m3bind.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of the concrete subclasses of `base` found in the modules of `package` and in its entry points.

    A class offers its names through the class attribute `names` (a tuple) or `name` (a string).
    The entry-point group is the package name, e.g. `m3bind.models`; each entry point names a module.
    Discovery happens once, at the first question, so importing the package stays cheap.
    """

    def __init__(self, kind: str, package: str, base: type[T]) -> None:
        """`kind` is the word used in error messages ("model")."""
        self.kind, self.package, self.base = kind, package, base
        self._classes: dict[str, type[T]] | None = None

    def classes(self) -> dict[str, type[T]]:
        """All known names with their classes."""
        if self._classes is None:
            found: dict[str, type[T]] = {}
            package = importlib.import_module(self.package)
            modules = [f"{self.package}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
            modules += [point.value for point in importlib.metadata.entry_points(group=self.package)]
            for name in modules:
                for value in vars(importlib.import_module(name)).values():
                    if inspect.isclass(value) and issubclass(value, self.base) and not inspect.isabstract(value):
                        if value.__module__ != name:
                            continue
                        for public in getattr(value, "names", ()) or (getattr(value, "name", ""),):
                            if public:
                                found[public] = value
            self._classes = found
        return self._classes

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self.classes())

    def get(self, name: str) -> type[T]:
        """The class registered as `name`.

        Raises:
            UnknownNameError: nobody registered it; the message offers the nearest names.
        """
        try:
            return self.classes()[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self.classes()) from None

    def refresh(self) -> None:
        """Forget what was found, so that the next question looks again."""
        self._classes = None
