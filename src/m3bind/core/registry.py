"""Finding siblings by themselves: every file of a folder that defines a subclass of a base class is known by name.

A modality, a model, a binding method, a data set or a few-shot method is added by dropping one file into its package,
or by an installed distribution that names a class in an entry point; nothing else is edited.
"""

import importlib
import importlib.metadata
import inspect
import logging
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar

from m3bind.errors import ConfigError, UnknownNameError, in_words

T = TypeVar("T")
log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Names of the concrete subclasses of `base` found in the modules of `package` and in the entry points of `group`.

    A class offers its names through the class attribute `names` (a tuple) or `name` (a string). An entry point says
    `package.module:Class`; one that cannot be used is named in a warning and in `broken`, and the others are found.
    Discovery happens once, at the first question, so importing the package stays cheap.
    """

    def __init__(self, kind: str, package: str, group: str, base: type[T]) -> None:
        """`kind` is the word used in error messages ("model")."""
        self.kind, self.package, self.group, self.base = kind, package, group, base
        self.broken: dict[str, str] = {}  # entry point -> why it was skipped
        self._classes: dict[str, type[T]] | None = None

    def classes(self) -> dict[str, type[T]]:
        """All known names with their classes."""
        if self._classes is None:
            self.broken = {}
            found = {name: cls for cls in self._own() for name in names_of(cls)}
            for point in importlib.metadata.entry_points(group=self.group):
                try:
                    found |= self._offered(point, found)
                except Exception as error:  # another distribution's code, which may raise anything when imported
                    self.broken[point.name] = reason = str(error) or in_words(error)
                    log.warning("%s %s (%s) is left out: %s", self.kind, point.name, point.value, reason)
            self._classes = found
        return self._classes

    def _own(self) -> Iterator[type[T]]:
        package = importlib.import_module(self.package)
        for info in pkgutil.iter_modules(package.__path__):
            name = f"{self.package}.{info.name}"
            for value in vars(importlib.import_module(name)).values():
                if self._concrete(value) and value.__module__ == name:
                    yield value

    def _offered(self, point: importlib.metadata.EntryPoint, known: dict[str, type[T]]) -> dict[str, type[T]]:
        cls = point.load()
        if not self._concrete(cls):
            raise ConfigError(f"no subclass of {self.base.__name__}; an entry point says package.module:Class")
        names = names_of(cls)
        if not names:
            raise ConfigError("the class has no `name`")
        for name in names:
            if name in known:
                raise ConfigError(f"the name {name!r} is that of {known[name].__module__}.{known[name].__qualname__}")
        return dict.fromkeys(names, cls)

    def _concrete(self, value: object) -> bool:
        return inspect.isclass(value) and issubclass(value, self.base) and not inspect.isabstract(value)

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self.classes())

    def get(self, name: str) -> type[T]:
        """The class registered as `name`.

        Raises:
            UnknownNameError: nothing is registered under it; the message offers the nearest names.
        """
        try:
            return self.classes()[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self.classes()) from None

    def refresh(self) -> None:
        """Forget what was found, so that the next question looks again."""
        self._classes = None


def names_of(cls: type) -> tuple[str, ...]:
    """The public names of a class: its `names`, or its `name`, or none."""
    return tuple(getattr(cls, "names", ()) or filter(None, [getattr(cls, "name", "")]))
