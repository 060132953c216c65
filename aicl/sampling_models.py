"""Which model a sampling command means: a finished folder, a base model with an adapter, or a training config's."""

from pathlib import Path

import torch

from aicl.action_prism import build_prism
from aicl.base_defaults import read_integration_config, read_prism_config
from aicl.integrated_backbone import integrate
from aicl.model_files import ADAPTER_FILE, FOLDER_FILE, ModelFiles, base_folder
from aicl.options import DEFAULT_MODEL, ModelOptions
from aicl.pipeline import AICLPipeline
from lvdm import cli
from lvdm import config as configs
from lvdm.checkpoints import find_file, load_pipeline, read_model
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models import set_backend
from lvdm.models.components import build_components
from lvdm.pipeline import VideoPipeline


def load_model(options: ModelOptions) -> AICLPipeline:
    """Load what the options name, and set what computes attention.

    Raises ConfigError for options that do not fit this machine, CheckpointError for what is not there.
    """
    set_backend(options.attention)
    place = cli.device(options.device)
    options.check_device(place.type)
    precision = getattr(torch, options.dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    at_first = torch.device("cpu") if options.offload else place
    if options.config is not None:
        pipe = _from_config(options.config, options.adapter, at_first, precision)
    else:
        if options.model == DEFAULT_MODEL and not (Path(DEFAULT_MODEL) / FOLDER_FILE).is_file():
            raise CheckpointError(f"there is no model in {DEFAULT_MODEL}, the default: name one with --model or --base")
        path = options.model or base_folder(str(options.base))
        pipe = AICLPipeline.from_pretrained(path, adapter=options.adapter, device=at_first, torch_dtype=precision)
    if options.offload:
        pipe.enable_model_cpu_offload(place)
    return pipe.quantize(options.quantization).accelerate(options.compile)


def model_line(pipe: AICLPipeline, options: ModelOptions) -> str:
    """A loaded model in one line, for the screen: where it comes from, what it is, and where it runs."""
    path = options.model or options.base or f"of {options.config}"
    if pipe.prism is None:
        adapter = "no adapter"
    elif pipe.info is None:
        adapter = "an untrained adapter"
    else:
        adapter = f"an adapter of {pipe.info.step} steps"
        adapter += f" from {options.adapter}" if options.adapter else ""
    dtype = str(pipe.dtype).removeprefix("torch.")
    return f"model {path}: {pipe.base.config.family} with {adapter}, on {pipe.device} in {dtype}"


def _from_config(path: str, adapter: str | None, device: torch.device, dtype: torch.dtype) -> AICLPipeline:
    """The base model of a training config; without an adapter, prism and integration as they are before training."""
    sections = configs.load(path)
    seed = (sections.get("run") or {}).get("seed", 0)
    torch.manual_seed(seed)  # for weights that are not read from files, as in training
    base, files = sections.get("base") or {}, None
    if base.get("path"):
        files = ModelFiles(base_folder(base["path"]))
        pipeline = load_pipeline(files.base, device, dtype)
    elif base.get("config"):
        config = read_model(base["config"])
        pipeline = VideoPipeline(build_components(config, device=device, dtype=dtype).eval(), config)
    else:
        raise ConfigError(f"{path} is not the config of an AICL training: it has neither base.path nor base.config")
    if adapter is None:
        prism = build_prism(read_prism_config(sections.get("prism") or {}, pipeline, where=f"prism in {path}"))
        integration = read_integration_config(sections.get("integration") or {}, pipeline, f"integration in {path}")
        result = AICLPipeline(pipeline, prism, integrate(pipeline.components.unet, integration))
        result.files = files
        return result
    result = AICLPipeline(pipeline)
    result.files = files
    result.load_adapter(find_file(adapter, ADAPTER_FILE))
    return result
