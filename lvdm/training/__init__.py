"""Training: Lightning modules, strategies, checkpoints, and a run from its config."""

from lvdm.training.module import TrainingModule
from lvdm.training.run import train
from lvdm.training.settings import LoggingSettings, RunSettings, TrainingSettings
from lvdm.training.tasks import DATA_MODULES, TASKS, Recipe, build_data, build_task, config_schema, register_task

__all__ = [
    "DATA_MODULES",
    "TASKS",
    "LoggingSettings",
    "Recipe",
    "RunSettings",
    "TrainingModule",
    "TrainingSettings",
    "build_data",
    "build_task",
    "config_schema",
    "register_task",
    "train",
]
