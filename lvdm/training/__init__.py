"""Training: Lightning modules, strategies, checkpoints, a run from its config. Names are imported when first used."""

from importlib import import_module
from typing import Any

_HOMES = {
    "module": ("TrainingModule",),
    "run": ("train",),
    "settings": ("LoggingSettings", "RunSettings", "Settings", "TrainingSettings"),
    "tasks": ("DATA_MODULES", "TASKS", "Recipe", "build_data", "build_task", "config_schema", "register_task"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
