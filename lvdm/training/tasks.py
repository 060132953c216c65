"""What can be trained: a task's name in the config -> the function that builds its module and its data.

A builder takes a `Recipe` and returns (module, data module). Other packages add theirs to `TASKS` and `DATA_KINDS` as
"package.module:function", which is imported only when a config asks for it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from safetensors.torch import load_file

from lvdm import config as configs
from lvdm.checkpoints import find_export, read_model
from lvdm.checkpoints.folder import read_model_config
from lvdm.checkpoints.resolve import PIPELINE
from lvdm.data import DataConfig, build_datamodule
from lvdm.data.caching import check_encoders
from lvdm.errors import ConfigError
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from lvdm.training.autoencoder import AutoencoderModule, ReconstructionLoss
from lvdm.training.base import BaseModule
from lvdm.training.module import TrainingModule
from lvdm.training.settings import RunSettings, TrainingSettings

TASKS: dict[str, str] = {
    "autoencoder": "lvdm.training.tasks:build_autoencoder",
    "base": "lvdm.training.tasks:build_base",
}
DATA_KINDS: dict[
    str, str
] = {}  # besides those of lvdm.data; "module:function"(section, batch_size, seed) -> data module


@dataclass(frozen=True)
class Recipe:
    """A run's settings and the sections of its config that belong to the task."""

    run: RunSettings
    training: TrainingSettings
    sections: dict[str, Any]

    def parse(self, cls: type) -> Any:
        """The task's sections as a dataclass; its fields are the section names. Raises ConfigError."""
        return configs.from_mapping(cls, self.sections, where=f"the config of task '{self.run.task}'")


def build_task(recipe: Recipe) -> tuple[TrainingModule, pl.LightningDataModule]:
    """Build what the recipe trains. Raises ConfigError for an unknown task or sections that do not fit it."""
    task = recipe.run.task
    if task not in TASKS:
        raise ConfigError(f"run.task is '{task}': choose from {', '.join(TASKS)}")
    return imported(TASKS[task])(recipe)


def imported(target: str) -> Callable:
    """The function named by "package.module:function"."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def build_data(section: Mapping[str, Any], recipe: Recipe, **options: Any) -> pl.LightningDataModule:
    """The data module of a `data` section, for micro-batches of one device; options go to `build_datamodule`."""
    batch_size, seed = recipe.training.micro_batch, recipe.run.seed
    kind = section.get("kind")
    if kind in DATA_KINDS:
        return imported(DATA_KINDS[kind])(section, batch_size=batch_size, seed=seed)
    return build_datamodule(configs.from_mapping(DataConfig, section, where="data"), batch_size, seed, **options)


# -- autoencoder ----------------------------------------------------------------------------------------------------


@dataclass
class AutoencoderSections:
    """`model.config` names or holds a model config, of which the autoencoder is trained."""

    @dataclass
    class Model:
        config: str | dict[str, Any]

    model: Model
    data: dict[str, Any]
    reconstruction: ReconstructionLoss = field(default_factory=ReconstructionLoss)


def build_autoencoder(recipe: Recipe) -> tuple[TrainingModule, pl.LightningDataModule]:
    """Task "autoencoder"."""
    sections: AutoencoderSections = recipe.parse(AutoencoderSections)
    components = build_components(read_model(sections.model.config), parts=["codec"])
    module = AutoencoderModule(components.codec.autoencoder, recipe.training, sections.reconstruction)
    return module, build_data(sections.data, recipe)


# -- base model -----------------------------------------------------------------------------------------------------


@dataclass
class BaseSections:
    """`model.autoencoder` is a finished run of task autoencoder, one of its checkpoints, or a model folder whose
    autoencoder is taken; None leaves it random.

    `model.train_text` trains the text encoder too.
    """

    @dataclass
    class Model:
        config: str | dict[str, Any]
        autoencoder: str | None = None
        train_text: bool = False

    model: Model
    data: dict[str, Any]


def build_base(recipe: Recipe) -> tuple[TrainingModule, pl.LightningDataModule]:
    """Task "base"."""
    sections: BaseSections = recipe.parse(BaseSections)
    config = read_model(sections.model.config)
    folder = None
    if sections.model.autoencoder is not None:
        folder = find_export(sections.model.autoencoder, "autoencoder.safetensors", inside=PIPELINE)
        alone = folder / "autoencoder.yaml"
        trained = configs.load(alone) if alone.exists() else configs.to_mapping(read_model_config(folder))
        trained = {name: trained[name] for name in ("autoencoder", "latents")}
        config = configs.from_mapping(ModelConfig, configs.to_mapping(config) | trained)
    components = build_components(config)
    if folder is not None:
        components.codec.autoencoder.load_state_dict(load_file(folder / "autoencoder.safetensors"))
    if sections.data.get("cache"):
        check_encoders(sections.data["cache"], components.codec, None if sections.model.train_text else components.text)
    module = BaseModule(VideoPipeline(components, config), recipe.training, sections.model.train_text)
    return module, build_data(sections.data, recipe)
