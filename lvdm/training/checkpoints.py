"""The checkpoints of a run: where they lie, when one is complete, and writing them so that none is ever half there.

    runs/NAME/checkpoints/step_00001000/
        progress.json          step, samples seen, seconds trained
        state.ckpt             what Lightning needs to continue: trained parameters, optimiser (a folder with DeepSpeed)
        adapter.safetensors    or whatever else the task exports for use

A folder is written under a temporary name and renamed when everything is in it.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from lvdm.checkpoints import list_checkpoints
from lvdm.errors import CheckpointError
from lvdm.files import write_json
from lvdm.training.module import TrainingModule
from lvdm.training.strategy import whole_parameters


@dataclass
class Progress:
    """How far a run is: optimiser steps done, samples seen by all devices together, seconds of training."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0


def read_progress(checkpoint: Path) -> Progress:
    """Read a checkpoint's progress.json. Raises CheckpointError if `checkpoint` is not a training checkpoint."""
    try:
        return Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint} is not a training checkpoint: it has no readable progress.json ({error})"
        ) from error


def write_checkpoint(trainer: pl.Trainer, folder: Path, progress: Progress, keep: int) -> Path:
    """Write a checkpoint of this moment under `folder`, then delete all but the `keep` newest. All ranks call this."""
    module = trainer.lightning_module
    assert isinstance(module, TrainingModule)
    final = folder / f"step_{progress.step:08d}"
    temporary = folder / f".writing_{final.name}"
    if trainer.is_global_zero:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed while writing
        temporary.mkdir(parents=True)
    trainer.strategy.barrier("checkpoint folder")
    trainer.save_checkpoint(temporary / "state.ckpt", weights_only=False)  # the optimiser's state too
    with whole_parameters(trainer.strategy, module.trained.parameters()):
        if trainer.is_global_zero:
            with module.showing():
                module.export(temporary, asdict(progress))
    trainer.strategy.barrier("checkpoint written")
    if trainer.is_global_zero:
        write_json(temporary / "progress.json", asdict(progress))
        _sync(temporary)
        if final.exists():  # the same step again: only after resuming at it, and then it holds the same
            shutil.rmtree(final)
        os.replace(temporary, final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
        rank_zero_info(f"checkpoint: {final}")
    trainer.strategy.barrier("checkpoint in place")
    return final


def _sync(folder: Path) -> None:
    """Have the disk hold every file before the rename that declares them complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
