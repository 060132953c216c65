"""Task "autoencoder": the autoencoder of a model config, trained from scratch."""

from dataclasses import dataclass, field
from typing import Any

from lvdm.checkpoints import read_model
from lvdm.data.datamodule import EndlessDataModule
from lvdm.models.components import build_components
from lvdm.training.autoencoder import AutoencoderModule, ReconstructionLoss
from lvdm.training.module import TrainingModule
from lvdm.training.tasks import Recipe, build_data, register_task


@dataclass
class AutoencoderSections:
    """`model.config` names or holds a model config, of which the autoencoder is trained."""

    @dataclass
    class Model:
        config: str | dict[str, Any]

    model: Model
    data: dict[str, Any]
    reconstruction: ReconstructionLoss = field(default_factory=ReconstructionLoss)


@register_task("autoencoder", AutoencoderSections)
def build(recipe: Recipe) -> tuple[TrainingModule, EndlessDataModule]:
    """Task "autoencoder"."""
    sections: AutoencoderSections = recipe.parse(AutoencoderSections)
    config = read_model(sections.model.config)
    codec = build_components(config, parts=["codec"]).codec
    module = AutoencoderModule(codec, config.autoencoder, recipe.training, sections.reconstruction)
    return module, build_data(sections.data, recipe)
