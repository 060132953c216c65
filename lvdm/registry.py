"""Registries: what a config may name, each entry added by a decorator where it is defined."""

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Generic, TypeVar

from lvdm.errors import ConfigError

T = TypeVar("T")


def import_modules(package: ModuleType, prefix: str = "") -> None:
    """Import the modules of a package whose names begin with `prefix`."""
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith(prefix):
            importlib.import_module(f"{package.__name__}.{module.name}")


class FirstUse:
    """Runs `load`, which imports, before the first use. A use from within it finds what there is so far.

    Another thread that comes meanwhile runs it, too, and so waits for the imports as Python has it: a lock of our own
    could be held by one thread while the other one holds a module's.
    """

    def __init__(self, load: Callable[[], None]) -> None:
        self._load, self._done = load, False
        self._inside: set[int] = set()  # threads

    def __call__(self) -> None:
        """To be called before each use."""
        thread = threading.get_ident()
        if self._done or thread in self._inside:
            return
        self._inside.add(thread)
        try:
            self._load()
        finally:
            self._inside.discard(thread)
        self._done = True


class Registry(Generic[T]):
    """Names of things of one kind: `@REGISTRY.register("name")` adds what it decorates, `REGISTRY["name"]` finds it.

    kind: what the entries are, for errors ("backbone family"). modules: "package.prefix" names the modules of a package
    that begin with a prefix; they are imported at the first look-up, so a new file among them is all that a new entry
    takes. Other packages, a user's own among them, add theirs by being imported.
    """

    def __init__(self, kind: str, modules: str | None = None) -> None:
        self.kind, self._modules = kind, modules
        self._load = FirstUse(self._import)
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds its object under `name` and returns it. Raises ValueError for a name that is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"there is a {self.kind} '{name}' already: {self._entries[name]}")
            self._entries[name] = entry
            return entry

        return add

    def remove(self, name: str) -> None:
        """Take an entry out again. Raises KeyError where there is none."""
        del self._entries[name]

    def __getitem__(self, name: str) -> T:
        """The entry of that name. Raises ConfigError for an unknown one, with those that there are."""
        self._load()
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} '{name}': choose from {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load()
        return len(self._entries)

    def values(self) -> list[T]:
        """All entries, in the order in which they were added."""
        self._load()
        return list(self._entries.values())

    def _import(self) -> None:
        if self._modules is not None:
            package, _, prefix = self._modules.rpartition(".")
            import_modules(importlib.import_module(package), prefix)
