"""Which model a sampling command means: a finished folder, a base model with an adapter, or a training config's."""

from pathlib import Path

import torch

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import PrismConfig, build_prism
from aicl.integrated_backbone import integrate
from aicl.model_files import ADAPTER_FILE, FOLDER_FILE, base_folder
from aicl.pipeline import AICLPipeline
from lvdm import cli
from lvdm import config as configs
from lvdm.checkpoints import find_file, load_pipeline, read_model
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline

DEFAULT_MODEL = "checkpoints/puppets"


def load_model(
    model: str | None = None,
    base: str | None = None,
    config: str | None = None,
    adapter: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> AICLPipeline:
    """Load what the options of `aicl sample` name, see its help.

    Raises ConfigError for options that exclude each other, CheckpointError for what is not there.
    """
    if sum(option is not None for option in (model, base, config)) > 1:
        raise ConfigError("--model, --base and --config each name a model: give one of them")
    place = cli.device(device)
    precision = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    if config is not None:
        return _from_config(config, adapter, place, precision)
    if base is not None:
        base = str(base_folder(base))
    if model is None and base is None and not (Path(DEFAULT_MODEL) / FOLDER_FILE).is_file():
        raise CheckpointError(f"there is no model in {DEFAULT_MODEL}, the default: name one with --model or --base")
    return AICLPipeline.from_pretrained(model or base or DEFAULT_MODEL, adapter=adapter, device=place, dtype=precision)


def _from_config(path: str, adapter: str | None, device: torch.device, dtype: torch.dtype) -> AICLPipeline:
    """The base model of a training config; without an adapter, prism and integration as they are before training."""
    sections = configs.load(path)
    seed = (sections.get("run") or {}).get("seed", 0)
    torch.manual_seed(seed)  # for weights that are not read from files, as in training
    base = sections.get("base") or {}
    if base.get("path"):
        pipeline = load_pipeline(base_folder(base["path"]), device, dtype)
    elif base.get("config"):
        config = read_model(base["config"])
        pipeline = VideoPipeline(build_components(config, device=device, dtype=dtype).eval(), config)
    else:
        raise ConfigError(f"{path} is not the config of an AICL training: it has neither base.path nor base.config")
    if adapter is None:
        prism = {"context_dim": pipeline.config.text.width, **(sections.get("prism") or {})}
        prism = build_prism(configs.from_mapping(PrismConfig, prism, where=f"prism in {path}"))
        integration = sections.get("integration") or {}
        integration = configs.from_mapping(IntegrationConfig, integration, where=f"integration in {path}")
        return AICLPipeline(pipeline, prism, integrate(pipeline.components.unet, integration))
    result = AICLPipeline(pipeline)
    result.load_adapter(find_file(adapter, ADAPTER_FILE))
    return result
