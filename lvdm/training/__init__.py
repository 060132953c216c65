"""Training: Lightning modules, strategies, checkpoints, a run from its config. Names are imported when first used."""

from lvdm.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "module": ("TrainingModule",),
        "run": ("train",),
        "settings": ("LoggingSettings", "RunSettings", "Settings", "TrainingSettings"),
        "tasks": ("DATA_MODULES", "TASKS", "Recipe", "build_data", "build_task", "config_schema", "register_task"),
    },
)
