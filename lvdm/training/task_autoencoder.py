"""Task "autoencoder": the autoencoder of a model config, trained from scratch or from another training's weights."""

from dataclasses import dataclass, field
from typing import Any

from lvdm.checkpoints import find_export, read_model
from lvdm.checkpoints.resolve import PIPELINE
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.models.components import build_components
from lvdm.training.autoencoder import AutoencoderModule, ReconstructionLoss
from lvdm.training.initialise import initialise_part
from lvdm.training.module import TrainingModule
from lvdm.training.tasks import Recipe, build_data, register_task


@dataclass
class AutoencoderSections:
    """`model.config` names or holds a model config, of which the autoencoder is trained; `model.init_from`: the run or
    model folder of one like it, to start from its weights, such as one that saw short clips."""

    @dataclass
    class Model:
        config: str | dict[str, Any]
        init_from: str | None = None

    model: Model
    data: dict[str, Any]
    reconstruction: ReconstructionLoss = field(default_factory=ReconstructionLoss)


@register_task("autoencoder", AutoencoderSections)
def build(recipe: Recipe) -> tuple[TrainingModule, EndlessDataModule]:
    """Task "autoencoder". Raises CheckpointError where `model.init_from` is missing, damaged or of other sizes."""
    sections: AutoencoderSections = recipe.parse(AutoencoderSections)
    if sections.data.get("cache"):
        raise ConfigError("data.cache holds latents, and an autoencoder is trained on frames: leave it out")
    config = read_model(sections.model.config)
    codec = build_components(config, parts=["codec"]).codec
    if (start := sections.model.init_from) is not None:
        folder = find_export(start, "autoencoder.safetensors", inside=PIPELINE)
        initialise_part(codec.autoencoder, folder, "autoencoder")
    module = AutoencoderModule(codec, config.autoencoder, recipe.training, sections.reconstruction)
    return module, build_data(sections.data, recipe)
