"""The ancestors' YAML files, read as they are: their `target` names and parameters become our `ModelConfig`.

A parameter is understood, known to have no meaning for inference, or an error: none is dropped in silence.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lvdm.checkpoints.families import LAYOUTS
from lvdm.config import MAX_YAML, from_mapping, to_mapping
from lvdm.diffusion.schedule import DiffusionConfig
from lvdm.errors import ConfigError
from lvdm.models.autoencoder import DDConfig
from lvdm.models.codec_families import AutoencoderConfig, LatentConfig
from lvdm.models.components import GenerationDefaults, ImageConditionConfig, ModelConfig
from lvdm.models.image import ImageConfig
from lvdm.models.text import TextConfig
from lvdm.outside import check_yaml, checked, read_text
from lvdm.sizes import MAX_SIZE

# target -> what it is. LVDM's own repository and VideoCrafter 0.9 have `lvdm.models.modules`, VideoCrafter 1 and 2
# `lvdm.modules`.
MODELS = {"lvdm.models.ddpm3d.LatentDiffusion": "text", "lvdm.models.ddpm3d.LatentVisualDiffusion": "image"}
AUTOENCODERS = {"lvdm.models.autoencoder.AutoencoderKL": "kl"}
TEXT_ENCODERS = {
    "lvdm.models.modules.condition_modules.FrozenCLIPEmbedder": TextConfig.clip_vit_l_14,
    "lvdm.modules.encoders.condition.FrozenCLIPEmbedder": TextConfig.clip_vit_l_14,
    "lvdm.modules.encoders.condition.FrozenOpenCLIPEmbedder": TextConfig.openclip_vit_h_14,
}
IMAGE_ENCODERS = {"lvdm.modules.encoders.condition.FrozenOpenCLIPImageEmbedderV2": ImageConfig.openclip_vit_h_14}

# Parameters that steer training, logging or the loading of files, and not what a loaded model computes.
WITHOUT_EFFECT = {
    "model": {
        "num_timesteps_cond", "log_every_t", "first_stage_key", "cond_stage_key", "cond_stage_trainable", "channels",
        "use_ema", "monitor", "ckpt_path", "loss_type", "uncond_prob", "random_cond", "scheduler_config", "n_classes",
        "fix_scale_bug",  # shortens an array beyond the last timestep
        "concat_mode",  # `conditioning_key` decides where it is given
    },
    "first_stage_config": {"monitor", "lossconfig", "ckpt_path"},
    "cond_stage_config": {"freeze", "device", "version"},
    "cond_img_config": {"freeze", "device", "version"},
}  # fmt: skip

# The values of parameters of which only one choice is implemented; the others occur in no published text model.
FIXED = {
    "beta_schedule": "linear",
    "parameterization": "eps",
    "conditioning_key": "crossattn",
    "uncond_type": "empty_seq",
    "scale_by_std": False,
    "encoder_type": "2d",
    "scale_a": 1,
}


class _Section:
    """One `target` with its `params`. Each parameter is taken once; `close` finds those that nobody took."""

    def __init__(self, name: str, content: Any, source: str, targets: Mapping[str, Any]) -> None:
        if not isinstance(content, Mapping) or "target" not in content:
            raise ConfigError(f"{source}: section '{name}' must have a 'target'")
        self.where, self.target = f"{source}: {name}", content["target"]
        if not isinstance(self.target, str):
            raise ConfigError(f"{self.where}: its 'target' must be a text")
        self.params = dict(checked(content.get("params") or {}, dict, f"{self.where}: 'params'", ConfigError))
        self.ignored = WITHOUT_EFFECT.get(name, set())
        if self.target not in targets:
            raise ConfigError(
                f"{self.where} has the target '{self.target}', which is not supported: choose from {', '.join(targets)}"
            )
        self.meaning = targets[self.target]

    def take(self, name: str, default: Any = None) -> Any:
        """A parameter, which must be of the kind that its default has, where that says one."""
        value = self.params.pop(name, default)
        if default is not None and value is not None:
            checked(value, type(default), f"{self.where}: '{name}'", ConfigError)
        return default if value is None else value

    def require(self, name: str) -> Any:
        if name not in self.params:
            raise ConfigError(f"{self.where} lacks the parameter '{name}'")
        return self.params.pop(name)

    def close(self) -> None:
        for name, value in self.params.items():
            if name in self.ignored:
                continue
            if name not in FIXED:
                raise ConfigError(f"{self.where} has a parameter '{name}' that is not understood")
            if value != FIXED[name]:
                raise ConfigError(f"{self.where}: only {name} = {FIXED[name]!r} is supported, got {value!r}")


def read_published_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The `ModelConfig` of an ancestor's YAML file (its `model` section; anything else in it is ignored).

    Sampling settings, which such a YAML does not hold, are those of the ancestors' inference scripts.
    Raises ConfigError for a file that is no such YAML, an unknown target or parameter, or an unsupported choice.
    """
    content = _read_yaml(Path(path))
    if not _has_published_form(content):
        raise ConfigError(f"{path} is no published config: it has no 'model' section with a 'target'")
    model = _Section("model", content["model"], str(path), MODELS)
    unet = _Section("unet_config", model.require("unet_config"), str(path), _unet_targets())
    autoencoder = _autoencoder(model, str(path))
    config = ModelConfig(
        family=unet.meaning,
        unet=unet.params,  # checked where the UNet is built
        autoencoder=autoencoder,
        text=_text(model, str(path)),
        image=_image(model, str(path)) if model.meaning == "image" else None,
        latents=LatentConfig(
            scale=float(model.take("scale_factor", 1.0)),
            shift=-float(model.take("shift_factor", 0.0)),  # the ancestor adds it to the latents, we subtract
        ),
        diffusion=_diffusion(model),
        defaults=_defaults(model, unet, autoencoder),
    )
    model.close()
    return from_mapping(ModelConfig, to_mapping(config), where=str(path))  # checks the types of all that was taken over


def _unet_targets() -> dict[str, str]:
    """`target` of `unet_config` -> the backbone's family."""
    return {LAYOUTS[family].target: family for family in LAYOUTS}


def is_published_config(path: str | os.PathLike[str]) -> bool:
    """Whether a YAML file has the ancestors' form rather than ours. Raises ConfigError where it cannot be read."""
    return _has_published_form(_read_yaml(Path(path)))


def _read_yaml(path: Path) -> Any:
    text = read_text(path, ConfigError, MAX_YAML, what=f"config file {path}")
    check_yaml(text, f"config file {path}", ConfigError)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _has_published_form(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("model"), Mapping) and "target" in content["model"]


def _autoencoder(model: _Section, source: str) -> AutoencoderConfig:
    section = _Section("first_stage_config", model.require("first_stage_config"), source, AUTOENCODERS)
    ddconfig = section.require("ddconfig")
    from_mapping(DDConfig, ddconfig, f"{source}: ddconfig")  # raises what is wrong with it
    config = AutoencoderConfig(ddconfig=ddconfig, embed_dim=section.require("embed_dim"))
    section.close()
    return config


def _text(model: _Section, source: str) -> TextConfig:
    section = _Section("cond_stage_config", model.require("cond_stage_config"), source, TEXT_ENCODERS)
    config = replace(section.meaning(), output=section.take("layer", "last"))
    section.close()
    return config


def _image(model: _Section, source: str) -> ImageConditionConfig:
    section = _Section("cond_img_config", model.require("cond_img_config"), source, IMAGE_ENCODERS)
    section.close()
    if model.take("finegrained", False) is not True:
        raise ConfigError(f"{source}: only finegrained = true is supported for image-to-video (16 image tokens)")
    # The ancestor writes these into its class, not into its YAML.
    resampler = {"dim": 1024, "depth": 4, "dim_head": 64, "heads": 12, "num_queries": 16}
    resampler |= {"embedding_dim": 1280, "output_dim": 1024, "ff_mult": 4}
    return ImageConditionConfig(encoder=section.meaning(), resampler=resampler)


def _diffusion(model: _Section) -> DiffusionConfig:
    rescaled = model.take("use_scale", False)
    rescale_to, rescale_steps = model.take("scale_b", 0.3), model.take("mid_step", 400)
    return DiffusionConfig(
        beta_start=float(model.take("linear_start", 1e-4)),
        beta_end=float(model.take("linear_end", 2e-2)),
        num_timesteps=model.take("timesteps", 1000),
        rescale_to=float(rescale_to) if rescaled else None,
        rescale_steps=rescale_steps,
    )


def _defaults(model: _Section, unet: _Section, autoencoder: AutoencoderConfig) -> GenerationDefaults:
    """Frames and size from the YAML; the rest is what the ancestors' scripts run with."""
    latent_size = model.require("image_size")
    sides = latent_size if isinstance(latent_size, list) else [latent_size, latent_size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIZE for side in sides):
        raise ConfigError(f"{model.where}: image_size must be a size, or a height and a width")
    height, width = sides
    factor = autoencoder.factor
    frames = model.take("video_length") or unet.params.get("temporal_length", 16)
    return GenerationDefaults(
        num_frames=frames,
        size=(height * factor, width * factor),
        guidance_scale=LAYOUTS[unet.meaning].guidance_scale,
        fps=_fps(model, unet),
        save_fps=LAYOUTS[unet.meaning].save_fps,
    )


def _fps(model: _Section, unet: _Section) -> int | None:
    """Conditioning of the ancestor's scripts: 8 for image-to-video, 28 for text-to-video."""
    if not unet.params.get("fps_cond", False):
        return None
    return 8 if model.meaning == "image" else 28
