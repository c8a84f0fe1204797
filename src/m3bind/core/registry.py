"""Registries: every subclass of a base class that a module of a package defines is registered by name.

A modality, a model, a binding method, a data set or a few-shot method is added by one file in its package, or by an
installed distribution that names a class in an entry point; nothing else is edited.
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
    """Names of the concrete subclasses of `base` in the modules of `package` and in the entry points of `group`.

    A class states its names in the class attribute `names` (a tuple) or `name` (a string). An entry point has the form
    `package.module:Class`; a broken one is skipped with a warning and recorded in `broken`.
    Discovery happens once, at first use, so importing the package stays cheap.
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
                    log.warning("%s %s (%s) is skipped: %s", self.kind, point.name, point.value, reason)
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
            raise ConfigError(f"not a subclass of {self.base.__name__}; write the entry point as package.module:Class")
        names = names_of(cls)
        if not names:
            raise ConfigError("the class has no `name`")
        for name in names:
            if name in known:
                other = known[name]
                raise ConfigError(f"the name {name!r} is already used by {other.__module__}.{other.__qualname__}")
        return dict.fromkeys(names, cls)

    def _concrete(self, value: object) -> bool:
        return inspect.isclass(value) and issubclass(value, self.base) and not inspect.isabstract(value)

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self.classes())

    def get(self, name: str) -> type[T]:
        """The class registered as `name`.

        Raises:
            UnknownNameError: not registered; the message suggests the nearest names.
        """
        try:
            return self.classes()[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self.classes()) from None

    def refresh(self) -> None:
        """Clear the registry, so that the next use discovers the classes again."""
        self._classes = None


def names_of(cls: type) -> tuple[str, ...]:
    """The public names of a class: its `names`, or its `name`; empty if it has neither."""
    return tuple(getattr(cls, "names", ()) or filter(None, [getattr(cls, "name", "")]))
