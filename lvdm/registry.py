"""Registries: what a config may name, each entry added by a decorator where it is defined."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lvdm.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of things of one kind: `@REGISTRY.register("name")` adds what it decorates, `REGISTRY["name"]` finds it.

    kind: what the entries are, for errors ("backbone family"). modules: "package.prefix" names the modules of a package
    that begin with a prefix; they are imported at the first look-up, so a new file among them is all that a new entry
    takes. Other packages, a user's own among them, add theirs by being imported.
    """

    def __init__(self, kind: str, modules: str | None = None) -> None:
        self.kind, self._modules = kind, modules
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

    def _load(self) -> None:
        """Import the modules that add entries of their own, the first time."""
        if self._modules is None:
            return
        package, _, prefix = self._modules.rpartition(".")
        self._modules = None  # first, since one of them may look something up
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name.startswith(prefix):
                importlib.import_module(f"{package}.{module.name}")
