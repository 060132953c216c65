"""Packages that add something of their own: a data set, metrics, networks, kinds of training.

A package below `aicl` that has a module `register`, or any installed one that names such a module as an entry point of
the group "aicl", is imported when somebody asks what there is. Nothing else imports it, so it can be left out.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil

GROUP = "aicl"


def load_extensions() -> tuple[str, ...]:
    """Import the `register` modules of all extensions, once; returns their names."""
    import aicl

    names = [
        f"aicl.{package.name}.register"
        for package in pkgutil.iter_modules(aicl.__path__)
        if package.ispkg and importlib.util.find_spec(f"aicl.{package.name}.register") is not None
    ]
    names += [entry.value for entry in importlib.metadata.entry_points(group=GROUP)]
    names = list(dict.fromkeys(names))
    for name in names:
        importlib.import_module(name)
    return tuple(names)
