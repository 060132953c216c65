"""A model as a folder of our own: `config.yaml` beside one safetensors file, or several shards, for each part."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from lvdm import config as configs
from lvdm.bases.loading import describe_base, is_base, is_part, load_base
from lvdm.checkpoints.strict import load_strict
from lvdm.errors import CheckpointError
from lvdm.files import atomic_path, temporary_folder
from lvdm.models.components import Components, ModelConfig, build_components
from lvdm.models.quantization import is_quantized
from lvdm.outside import hinted, open_tensors, read_object
from lvdm.pipeline import VideoPipeline

CONFIG_FILE = "config.yaml"
SHARD_BYTES = 2 * 1024**3


def load_pipeline(
    folder: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> VideoPipeline:
    """Load a model folder, or one of diffusers, for inference, onto `device` in `dtype` (None: the CPU, as stored).

    Weights go from the files to their place without a second copy in memory: on a CPU the files are mapped. Raises
    CheckpointError for a folder that is not there, incomplete or of other weights than its config says.
    """
    folder = Path(folder)
    if is_base(folder):
        base: VideoPipeline = load_base(folder, device, dtype)
        return base
    config = read_model_config(folder)
    components = build_components(config, device=device, dtype=dtype, init="meta")
    for part, module in components.modules().items():
        state = read_part(folder, part, device or "cpu", dtype)
        load_strict(module, state, f"the entries of {part} in {folder} and its {CONFIG_FILE}")
    return VideoPipeline(components.eval(), config)


def save_pipeline(
    components: Components,
    config: ModelConfig,
    folder: str | os.PathLike[str],
    states: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Write a model as a folder that `load_pipeline` reads: appears at once, complete, or not at all.

    `states`: state dicts to write in place of those that some parts have now, by the names of `Components.modules`.
    Raises CheckpointError where `folder` exists with content, or a part of the model is missing or in 8 bits.
    """
    if any(is_quantized(module) for module in components.modules().values()):
        raise CheckpointError("a model in 8 bits is for sampling: load it again without quantization, and save that")
    states = {part: module.state_dict() for part, module in components.modules().items()} | dict(states or {})
    if missing := expected_parts(config) - states.keys():
        raise CheckpointError(f"a model folder needs all parts; missing: {', '.join(sorted(missing))}")
    with new_folder(folder) as temporary:
        for part, state in states.items():
            write_part(temporary, part, state)
        configs.save(temporary / CONFIG_FILE, configs.to_mapping(config))


def describe_model(folder: Path) -> ModelConfig:
    """The config of a model folder, or of one of diffusers, without its weights.

    Raises CheckpointError where there is none, and for one of diffusers what `describe_base` does.
    """
    return describe_base(folder) if is_base(folder) else read_model_config(folder)


def read_model_config(folder: Path) -> ModelConfig:
    """The config of a model folder. Raises CheckpointError where there is none."""
    if not (folder / CONFIG_FILE).is_file():
        if is_part(folder):
            raise CheckpointError(
                f"{folder} is one part of a model of diffusers: give {folder.parent}, which holds all"
            )
        if is_base(folder):
            raise CheckpointError(
                f"{folder} is a model of diffusers: aicl train, sample and reproduce take it, this needs one of this "
                "library's own"
            )
        make = "make one with aicl convert, or train one"
        raise CheckpointError(f"there is no model folder {folder} (no {CONFIG_FILE} in it): {make}")
    return ModelConfig.read(configs.load(folder / CONFIG_FILE), where=str(folder / CONFIG_FILE))


def expected_parts(config: ModelConfig) -> set[str]:
    """The parts that a complete model of this config has."""
    images = {"image_encoder", "image_resampler"} if config.image else set()
    return {"unet", "autoencoder", "text_encoder"} | images


def write_part(
    folder: Path,
    part: str,
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    limit: int = SHARD_BYTES,
) -> None:
    """Write one part as `part.safetensors`, or as shards of at most `limit` bytes with an index.

    Only one shard is in memory at a time: entries may be mapped from a file, casting happens shard by shard.
    """
    shards = _shards(state, limit, dtype)
    names = [f"{part}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [f"{part}.safetensors"]
    for name, keys in zip(names, shards):
        with atomic_path(folder / name) as temporary:
            save_file({key: _stored(state[key], dtype) for key in keys}, temporary, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(_bytes(tensor, dtype) for tensor in state.values())},
            "weight_map": {key: name for name, keys in zip(names, shards) for key in keys},
        }
        (folder / f"{part}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_part(
    folder: Path, part: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """All entries of one part, on `device`; those on a CPU that need no cast are mapped, not read.

    Raises CheckpointError for missing or damaged files.
    """
    index = folder / f"{part}.safetensors.index.json"
    places = _read_index(index) if index.is_file() else {}
    state: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())) or [f"{part}.safetensors"]:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        with open_tensors(path, CheckpointError, str(device), remedy="convert the checkpoint again") as file:
            state |= {key: _stored(file.get_tensor(key), dtype) for key in file.keys()}  # noqa: SIM118
    if places and places.keys() != state.keys():
        raise CheckpointError(f"{index} lists other entries than its shards hold: convert the checkpoint again")
    return state


def _read_index(index: Path) -> dict[str, str]:
    """Entry name -> file name. Raises CheckpointError for anything else, or a file outside the index's folder."""
    with hinted("convert the checkpoint again"):
        places = read_object(index, CheckpointError).get("weight_map")
    if not isinstance(places, dict) or not places or not all(_is_file_name(name) for name in places.values()):
        raise CheckpointError(f"{index} is damaged (its weight_map is no map to file names): convert it again")
    return places


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"[^/\\\0]{1,255}", name)) and name not in (".", "..")


@contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` on success. Raises CheckpointError if that has content already,
    DiskError where it cannot be written."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already: choose another place or remove it first")
    with temporary_folder(folder) as temporary:
        yield temporary


def _shards(state: Mapping[str, torch.Tensor], limit: int, dtype: torch.dtype | None) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in state.items():
        if shards[-1] and size + _bytes(tensor, dtype) > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += _bytes(tensor, dtype)
    return shards


def _bytes(tensor: torch.Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).contiguous()
