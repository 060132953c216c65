"""Task "base": a text-to-video or image-to-video model, trained from scratch on a frozen autoencoder."""

from dataclasses import dataclass
from typing import Any

from lvdm import config as configs
from lvdm.checkpoints import find_export, find_model, read_model
from lvdm.checkpoints.folder import read_model_config
from lvdm.checkpoints.resolve import PIPELINE
from lvdm.data.caching import check_encoders
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.models.attention import Attention
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline
from lvdm.training.base import BaseModule
from lvdm.training.initialise import initialise, initialise_part, initialise_what_fits
from lvdm.training.module import TrainingModule
from lvdm.training.tasks import Recipe, build_data, register_task


@dataclass
class BaseSections:
    """`model.autoencoder` is a finished run of task autoencoder, one of its checkpoints, or a model folder whose
    autoencoder is taken; None leaves it random.

    `model.train_text` trains the text encoder too; the image encoder of an image-to-video model is always trained.

    `model.init_from` is a model folder, or a finished run of this task, from whose weights (the averaged ones, where a
    run kept an average) training starts, with a fresh optimiser; its autoencoder is not read. It has to be of the same
    sizes, unless `model.init_what_fits` is set: then entries of the same name and shape are taken, and the others start
    at random.
    """

    @dataclass
    class Model:
        config: str | dict[str, Any]
        autoencoder: str | None = None
        train_text: bool = False
        init_from: str | None = None
        init_what_fits: bool = False

        def __post_init__(self) -> None:
            if self.init_what_fits and self.init_from is None:
                raise ConfigError("model.init_what_fits needs model.init_from, the model to take weights from")

    model: Model
    data: dict[str, Any]


@register_task("base", BaseSections)
def build(recipe: Recipe) -> tuple[TrainingModule, EndlessDataModule]:
    """Task "base"."""
    sections: BaseSections = recipe.parse(BaseSections)
    config = read_model(sections.model.config)
    length, first = config.text.context_length, Attention.TEXT_TOKENS
    if config.takes_image and config.unet.get("use_image_attention") and length != first:
        raise ConfigError(
            f"unet.use_image_attention takes what follows the first {first} tokens of a context for the image's, and "
            f"text.context_length is {length}: set it to {first}, or the image is read as text"
        )
    folder = None
    if sections.model.autoencoder is not None:
        folder = find_export(sections.model.autoencoder, "autoencoder.safetensors", inside=PIPELINE)
        alone = folder / "autoencoder.yaml"
        trained = configs.load(alone) if alone.exists() else configs.to_mapping(read_model_config(folder))
        trained = {name: trained[name] for name in ("autoencoder", "latents")}
        config = configs.from_mapping(ModelConfig, configs.to_mapping(config) | trained)
    components = build_components(config)
    if folder is not None:
        initialise_part(components.codec.autoencoder, folder, "autoencoder")
    if sections.model.init_from is not None:
        start = initialise_what_fits if sections.model.init_what_fits else initialise
        start(components, find_model(sections.model.init_from))
    if sections.data.get("cache"):
        check_encoders(sections.data["cache"], components.codec, None if sections.model.train_text else components.text)
    pipeline, clip = VideoPipeline(components, config), sections.data.get("clip") or {}
    if clip.get("num_frames") and clip.get("size"):
        pipeline.prepare_training(clip["num_frames"], tuple(clip["size"]))
    module = BaseModule(pipeline, recipe.training, sections.model.train_text)
    image = " --image IMAGE" if config.takes_image else ""
    module.after = f'sample it with: aicl sample --base RUN --prompt "..."{image}'
    return module, build_data(sections.data, recipe)
