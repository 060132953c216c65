"""Training: Lightning modules, strategies, checkpoints, and a run from its config."""

from lvdm.training.module import TrainingModule
from lvdm.training.run import train
from lvdm.training.settings import ConfigSchema, LoggingSettings, RunSettings, TrainingSettings
from lvdm.training.tasks import DATA_KINDS, TASKS, Recipe, build_data, build_task

__all__ = [
    "DATA_KINDS",
    "TASKS",
    "ConfigSchema",
    "LoggingSettings",
    "Recipe",
    "RunSettings",
    "TrainingModule",
    "TrainingSettings",
    "build_data",
    "build_task",
    "train",
]
