"""Names of a package that are imported when they are first used, so that importing one costs nothing of the others."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

Lazy = tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> Lazy:
    """What `__all__, __getattr__, __dir__` of a package are; homes: module of the package -> the names that are its."""
    home_of = {name: module for module, names in homes.items() for name in names}
    public = sorted(home_of)

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)  # so that it is not asked again
        return value

    return public, find, lambda: sorted({*vars(sys.modules[package]), *public})
