"""Which files a path means: the one answer for sampling, training, evaluation, caching and export.

A path names a file, a folder that holds it, a checkpoint of a training run (`.../checkpoints/step_00001000`), or the
folder of a run, of which the newest complete checkpoint is taken.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvdm import config as configs
from lvdm.checkpoints.folder import CONFIG_FILE
from lvdm.checkpoints.hub import download
from lvdm.errors import CheckpointError
from lvdm.models.components import ModelConfig
from lvdm.outside import is_hub_id

STEP_FOLDER = re.compile(r"step_(\d{8,})")
PIPELINE = "pipeline"  # where a checkpoint keeps a whole model
WEIGHTS = (".safetensors",)  # of what a checkpoint is written for, beside the state of its training


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser step in the name of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def find_export(path: str | os.PathLike[str], file: str, inside: str = "") -> Path:
    """The folder that holds `file`: `path` itself or the newest checkpoint in it, or what is `inside` one of them.

    Raises CheckpointError if there is none.
    """
    root = Path(path)
    for each in (root, *reversed(list_checkpoints(root / "checkpoints"))):
        folder = each if (each / file).exists() else each / inside
        if (folder / file).exists() and not (folder / "checkpoints").exists():
            return folder
    raise CheckpointError(
        f"{path} holds no {Path(inside) / file}{_instead(root)}: give a folder that has one, or that of a run that "
        "wrote one"
    )


def _instead(run: Path) -> str:
    """What the newest checkpoint of a run was written for, where it is something else than what was looked for."""
    for checkpoint in reversed(list_checkpoints(run / "checkpoints")):
        found = [each.name for each in sorted(checkpoint.iterdir()) if each.name == PIPELINE or each.suffix in WEIGHTS]
        return f", its checkpoints have {found[0]}" if found else ""
    return ", as it has no checkpoint yet" if (run / "checkpoints").is_dir() else ""


def find_file(path: str | os.PathLike[str], file: str) -> Path:
    """`path` if it is no folder, else the `file` that `find_export` finds in it. Raises CheckpointError."""
    return find_export(path, file) / file if Path(path).is_dir() else Path(path)


def find_model(path: str | os.PathLike[str]) -> Path:
    """The folder of a model that `load_pipeline` reads: `path`, the one that the run or checkpoint at `path` wrote, or
    what the Hugging Face Hub has under that name.

    Raises CheckpointError for a run that wrote none, and a name that the Hub does not give; what is missing in a model
    folder, its loader says.
    """
    if (Path(path) / "checkpoints").is_dir():
        return find_export(path, CONFIG_FILE, inside=PIPELINE)
    if is_hub_id(str(path)):
        return download(str(path))
    inside = Path(path) / PIPELINE
    return inside if inside.is_dir() else Path(path)


def read_model(source: str | Mapping[str, Any]) -> ModelConfig:
    """A model's config: given in place, or as a YAML file or the name of a shipped one, such as models/lvdm_t2v_256.

    Raises ConfigError for a file or an entry that cannot be read.
    """
    mapping, where = (configs.load(source), source) if isinstance(source, str) else (source, "the model's config")
    return ModelConfig.read(mapping, where=where)
