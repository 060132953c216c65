"""A training run from its config: folder, resuming, trainer, and what its ending means."""

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info

from lvdm import config as configs
from lvdm.acceleration import keep_kernels
from lvdm.checkpoints import list_checkpoints
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError
from lvdm.files import disk_errno, disk_errors, locked, make_folder
from lvdm.models import set_backend
from lvdm.training.callbacks import Checkpoints, Counter, Previews
from lvdm.training.checkpoints import (
    STATE,
    Progress,
    check_checkpoint,
    check_state,
    clear_up,
    newest_whole,
    read_progress,
)
from lvdm.training.diagnostics import Diagnostics
from lvdm.training.logs import CSVLog
from lvdm.training.messages import Messages
from lvdm.training.metrics import Meter
from lvdm.training.module import TrainingModule
from lvdm.training.settings import LoggingSettings, RunSettings, Settings, TrainingSettings
from lvdm.training.settling import DECISION, decide, recall, record
from lvdm.training.strategy import allow_tf32, build_strategy, first_process
from lvdm.training.tasks import Recipe, build_task

# What may differ when a run is resumed: it changes how long, how fast and how verbosely it trains, not what it learns.
FREE = {
    "training": {
        "steps", "max_minutes", "strategy", "accelerator", "devices", "nodes", "gradient_accumulation_steps",
        "gradient_checkpointing", "attention", "compile", "cuda_graphs", "checkpoint_every", "keep",
        "preview_every", "previews", "preview_steps", "stop_factor",
    },
    "run": {"out"},
    "data": {"workers"},
}  # fmt: skip


def train(config: dict[str, Any], resume: str = "none") -> int:
    """Run a training to its end, and return the exit status: 0, or 128 + n if signal n ended it early.

    config: plain mapping with the sections run, training, logging and those of the task. resume: "none" starts a new
    run, "auto" continues the run of that name if it has a checkpoint, a path continues from that checkpoint.

    Files go to `run.out`/`run.name`: config.yaml, metrics.csv, tensorboard/, previews/, checkpoints/, and what
    `strategy: auto` chose as strategy.json, which a run that goes on keeps to.
    A training has its folder to itself; a second one in it is refused while the first lives. A damaged checkpoint is
    passed over, with a warning, for the one before it. Checkpoints of later steps than the one that it goes on from are
    renamed, and kept.

    Raises ConfigError before anything is written if the config cannot work or the run exists already, CheckpointError
    if there is nothing to continue from or it does not fit, LossError when the loss is no longer a number or explodes,
    DiskError when the disk is full or cannot be written.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"config must be a mapping of sections, as lvdm.config.load reads one, got {config!r:.200}")
    config = dict(config)
    settings = Settings.read(config)
    folder = Path(settings.run.out) / settings.run.name
    if resume not in ("none", "auto"):
        check_checkpoint(Path(resume))
    with locked(folder, "is training") if first_process() else nullcontext():
        with disk_errors(folder, then="then go on with --resume auto"), _silent_writers():
            return _train(config, settings, folder, resume)


def _train(config: dict[str, Any], sections: Settings, folder: Path, resume: str) -> int:
    """`train` with the common sections parsed, in a folder that no other training has."""
    run, reports = sections.run, sections.logging
    damaged: list[Path] = []
    checkpoint = Path(resume) if resume not in ("none", "auto") else None
    if resume == "auto":
        checkpoint, damaged = newest_whole(folder / "checkpoints")
    if first_process():
        _check_folder(folder, config, resume)
    progress = read_progress(checkpoint) if checkpoint else Progress()

    _quieten()
    settings = settle(config, run, sections.training, progress, folder / DECISION)
    options, module, data = build_run(config, run, settings)
    if checkpoint:
        check_state(checkpoint, module)
    data.start = progress.samples
    if first_process():
        make_folder(folder)
        clear_up(folder / "checkpoints", damaged, progress.step)
        configs.save(folder / "config.yaml", config)
        if sections.training.strategy == "auto":
            record(folder / DECISION, config, sections.training, settings)
    loggers = _loggers(reports, run, folder, progress)
    meter = Meter(settings, reports, progress)
    checkpoints = Checkpoints(settings, progress, meter, folder / "checkpoints")
    callbacks = [Counter(settings, progress), meter, checkpoints, Messages(settings, reports, data, folder)]
    if reports.diagnostics:
        callbacks.append(Diagnostics(reports.diagnostics, progress, folder))
    if settings.preview_every:
        callbacks.append(Previews(settings, progress, folder / "previews"))
    trainer = build_trainer(settings, options, logger=loggers, callbacks=callbacks, default_root_dir=folder)
    state = None if checkpoint is None else checkpoint / STATE
    trainer.fit(module, datamodule=data, ckpt_path=state, weights_only=True)
    if checkpoints.stopped_by is not None and progress.step < settings.steps:
        rank_zero_info(f"stopped at step {progress.step} of {settings.steps}: --resume auto goes on from there")
    return 0 if checkpoints.stopped_by is None else 128 + checkpoints.stopped_by


def settle(
    config: dict[str, Any],
    run: RunSettings,
    settings: TrainingSettings,
    progress: Progress | None = None,
    known: Path | None = None,
) -> TrainingSettings:
    """The settings with what `training.strategy: auto` chooses, which is printed; others as they are.

    progress: of a run that goes on. known: where it was recorded what was chosen before, see `recall`.
    """
    if settings.strategy != "auto":
        return settings
    build_strategy(replace(settings, strategy="ddp"))  # which says what is missing, before anything is tried
    chosen = recall(known, config, settings) if known is not None else None
    if chosen is not None:
        rank_zero_info(f"strategy auto: as chosen before and recorded in {known}")
        return chosen
    chosen, sentence = decide(config, settings, lambda each: build_run(config, run, each)[1:], progress or Progress())
    rank_zero_info(sentence)
    return chosen


def build_run(
    config: dict[str, Any], run: RunSettings, settings: TrainingSettings
) -> tuple[dict[str, Any], TrainingModule, EndlessDataModule]:
    """What `train` needs before anything is written: the options of `build_strategy`, the module and its data."""
    options = build_strategy(settings)  # first, since it may refuse
    set_backend(settings.attention)
    if settings.compile:
        keep_kernels()  # so that what a trial compiled is there when training begins, or goes on
    torch.manual_seed(run.seed)
    sections = {name: value for name, value in config.items() if name not in ("run", "training", "logging")}
    return options, *build_task(Recipe(run, settings, sections))


def build_trainer(settings: TrainingSettings, options: dict[str, Any], **others: Any) -> pl.Trainer:
    """Lightning's trainer for these settings; `options` are those of `build_strategy`, others are passed on."""
    allow_tf32(settings, options["accelerator"] == "gpu")
    return pl.Trainer(
        **options,
        max_steps=settings.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.gradient_accumulation_steps,
        gradient_clip_val=settings.max_grad_norm,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # ranks already get different sample numbers
        benchmark=False,  # cuDNN's own choice is better than its trials, which took one six times as slow
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **others,
    )


@contextmanager
def _silent_writers() -> Iterator[None]:
    """Inside, a full disk that stops a thread (TensorBoard's) is not printed: the next call from here raises it."""
    shown = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is None or disk_errno(arguments.exc_value) is None:
            shown(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = shown


def _check_folder(folder: Path, config: dict[str, Any], resume: str) -> None:
    """Never mix two runs in one folder: raise ConfigError if another run, or the same one, is there already.

    A run that ended before its first line of metrics left nothing to keep.
    """
    trained = (folder / "metrics.csv").exists() or bool(list_checkpoints(folder / "checkpoints"))
    if not trained or not (folder / "config.yaml").exists():
        return
    if resume == "none":
        raise ConfigError(f"{folder} holds a run already: continue it with --resume auto, or choose another run.name")
    try:
        known = configs.load(folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(
            f"{folder / 'config.yaml'} is damaged: if you are sure that the run's config is the one that you give, "
            "remove this file, and it is written anew"
        ) from error
    changed = _differences(known, config)
    if changed:
        raise ConfigError(
            f"{folder} holds a run with another config ({', '.join(changed[:5])} differ): choose another run.name"
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the settings that differ, those that may differ left out."""
    flat = [dict(_flatten({k: v for k, v in each.items() if k != "logging"})) for each in (old, new)]
    free = {f"{section}.{name}" for section, names in FREE.items() for name in names}
    names = sorted(flat[0].keys() | flat[1].keys())
    missing = object()
    return [name for name in names if name not in free and flat[0].get(name, missing) != flat[1].get(name, missing)]


def _flatten(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _quieten() -> None:
    """Lightning's advice about things that are meant to be so."""
    noise = ("Tip:", "GPU available", "TPU available", "HPU available", "`Trainer.fit` stopped")  # we say where it runs
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: not any(each in str(record.msg) for each in noise)
    )
    for message in (
        ".*overridden `transfer_batch_to_device`.*",
        ".*treespec, LeafSpec.*",
        ".*does not have many workers.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    # DDP is built on a stream of its own, as CUDA graphs need it; newer PyTorch remarks on that.
    if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)


def _loggers(reports: LoggingSettings, run: RunSettings, folder: Path, progress: Progress) -> list[Logger]:
    loggers: list[Logger] = [CSVLog(folder / "metrics.csv", progress.step)]
    if reports.tensorboard:
        purge = progress.step + 1 if progress.step else None
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", purge_step=purge))
    if reports.wandb is not None:
        from pytorch_lightning.loggers import WandbLogger

        try:
            loggers.append(WandbLogger(name=run.name, project=reports.wandb, save_dir=folder))
        except ModuleNotFoundError as error:
            raise ConfigError("logging.wandb needs Weights & Biases: pip install wandb, or set it to null") from error
    return loggers
