"""Adapter files: the trained parameters of prism and integration, and what base model they belong to."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aicl import __version__
from aicl.action_integration import IntegrationConfig
from aicl.action_prism import ActionPrism, PrismConfig, build_prism
from aicl.integrated_backbone import IntegratedBackbone, check_fit, integrate, layout_of
from lvdm import config as configs
from lvdm.checkpoints import check_entries
from lvdm.checkpoints.integrity import check_hash, check_values, save_hashed
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.backbone import VideoBackbone
from lvdm.models.components import GenerationDefaults
from lvdm.outside import checked_path, metadata_object, open_tensors

FORMAT_VERSION = 1
SAMPLED_WEIGHTS = 64
TOLERANCE = 2**-7  # relative: the spacing of bfloat16


@dataclass
class Fingerprint:
    """Identifies a UNet's weights cheaply: a hash of all names and shapes, and one element each of some weights.

    Weights stored in float32, float16 or bfloat16, in one file or many, have matching fingerprints.
    """

    structure: str
    samples: list[float]

    @classmethod
    def of(cls, unet: nn.Module) -> "Fingerprint":
        """The fingerprint of a UNet, integrated or not; reads 64 numbers."""
        state = dict(sorted(unet.state_dict().items()))
        structure = hashlib.sha256(json.dumps([[name, list(p.shape)] for name, p in state.items()]).encode())
        matrices = [p for p in state.values() if p.is_floating_point() and p.ndim >= 2]
        chosen = matrices[:: max(1, len(matrices) // SAMPLED_WEIGHTS)][:SAMPLED_WEIGHTS]
        middle = torch.stack([p.reshape(-1)[p.numel() // 2].float() for p in chosen])
        return cls(structure.hexdigest()[:16], middle.tolist())

    def matches(self, other: "Fingerprint") -> bool:
        """Whether both are of the same weights, up to rounding to bfloat16."""
        if self.structure != other.structure or len(self.samples) != len(other.samples):
            return False
        mine, theirs = torch.tensor(self.samples), torch.tensor(other.samples)
        return torch.allclose(mine, theirs, rtol=TOLERANCE, atol=1e-6)


@dataclass
class AdapterInfo:
    """What an adapter file says about itself.

    layout: width of each block that reads R, by its name. base: the config of a base model whose class takes one, as
    those of diffusers do. step: optimiser steps of its training. fps: the rate (1/s) of
    the clips it was trained on, at which it is sampled, too; None where that is not known. notes: whatever else the
    training wants to keep.
    """

    prism: PrismConfig
    integration: IntegrationConfig
    family: str
    layout: dict[str, int]
    fingerprint: Fingerprint
    step: int = 0
    fps: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    library: str = ""
    format: int = FORMAT_VERSION
    base: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"the adapter's frame rate is {self.fps}: it must be positive")


def trained_state(prism: ActionPrism, integrated: IntegratedBackbone) -> dict[str, Tensor]:
    """All trained parameters, and nothing else, by their names in an adapter file."""
    parts = {"prism": prism, "integration": integrated.blocks}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def save_adapter(
    path: str | os.PathLike[str],
    prism: ActionPrism,
    integrated: IntegratedBackbone,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter file (safetensors), atomically; an existing one is replaced.

    meta: `step`, the optimiser steps, `fps`, the clips' rate, and anything else that JSON can hold, kept as notes.
    """
    notes = dict(meta or {})
    info = AdapterInfo(
        prism=prism.config,
        integration=integrated.config,
        family=integrated.family,
        layout=integrated.layout,
        fingerprint=Fingerprint.of(integrated.backbone),
        step=int(notes.pop("step", 0)),
        fps=notes.pop("fps", None),
        notes=notes,
        library=__version__,
        base=base_config(integrated.backbone),
    )
    content = configs.to_mapping(info)
    if not info.base:
        del content["base"]  # earlier versions of this library do not know it
    save_hashed(path, trained_state(prism, integrated), {"format": "pt", "aicl": json.dumps(content)})


def read_adapter(path: str | os.PathLike[str]) -> tuple[AdapterInfo, dict[str, Tensor]]:
    """What an adapter file says about itself, and its parameters on the CPU.

    Raises CheckpointError for a file that is missing, damaged, no adapter, or of a newer format.
    """
    path = _adapter_path(path)
    with open_tensors(path, CheckpointError, remedy="train or download it again") as file:
        metadata = file.metadata() or {}
        info = _info(metadata, path)
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_hash(state, metadata, path)
    return info, state


def read_adapter_info(path: str | os.PathLike[str]) -> AdapterInfo:
    """What an adapter file says about itself, from its header alone. Raises CheckpointError as `read_adapter` does."""
    path = _adapter_path(path)
    with open_tensors(path, CheckpointError, remedy="train or download it again") as file:
        return _info(file.metadata() or {}, path)


def at_adapter_rate(defaults: GenerationDefaults, info: AdapterInfo | None) -> GenerationDefaults:
    """A base model's defaults at the frame rate that the adapter was trained at, where that is known.

    So references are read, the base model is told, and videos are meant to be played at one rate.
    """
    return at_rate(defaults, None if info is None else info.fps)


def at_rate(defaults: GenerationDefaults, rate: float | None) -> GenerationDefaults:
    """A base model's defaults at this frame rate (1/s), its own where that is None."""
    if rate is None:
        return defaults
    fps = max(1, round(rate))
    return replace(defaults, fps=None if defaults.fps is None else fps, save_fps=fps)


def _adapter_path(path: str | os.PathLike[str]) -> Path:
    path = checked_path(path, CheckpointError)
    if not path.is_file():
        raise CheckpointError(f"adapter {path} does not exist")
    return path


def _info(metadata: Mapping[str, str], path: Path) -> AdapterInfo:
    if "aicl" not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but no AICL adapter: give the adapter.safetensors of a run"
        )
    content = metadata_object(metadata, "aicl", path, CheckpointError)
    if content.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has adapter format {content.get('format')}, this version reads {FORMAT_VERSION}: "
            f"use the library version that wrote it ({content.get('library')})"
        )
    return configs.from_mapping(AdapterInfo, content, where=str(path))


def load_adapter(
    path: str | os.PathLike[str], unet: VideoBackbone
) -> tuple[ActionPrism, IntegratedBackbone, AdapterInfo]:
    """Build what an adapter file describes, on `unet`'s device, patch the UNet and load the parameters (float32).

    Raises CheckpointError for a base model of another family or layout, or entries that do not fit the file's own
    config, and ConfigError for a config whose prism and integration do not fit. Warns where the base has the right
    layout but other weights than the adapter was trained on.
    """
    info, state = read_adapter(path)
    _check_network(path, info, unet)
    if info.base and (changed := _differing(info.base, base_config(unet))):
        raise CheckpointError(f"{path} was trained on another {unet.family} ({changed}): load it on its own base model")
    _warn_of_other_weights(path, info, unet)
    device = next(unet.parameters()).device
    check_fit(info.prism, info.integration)
    prism, integrated = build_prism(info.prism), integrate(unet, info.integration)
    try:
        _load_state(prism, integrated, state, f"the entries of {path} and its config")
        for module in (prism, integrated.blocks):
            module.to(device)
    except BaseException:  # too little memory, or Ctrl-C: nobody could take it off any more
        integrated.unpatch()
        raise
    return prism, integrated, info


def initialise(prism: ActionPrism, integrated: IntegratedBackbone, path: str | os.PathLike[str]) -> None:
    """Give both the parameters of an adapter file, of which training then starts.

    Raises CheckpointError for a file that cannot be read, one of a base model of another family or layout, or one whose
    prism or integration is another than these. Warns where it was trained on other weights of the base model.
    """
    info, state = read_adapter(path)
    _check_network(path, info, integrated.backbone)
    theirs, mine = (configs.to_mapping(config) | {"use_checkpoint": None} for config in (info.prism, prism.config))
    different = sorted(name for name in mine if mine[name] != theirs[name])
    integration, own = configs.to_mapping(info.integration), configs.to_mapping(integrated.config)
    different += sorted(name for name in own if own[name] != integration[name])
    if different:
        raise CheckpointError(
            f"{path} was trained with another {different[0]} of prism or integration than this training's config says: "
            "take its settings over, or start without it"
        )
    _load_state(prism, integrated, state, f"the entries of {path} and this training's adapter")
    _warn_of_other_weights(path, info, integrated.backbone)


def _check_network(path: str | os.PathLike[str], info: AdapterInfo, unet: VideoBackbone) -> None:
    layout = layout_of(unet)
    if (info.family, info.layout) != (unet.family, layout):
        raise CheckpointError(
            f"{path} was trained on a network of family '{info.family}' with {_describe(info.layout)}, "
            f"not on this one, of family '{unet.family}' with {_describe(layout)}: load it on its own base model"
        )


def _warn_of_other_weights(path: str | os.PathLike[str], info: AdapterInfo, unet: VideoBackbone) -> None:
    if not info.fingerprint.matches(Fingerprint.of(unet)):
        warnings.warn(
            f"{path} was trained on other weights of this '{info.family}' network: results may be poor on this one",
            stacklevel=3,
        )


def _load_state(prism: ActionPrism, integrated: IntegratedBackbone, state: Mapping[str, Tensor], what: str) -> None:
    check_entries(trained_state(prism, integrated), state, what)
    check_values(trained_state(prism, integrated), state, what)
    for part, module in (("prism.", prism), ("integration.", integrated.blocks)):
        module.load_state_dict({name.removeprefix(part): v for name, v in state.items() if name.startswith(part)})


def _describe(layout: Mapping[str, int]) -> str:
    return f"{len(layout)} attention blocks {min(layout.values(), default=0)} to {max(layout.values(), default=0)} wide"


def base_config(unet: VideoBackbone) -> dict[str, Any]:
    """The config of a network that has one of its own, as plain values."""
    config = getattr(unet, "config", None)
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str)) if isinstance(config, Mapping) else {}
    return plain


def _differing(trained: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """Which entries of two configs differ, and how; those that only one version of diffusers knows do not count."""
    names = [name for name in trained if name in present and trained[name] != present[name]]
    return ", ".join(f"{name} {trained[name]}, here {present[name]}" for name in names[:3])
