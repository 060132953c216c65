"""All that `training.strategy: auto` decides, and the record of it that a run which goes on takes it from."""

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info

from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.files import write_json
from lvdm.training.checkpoints import Progress
from lvdm.training.choice import Build, choose
from lvdm.training.settings import TrainingSettings
from lvdm.training.strategy import training_device
from lvdm.training.trials import LIMIT, LONG, SHARE, fastest, time_apart, ways

DECISION = "strategy.json"  # in the folder of a run
CHOSEN = ("strategy", "gradient_accumulation_steps", "gradient_checkpointing", "compile", "cuda_graphs")
# Settings besides these that bear on the choice.
ASKED = (*CHOSEN, "batch_size", "accelerator", "devices", "nodes", "precision", "attention", "timesteps_per_sample")


def decide(
    config: dict[str, Any], settings: TrainingSettings, build: Build, progress: Progress
) -> tuple[TrainingSettings, str]:
    """What goes in the place of "auto", and a sentence on it: the division of a step by trying its memory
    (`choose`), then how steps are launched by timing some (`fastest`), if the rest of the training is long enough.

    Raises ConfigError where the training does not fit at all; a way of launching that does not work is left out.
    """
    chosen, sentence, sample_s = choose(settings, build)
    first, *others = ways(chosen)
    steps, seconds = settings.steps - progress.step, float("inf")
    if settings.max_minutes is not None:
        seconds = 60 * settings.max_minutes - progress.seconds
    share = settings.batch_size // (settings.devices * settings.nodes)
    length = min(seconds, steps * share * sample_s)
    if not others or length < LONG:
        return first.applied(chosen), sentence
    budget = min(SHARE * length, LIMIT * (1 + len(others)))
    rank_zero_info(
        f"timing how steps are launched fastest, for at most {budget / 60:.1f} minutes: "
        f"{first}, {', '.join(map(str, others))}"
    )
    chosen, how = fastest(chosen, lambda each, limit: time_apart(config, each, limit), steps, seconds, budget)
    return chosen, f"{sentence}; {how}"


def record(path: Path, config: dict[str, Any], asked: TrainingSettings, chosen: TrainingSettings) -> None:
    """Write what was chosen, and for what."""
    write_json(path, {"for": _situation(config, asked), "chosen": {name: getattr(chosen, name) for name in CHOSEN}})


def recall(path: Path, config: dict[str, Any], asked: TrainingSettings) -> TrainingSettings | None:
    """What `record` wrote; None where there is nothing, or it was for another device, config or question.

    How long the training is does not count: a run that goes on keeps its way.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["for"] != _situation(config, asked):
            return None
        chosen = {name: found["chosen"][name] for name in CHOSEN}
        return configs.from_mapping(TrainingSettings, configs.to_mapping(asked) | chosen, where=str(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
        return None  # absent or damaged: it is decided, and recorded, anew


def _situation(config: dict[str, Any], asked: TrainingSettings) -> Any:
    """As JSON gives it back."""
    device, name = training_device(asked), "cpu"
    if device.type == "cuda":
        gib = torch.cuda.get_device_properties(device).total_memory * torch.cuda.get_per_process_memory_fraction(device)
        name = f"{torch.cuda.get_device_name(device)}, {gib / 2**30:.0f} GiB"
    sections = {key: value for key, value in config.items() if key not in ("run", "training", "logging")}
    training = {key: getattr(asked, key) for key in ASKED}
    found = {"device": name, "torch": torch.__version__, "training": training, "sections": sections}
    return json.loads(json.dumps(found, default=str, sort_keys=True))
