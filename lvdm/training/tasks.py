"""What can be trained: a task's name in the config -> the function that builds its module and its data.

Ours are the modules `lvdm.training.task_*`; other packages register theirs when they are imported.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from lvdm import config as configs
from lvdm.data import DataConfig, build_datamodule
from lvdm.data.datamodule import EndlessDataModule
from lvdm.registry import Registry
from lvdm.training.module import TrainingModule
from lvdm.training.settings import LoggingSettings, RunSettings, TrainingSettings


@dataclass(frozen=True)
class Recipe:
    """A run's settings and the sections of its config that belong to the task."""

    run: RunSettings
    training: TrainingSettings
    sections: dict[str, Any]

    def parse(self, cls: type) -> Any:
        """The task's sections as a dataclass; its fields are the section names. Raises ConfigError, also for what
        section `data` cannot hold: a model that is built first may take long."""
        sections: Any = configs.from_mapping(cls, self.sections, where=f"the config of task '{self.run.task}'")
        if not is_made(data := self.sections.get("data") or {}):
            configs.from_mapping(DataConfig, data, where="data")
        return sections


Built = tuple[TrainingModule, EndlessDataModule]


@dataclass(frozen=True)
class Task:
    """Something that can be trained: `sections`, a dataclass of what its config holds, and what builds it."""

    sections: type
    build: Callable[[Recipe], Built]


TASKS: Registry[Task] = Registry("task", modules="lvdm.training.task_")
DATA_MODULES: Registry[Callable[..., EndlessDataModule]] = Registry("kind of data")
"""Kinds of data besides those of `lvdm.data`: builders (section, batch_size, seed) -> data module."""


def register_task(name: str, sections: type) -> Callable[[Callable[[Recipe], Built]], Callable[[Recipe], Built]]:
    """A decorator that makes a builder known as task `name`, whose config has the fields of `sections`."""

    def add(build: Callable[[Recipe], Built]) -> Callable[[Recipe], Built]:
        TASKS.register(name)(Task(sections, build))
        return build

    return add


def build_task(recipe: Recipe) -> Built:
    """Build what the recipe trains. Raises ConfigError for an unknown task or sections that do not fit it."""
    return TASKS[recipe.run.task].build(recipe)


def config_schema() -> type:
    """A dataclass of everything that the config of any task may hold, for checking overrides.

    Where tasks differ in what a section holds, it may hold anything: the task checks it when it is built.
    """
    fields: dict[str, Any] = {"run": RunSettings, "training": TrainingSettings, "logging": LoggingSettings}
    for task in TASKS.values():
        for name, kind in get_type_hints(task.sections).items():
            if name in {field.name for field in dataclasses.fields(task.sections)}:
                fields[name] = kind if fields.get(name, kind) == kind else Any
    return dataclasses.make_dataclass("Config", fields.items())


def build_data(section: Mapping[str, Any], recipe: Recipe, **options: Any) -> EndlessDataModule:
    """The data module of a `data` section, for micro-batches of one device; options go to `build_datamodule`."""
    batch_size, seed = recipe.training.micro_batch, recipe.run.seed
    if is_made(section):
        return DATA_MODULES[section["kind"]](section, batch_size=batch_size, seed=seed)
    return build_datamodule(configs.from_mapping(DataConfig, section, where="data"), batch_size, seed, **options)


def is_made(section: Mapping[str, Any]) -> bool:
    """Whether the data of a `data` section is made as it is needed, by one of DATA_MODULES."""
    kind = section.get("kind")
    return isinstance(kind, str) and kind in DATA_MODULES
