"""Which base model and which adapter a path means, and what a model folder of ours says about itself."""

import os
from dataclasses import dataclass
from pathlib import Path

from lvdm import config as configs
from lvdm.checkpoints import find_file, find_model
from lvdm.errors import ConfigError

FOLDER_FILE = "aicl.yaml"
ADAPTER_FILE = "adapter.safetensors"


@dataclass
class FolderConfig:
    """`aicl.yaml` of a model folder: where the base model and the adapter lie, relative to it, and the default lead."""

    base: str = "base"
    adapter: str = ADAPTER_FILE
    lead: float = 0.0

    def __post_init__(self) -> None:
        check_lead(self.lead)

    @classmethod
    def read(cls, folder: Path) -> "FolderConfig | None":
        """That of `folder`, None where it has none. Raises ConfigError for one that does not fit."""
        path = folder / FOLDER_FILE
        return configs.from_mapping(cls, configs.load(path), where=str(path)) if path.is_file() else None


@dataclass(frozen=True)
class ModelFiles:
    """The folder of a base model, the file of an adapter if there is one, and the default `lead` that it brings."""

    base: Path
    adapter: Path | None = None
    lead: float = 0.0


def find_model_files(path: str | os.PathLike[str], adapter: str | os.PathLike[str] | None = None) -> ModelFiles:
    """What `path` names: a folder of `AICLPipeline.save_pretrained`, a model folder, or a base model's run.

    `adapter`, a file or the run that trained it, replaces the folder's own. Raises CheckpointError for a run that wrote
    nothing yet, ConfigError for a damaged aicl.yaml; what is missing otherwise, its loader says.
    """
    own = None if adapter is None else find_file(adapter, ADAPTER_FILE)
    folder = FolderConfig.read(Path(path))
    if folder is None:
        return ModelFiles(find_model(path), own)
    if own is not None:
        return ModelFiles(find_model(Path(path) / folder.base), own)
    return ModelFiles(find_model(Path(path) / folder.base), Path(path) / folder.adapter, folder.lead)


def base_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the base model alone that `path` names, see `find_model_files`."""
    return find_model_files(path).base


def check_lead(lead: float) -> float:
    """`lead`, if it is a share. Raises ConfigError if not."""
    if not 0 <= lead <= 1:
        raise ConfigError(f"lead is {lead}: give the share of the noise levels that one reference leads, from 0 to 1")
    return lead
