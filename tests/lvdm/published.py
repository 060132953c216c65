"""Tiny checkpoints in the published layouts, and the published form of our full-size configs."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvdm import config as configs
from lvdm.models.components import ModelConfig
from lvdm.models.tokenizer import WordTokenizer
from tests.parity.rebuild import figure, full_layouts, weights_for

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
WORDS = ["a", "person", "jumps"]
VOCABULARY = WordTokenizer(WORDS).vocab_size

# The UNet figure of each published model, and how its other parts shrink to the figure's context width of 24.
FIGURES = {
    "lvdm_t2v_256": "lvdm_t2v_tiny",
    "videocrafter1_t2v_512": "videocrafter1_t2v_tiny",
    "videocrafter2_t2v_512": "videocrafter2_t2v_tiny",
    "videocrafter1_i2v_512": "videocrafter1_i2v_tiny",
}
HUGGING_FACE = {768: 24, 3072: 96, 49408: VOCABULARY}
OPENCLIP = {1024: 24, 3072: 72, 4096: 96, 49408: VOCABULARY}
VISUAL = {1280: 32, 3840: 96, 5120: 128, 1024: 24, 257: 5}
RESAMPLER = {1024: 24, 1280: 32, 768: 32, 1536: 64, 4096: 96}


def model_config(name: str) -> ModelConfig:
    """A config of `configs/models`."""
    path = MODELS / f"{name}.yaml"
    return configs.from_mapping(ModelConfig, configs.load(path), where=str(path))


def tiny_checkpoint(model: str) -> tuple[dict[str, Tensor], ModelConfig]:
    """Entries in the layout of a published model, of the parity figure's width, and the config that fits them."""
    unet, _ = figure(FIGURES[model])
    autoencoder, _ = figure("autoencoder_kl_tiny")
    lvdm, image = model.startswith("lvdm"), model.endswith("i2v_512")
    layout = {f"first_stage_model.{name}": shape for name, shape in autoencoder["state_dict"].items()}
    layout |= _shrunk(model, "cond_stage_model.", HUGGING_FACE if lvdm else OPENCLIP, layers=2)
    config: dict[str, Any] = {
        "family": unet["family"],
        "unet": unet["unet"],
        "autoencoder": {name: autoencoder[name] for name in ("ddconfig", "embed_dim")},
        "text": {"width": 24, "layers": 2, "heads": 2, "tokenizer": WORDS},
        "defaults": {"num_frames": 4, "size": [16, 16], "num_inference_steps": 2, "fps": 8 if unet["fps"] else None},
    }
    config["text"] |= {"act": "quick_gelu"} if lvdm else {"output": "penultimate"}
    if image:
        layout |= _shrunk(model, "embedder.", VISUAL, layers=2) | _shrunk(
            model, "image_proj_model.", RESAMPLER, layers=1
        )
        encoder = {"width": 32, "layers": 2, "heads": 2, "image_size": 28}
        resampler = {"dim": 24, "depth": 1, "dim_head": 16, "heads": 2, "embedding_dim": 32, "output_dim": 24}
        config["image"] = {"encoder": encoder, "resampler": resampler | {"num_queries": 16}}
    scalars = {name: torch.tensor(0.1) for name, shape in layout.items() if not shape}
    state = weights_for({name: shape for name, shape in layout.items() if shape}) | scalars
    unet_state = weights_for(unet["state_dict"])  # drawn from names without prefix, for which the figure was made
    state |= {f"model.diffusion_model.{name}": tensor for name, tensor in unet_state.items()}
    return state, configs.from_mapping(ModelConfig, config)


def _shrunk(model: str, prefix: str, sizes: dict[int, int], layers: int) -> dict[str, list[int]]:
    """The first `layers` layers of a part of a full-size layout, other sizes put in the place of its own."""
    return {
        name: [sizes.get(size, size) for size in shape]
        for name, shape in full_layouts()[model].items()
        if name.startswith(prefix) and all(int(number) < layers for number in _layer(name))
    }


def _layer(name: str) -> list[str]:
    pieces = name.split(".")
    return [number for before, number in pairwise(pieces) if before in ("layers", "resblocks")]


def published_yaml(name: str) -> dict[str, Any]:
    """The ancestors' way to write a full-size config of ours, with the parameters that steer their training."""
    config = model_config(name)
    lvdm, rescale = config.family == "lvdm", config.diffusion.rescale_to
    modules = "lvdm.models.modules" if lvdm else "lvdm.modules"
    text = (
        {"target": f"{modules}.condition_modules.FrozenCLIPEmbedder"}
        if lvdm
        else {
            "target": f"{modules}.encoders.condition.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        }
    )
    params: dict[str, Any] = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "timesteps": 1000,
        "first_stage_key": "video",
        "cond_stage_key": "caption",
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "image_size": [side // 8 for side in config.defaults.size],
        "channels": 4,
        "scale_by_std": False,
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {
            "target": f"{modules}{'' if lvdm else '.networks'}.openaimodel3d.UNetModel",
            "params": dict(config.unet),
        },
        "first_stage_config": {
            "target": "lvdm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4,
                "monitor": "val/rec_loss",
                "ddconfig": config.autoencoder.ddconfig,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": text,
    }
    params |= {"video_length": 16, "log_every_t": 200} if lvdm else {"uncond_type": "empty_seq"}
    if rescale is not None:
        params |= {"use_scale": True} | ({} if rescale == 0.3 else {"scale_b": rescale})
    target = "LatentDiffusion"
    if config.image:
        target = "LatentVisualDiffusion"
        image = f"{modules}.encoders.condition.FrozenOpenCLIPImageEmbedderV2"
        params |= {"finegrained": True, "cond_img_config": {"target": image, "params": {"freeze": True}}}
    return {"model": {"target": f"lvdm.models.ddpm3d.{target}", "params": params}}
