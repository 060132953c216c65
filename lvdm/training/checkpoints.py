"""The checkpoints of a run: where they lie, when one is complete, and writing them so that none is ever half there.

    runs/NAME/checkpoints/step_00001000/
        progress.json          step, samples seen, seconds trained
        state.ckpt             what Lightning needs to continue: trained parameters, optimiser (a folder with DeepSpeed)
        adapter.safetensors    or whatever else the task exports for use
        SHA256SUMS             the checksums of all of these

A folder is written under a temporary name and renamed when everything is in it. One that is found damaged later is
passed over for the one before it, and renamed to step_00001000.damaged. Where a run goes on from an earlier checkpoint
that was named, the later ones belong to a course that was left: they are renamed to step_00002000.abandoned.
"""

import json
import os
import pickle
import shutil
import warnings
import zipfile
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

from lvdm import config as configs
from lvdm.checkpoints import check_entries, list_checkpoints
from lvdm.checkpoints.integrity import check_values
from lvdm.checkpoints.resolve import checkpoint_step
from lvdm.errors import CheckpointError
from lvdm.files import disk_errors, make_folder, sync_folder, write_json
from lvdm.hashing import SUMS, check_sums, write_sums
from lvdm.training.module import TrainingModule
from lvdm.training.strategy import whole_parameters

STATE, PROGRESS = "state.ckpt", "progress.json"
_WRITING = ".writing_"  # how the name of a folder begins while it is written


@dataclass
class Progress:
    """How far a run is: optimiser steps done, samples seen by all devices together, seconds of training."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        configs.check_at_least(self, 0, ("step", "samples", "seconds"))


def read_progress(checkpoint: Path) -> Progress:
    """Read a checkpoint's progress.json. Raises CheckpointError if `checkpoint` is not a training checkpoint."""
    try:
        content = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        return configs.from_mapping(Progress, content, where=PROGRESS)
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise CheckpointError(f"{checkpoint} is damaged: its {PROGRESS} cannot be read ({error})") from error
        if not checkpoint.exists():
            raise CheckpointError(
                f"the checkpoint {checkpoint} does not exist: name another, or --resume auto"
            ) from None
        if of_run := list_checkpoints(checkpoint / "checkpoints"):
            raise CheckpointError(
                f"{checkpoint} is a run, not one of its checkpoints: continue it by its run.name with --resume auto, "
                f"or name a checkpoint, such as {of_run[-1]}"
            ) from None
        raise CheckpointError(f"{checkpoint} is no checkpoint of a training: it has no {PROGRESS}") from None


def check_checkpoint(checkpoint: Path) -> None:
    """Raise CheckpointError if a training checkpoint is damaged.

    One from before there were checksums is held against those that the archive format of PyTorch has of its own.
    """
    read_progress(checkpoint)
    if not (checkpoint / STATE).exists():
        raise CheckpointError(f"{checkpoint} has no {STATE}")
    if (checkpoint / SUMS).exists():
        check_sums(checkpoint)
    elif (checkpoint / STATE).is_file():
        try:
            with zipfile.ZipFile(checkpoint / STATE) as archive:
                damaged = archive.testzip()
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise CheckpointError(f"{checkpoint / STATE} is damaged ({error})") from error
        if damaged is not None:
            raise CheckpointError(f"{checkpoint / STATE} is damaged ({damaged} does not have its checksum)")


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint in `folder` that is not damaged, and the damaged ones after it, with a warning about each.

    Raises CheckpointError if there are some and all are damaged.
    """
    damaged: list[Path] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            check_checkpoint(checkpoint)
        except CheckpointError as error:
            warnings.warn(f"{error}; going on from the checkpoint before it", stacklevel=2)
            damaged.append(checkpoint)
        else:
            return checkpoint, damaged
    if damaged:
        raise CheckpointError(f"all checkpoints in {folder} are damaged: choose another run.name to start anew")
    return None, []


def clear_up(folder: Path, damaged: list[Path], step: int) -> None:
    """Put what does not lead to a training that goes on from `step` out of its way: damaged checkpoints, later ones
    (`keep` would count them, and the next `--resume auto` take them), and what a killed process was writing.

    Only for the process that has the run's folder to itself.
    """
    for checkpoint in damaged:
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)  # of the same step, and damaged before
        os.replace(checkpoint, aside)
    for checkpoint in (path for path in list_checkpoints(folder) if checkpoint_step(path) > step):
        names = (f"{checkpoint.name}.abandoned{number or ''}" for number in count())
        aside = next(path for name in names if not (path := folder / name).exists())
        os.replace(checkpoint, aside)
        rank_zero_info(f"training goes on from step {step}: {checkpoint} is of another course, and now {aside.name}")
    for left in folder.glob(f"{_WRITING}*"):
        shutil.rmtree(left)


def check_state(checkpoint: Path, module: TrainingModule) -> None:
    """Raise CheckpointError unless the trained weights in a checkpoint fit `module` and are finite, and their average
    is there where `module` keeps one.

    A folder of DeepSpeed's, which holds them in parts, is left to DeepSpeed, and refused by other strategies.
    """
    path, settings = checkpoint / STATE, module.settings
    if path.is_dir() != settings.uses_deepspeed:
        how, others = ("with", "a strategy of DeepSpeed's") if path.is_dir() else ("without", "single or ddp")
        raise CheckpointError(
            f"{path} is of a training {how} DeepSpeed, from which training.strategy={settings.strategy} cannot go on: "
            f"set it to {others}, or start another run from its weights (init_from)"
        )
    if path.is_dir():
        return
    try:
        state: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        weights = state["state_dict"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: go on from an earlier checkpoint") from error
    if module.ema is not None and "ema" not in state:
        raise CheckpointError(
            f"{path} is of a training that kept no average of weights, and training.ema asks for one: set it to null"
        )
    what = f"the entries of {path} and this training"
    check_entries(module.state_dict(), weights, what)
    check_values(module.state_dict(), weights, what)


def write_checkpoint(trainer: pl.Trainer, folder: Path, progress: Progress, keep: int) -> Path:
    """Write a checkpoint of this moment under `folder`, then delete all but the `keep` newest. All ranks call this.

    Raises DiskError where there is no room for it, and leaves those that are there.
    """
    final = folder / f"step_{progress.step:08d}"
    temporary = folder / f"{_WRITING}{final.name}"
    try:
        with disk_errors(final, then="then go on with --resume auto"):
            _write(trainer, temporary, progress)
    except BaseException:
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if trainer.is_global_zero:
        os.replace(temporary, final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
        rank_zero_info(f"checkpoint: {final}")
    trainer.strategy.barrier("checkpoint in place")
    return final


def _write(trainer: pl.Trainer, folder: Path, progress: Progress) -> None:
    module = trainer.lightning_module
    assert isinstance(module, TrainingModule)
    if trainer.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
    trainer.strategy.barrier("checkpoint folder")
    trainer.save_checkpoint(folder / STATE, weights_only=False)  # the optimiser's state too
    with whole_parameters(trainer.strategy, module.trained.parameters()):
        if trainer.is_global_zero:
            with module.showing():
                module.export(folder, asdict(progress))
    trainer.strategy.barrier("checkpoint written")
    if trainer.is_global_zero:
        write_json(folder / PROGRESS, asdict(progress))
        write_sums(folder)
        sync_folder(folder)  # before the rename that declares them complete
