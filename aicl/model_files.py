"""Which base model and which adapter a path means, and what a model folder of ours says about itself."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from aicl.options import SamplingOptions
from lvdm import config as configs
from lvdm.checkpoints import find_file, find_model

FOLDER_FILE = "aicl.yaml"
ADAPTER_FILE = "adapter.safetensors"


@dataclass
class FolderConfig:
    """`aicl.yaml` of a model folder: where the base model and the adapter lie, relative to it.

    first_reference_until: the default of `SamplingOptions.first_reference_until`, which belongs to an adapter.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {"lead": "first_reference_until"}

    base: str = "base"
    adapter: str = ADAPTER_FILE
    first_reference_until: float = 0.0

    def __post_init__(self) -> None:
        SamplingOptions(first_reference_until=self.first_reference_until)  # checks its range

    @classmethod
    def read(cls, folder: Path) -> "FolderConfig | None":
        """That of `folder`, None where it has none. Raises ConfigError for one that does not fit."""
        path = folder / FOLDER_FILE
        if not path.is_file():
            return None
        return configs.from_mapping(
            cls, configs.with_new_names(configs.load(path), cls.OLD_NAMES, str(path)), str(path)
        )


@dataclass(frozen=True)
class ModelFiles:
    """The folder of a base model, the file of an adapter if there is one, and the default that goes with it."""

    base: Path
    adapter: Path | None = None
    first_reference_until: float = 0.0


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
    return ModelFiles(find_model(Path(path) / folder.base), Path(path) / folder.adapter, folder.first_reference_until)


def base_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the base model alone that `path` names, see `find_model_files`."""
    return find_model_files(path).base
