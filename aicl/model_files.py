"""Which base model and which adapter a path means, and what a model folder of ours says about itself."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from aicl.options import OF_ADAPTER, SamplingOptions
from lvdm import config as configs
from lvdm.arguments import check_path
from lvdm.checkpoints import find_file, find_model
from lvdm.checkpoints.hub import download
from lvdm.errors import ConfigError
from lvdm.outside import is_hub_id

if TYPE_CHECKING:
    from lvdm.models.components import GenerationDefaults

FOLDER_FILE = "aicl.yaml"
ADAPTER_FILE = "adapter.safetensors"


@dataclass
class FolderConfig:
    """`aicl.yaml` of a model folder: where the base model and the adapter lie, relative to it.

    first_reference_until, guidance_scale, num_inference_steps: defaults of these options of `SamplingOptions` that
    belong to an adapter, so they are for videos with references; None is the base model's own.
    """

    OLD_NAMES: ClassVar[dict[str, str]] = {"lead": "first_reference_until"}

    base: str = "base"
    adapter: str = ADAPTER_FILE
    first_reference_until: float = 0.0
    guidance_scale: float | None = None
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        SamplingOptions(**self.of_adapter())  # checks them

    def of_adapter(self) -> dict[str, Any]:
        """The defaults that belong to the adapter, by name."""
        return {name: getattr(self, name) for name in OF_ADAPTER}

    def content(self) -> dict[str, Any]:
        """What stands in the file: without what is None, which earlier versions do not know."""
        content: dict[str, Any] = configs.to_mapping(self)
        return {name: value for name, value in content.items() if value is not None}

    def save(self, folder: Path) -> None:
        """Write the file of a model folder."""
        configs.save(folder / FOLDER_FILE, self.content())

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
    """The folder of a base model, the file of an adapter if there is one, and the defaults that go with it."""

    base: Path
    adapter: Path | None = None
    first_reference_until: float = 0.0
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


def with_references(
    defaults: "GenerationDefaults", guidance_scale: float | None, num_inference_steps: int | None
) -> "GenerationDefaults":
    """A base model's defaults for videos with references, of which an adapter may have some of its own, or None."""
    own = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
    given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    return dataclasses.replace(defaults, **given)


def find_model_files(path: str | os.PathLike[str], adapter: str | os.PathLike[str] | None = None) -> ModelFiles:
    """What `path` names: a folder of `AICLPipeline.save_pretrained`, a model folder, or a base model's run.

    `adapter`, a file or the run that trained it, replaces the folder's own. Raises CheckpointError for a run that wrote
    nothing yet, ConfigError for a damaged aicl.yaml; what is missing otherwise, its loader says.
    """
    own = None if adapter is None else adapter_file(adapter)
    folder = FolderConfig.read(Path(path))
    if folder is None:
        return ModelFiles(find_model(path), own)
    if own is not None:
        return ModelFiles(find_model(Path(path) / folder.base), own)
    base = find_model(Path(path) / folder.base)
    return ModelFiles(base, Path(path) / folder.adapter, **folder.of_adapter())


def fetch_model_files(
    path: str | os.PathLike[str], adapter: str | os.PathLike[str] | None = None, **hub: Any
) -> ModelFiles:
    """What `path` names, see `find_model_files`; a model OWNER/NAME of the Hugging Face Hub is downloaded first.

    hub: revision, cache_dir, token and local_files_only. Raises ConfigError for other options and for what is no path,
    and what both steps raise.
    """
    if unknown := sorted(hub.keys() - {"revision", "cache_dir", "token", "local_files_only"}):
        raise ConfigError(
            f"from_pretrained takes no '{unknown[0]}': it takes adapter, device, torch_dtype and the "
            "Hub's revision, cache_dir, token and local_files_only"
        )
    check_path(path, "the model")
    if adapter is not None:
        check_path(adapter, "the adapter")
    return find_model_files(download(str(path), **hub) if is_hub_id(path) else path, adapter)


def adapter_file(path: str | os.PathLike[str]) -> Path:
    """The file of an adapter that `path` names: itself, or that of a folder or a run. Raises CheckpointError."""
    return find_file(path, ADAPTER_FILE)


def base_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the base model alone that `path` names, see `find_model_files`."""
    return find_model_files(path).base
