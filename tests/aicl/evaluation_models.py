"""Tiny models of the puppet world with random weights, saved as folders: what tests of the evaluation generate with."""

from pathlib import Path

import torch

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig, build_prism
from aicl.adapter import save_adapter
from aicl.integrated_backbone import integrate
from aicl.puppets.classifier import ClassifierConfig, PuppetClassifier
from aicl.puppets.clip import CLIPConfig, PuppetCLIP
from aicl.puppets.evaluators import save_evaluator
from lvdm import config as configs
from lvdm.checkpoints import save_pipeline
from lvdm.models.components import ModelConfig, build_components
from tests.aicl.tiny_models import randomise
from tests.lvdm.training_runs import ONE_LEVEL

ROOT = Path(__file__).resolve().parents[2]
FRAMES, SIZE = 4, 64  # of two seconds, and in pixels


def save_tiny_model(
    folder: Path, config: str = "tiny_lvdm", size: int = SIZE, frames: int = FRAMES, fps: float = 2, seed: int = 0
) -> Path:
    """A folder with base/ and adapter.safetensors, both random; `config` is one of configs/models."""
    torch.manual_seed(seed)
    mapping = configs.load(ROOT / "configs" / "models" / f"{config}.yaml")
    mapping["autoencoder"]["ddconfig"] |= {"ch_mult": [1, 1, 1, 1], "resolution": size}  # 8x
    mapping["defaults"] |= {"size": [size, size], "num_frames": frames, "num_inference_steps": 2, "save_fps": fps}
    mapping["unet"] |= ONE_LEVEL | {"temporal_length": frames}
    mapping["text"]["context_length"] = 77
    model = configs.from_mapping(ModelConfig, mapping)
    components = build_components(model)
    randomise(components.unet, seed=seed + 1)
    save_pipeline(components, model, folder / "base")
    prism = build_prism(
        PrismConfig(context_dim=model.text.width, width=16, depth=1, heads=1, head_dim=16, text_width=8)
    )
    integrated = integrate(components.unet, IntegrationConfig(head_dim=16))
    randomise(integrated.blocks, seed=seed + 2)
    save_adapter(folder / "adapter.safetensors", prism, integrated)
    return folder


def save_tiny_evaluators(folder: Path) -> Path:
    """The puppet world's classifier and CLIP, random, for FRAMES frames of SIZE pixels."""
    torch.manual_seed(0)
    classifier = ClassifierConfig(size=SIZE, frames=FRAMES, width=8, features=8, layers=1, heads=1)
    save_evaluator(folder, "classifier", PuppetClassifier(classifier))
    clip = CLIPConfig(size=SIZE, width=32, vision_layers=1, text_layers=1, embed_dim=8)
    save_evaluator(folder, "clip", PuppetCLIP(clip))
    return folder
