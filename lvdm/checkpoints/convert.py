"""A published checkpoint -> a model folder of ours."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from lvdm import config as configs
from lvdm.checkpoints.families import FAMILIES, Family, detect_family, split_parts
from lvdm.checkpoints.folder import CONFIG_FILE, expected_parts, new_folder, read_model_config, read_part, write_part
from lvdm.checkpoints.integrity import check_values
from lvdm.checkpoints.reader import State, read_checkpoint
from lvdm.checkpoints.strict import check_entries
from lvdm.checkpoints.text_layouts import (
    convert_autoencoder,
    convert_image_encoder,
    convert_image_resampler,
    convert_text,
)
from lvdm.checkpoints.unet_layouts import convert_unet, published_names
from lvdm.errors import CheckpointError
from lvdm.models.components import ModelConfig, build_components


def convert_checkpoint(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    config: ModelConfig,
    *,
    ema: bool = False,
    dtype: torch.dtype | None = None,
    rest: str | os.PathLike[str] | None = None,
) -> None:
    """Convert the published file or folder `source`, of the model that `config` describes, into the new `folder`.

    See `read_checkpoint` for what a source may be. It is mapped, and one shard of one part is in memory at a time.
    `ema=True` takes the moving averages of the UNet; `dtype` casts (None keeps what the file has); `rest` is a model
    folder that gives the parts which the source lacks, as where a UNet was published alone.
    Raises CheckpointError, before anything is written, for a source that is unreadable or does not fit the config entry
    by entry, and where `folder` exists already.
    """
    modules = build_components(config, init="meta").modules()
    known = published_names(config.family, modules["unet"].state_dict())
    parts = split_parts(read_checkpoint(source, ema=ema, known=known), str(source))
    family = detect_family(parts["unet"])
    seems = f" (it looks like {family.title}: {family.config})" if family else ""
    if family and family.unet != config.family:
        raise CheckpointError(f"{source} does not hold a model of family '{config.family}'{seems}")
    wanted = expected_parts(config)
    others = {} if rest is None else _other_parts(Path(rest), config, wanted - parts.keys())
    wanted -= others.keys()
    if wanted != parts.keys():
        lacks = ", ".join(sorted(wanted - parts.keys())) or "nothing"
        surplus = ", ".join(sorted(parts.keys() - wanted)) or "nothing"
        raise CheckpointError(f"{source} lacks {lacks} and has {surplus} beyond its config{seems}")
    converters: dict[str, Callable[[State], State]] = {
        "unet": lambda state: convert_unet(config.family, state),
        "autoencoder": convert_autoencoder,
        "text_encoder": lambda state: convert_text(state, config.text.output),
        "image_encoder": convert_image_encoder,
        "image_resampler": convert_image_resampler,
    }
    converted = {part: others[part] if part in others else converters[part](parts[part]) for part in modules}
    for part, module in modules.items():
        what = f"the entries of {part} in {source}{seems} and the config"
        check_entries(module.state_dict(), converted[part], what)
        check_values(module.state_dict(), converted[part], what)
    with new_folder(folder) as temporary:
        for part, state in converted.items():
            write_part(temporary, part, state, dtype)
        configs.save(temporary / CONFIG_FILE, configs.to_mapping(config))


def _other_parts(rest: Path, config: ModelConfig, missing: Collection[str]) -> dict[str, State]:
    """Parts of a model folder, which must describe all but the UNet as `config` does. Raises CheckpointError."""
    own = read_model_config(rest)
    for name in ("autoencoder", "text", "image", "latents"):
        if missing and getattr(own, name) != getattr(config, name):
            raise CheckpointError(f"{rest} has another {name} than the config: give a folder of the same kind of model")
    return {part: read_part(rest, part) for part in missing}


def family_of(source: str | os.PathLike[str]) -> Family:
    """The published model that a checkpoint file seems to be. Raises CheckpointError where that cannot be told."""
    parts = split_parts(read_checkpoint(source), str(source))
    family = detect_family(parts["unet"])
    if family is None:
        raise CheckpointError(
            f"{source} has a UNet of no family known here ({', '.join(FAMILIES)}): give its published config"
        )
    return family
