"""How the steps of a training are launched fastest, found by timing some steps of each way there is.

Plainly, with compiled blocks (`lvdm.acceleration.regions`), as CUDA graphs (`lvdm.training.graphs`), or both: what is
learned stays the same but for rounding. Each way is timed in a process of its own, `python -m lvdm.training.trials`,
since a capture that fails may leave CUDA in a state in which nothing works any more: whatever becomes of a trial, the
training goes on without that way.
"""

import gc
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lvdm import config as configs
from lvdm.models.backbone import BACKBONES
from lvdm.training.choice import Build, first_batch
from lvdm.training.optim import build_optimizer
from lvdm.training.settings import Settings, TrainingSettings
from lvdm.training.strategy import allow_tf32, training_device
from lvdm.training.tasks import DATA_MODULES, TASKS

SHARE = 0.05  # of a training's time: what all its trials may take together
LEAST = 60.0  # seconds: no trial is begun with less
LONG = 2 * LEAST / SHARE  # seconds: what trains for less has no time for the plain way's trial and another
LIMIT = 300.0  # seconds that one trial may take, all of its process
WARM_UP, MEASURED = 3, 4  # micro-batches
_RESULT = "trial: "  # how the line of a trial's process begins that has the result


class TrialError(Exception):
    """A way did not work, with the reason."""


@dataclass(frozen=True)
class Trial:
    """Seconds of a micro-batch with an optimiser step, and seconds that the first ones took beyond that."""

    step_s: float
    start_s: float


@dataclass(frozen=True)
class Way:
    """How steps are launched."""

    compile: bool
    cuda_graphs: bool

    def applied(self, settings: TrainingSettings) -> TrainingSettings:
        """The settings with this way."""
        return replace(settings, compile=self.compile, cuda_graphs=self.cuda_graphs)

    def __str__(self) -> str:
        names = [name for name, used in (("compiled", self.compile), ("CUDA graphs", self.cuda_graphs)) if used]
        return " with ".join(names) or "plain"


def ways(settings: TrainingSettings) -> list[Way]:
    """What `training.compile` and `training.cuda_graphs` leave open, null being open, that which starts soonest first.

    Graphs go together with neither recomputed activations nor several micro-batches, and nothing is tried with
    DeepSpeed or on a CPU.
    """
    open_ = training_device(settings).type == "cuda" and not settings.uses_deepspeed
    graphs = open_ and not settings.gradient_checkpointing and settings.gradient_accumulation_steps == 1
    compiling = [False, True] if settings.compile is None and open_ else [bool(settings.compile)]
    capturing = [False, True] if settings.cuda_graphs is None and graphs else [bool(settings.cuda_graphs)]
    return [Way(one, other) for one in compiling for other in capturing]


def fastest(
    settings: TrainingSettings,
    time_way: Callable[[TrainingSettings, float], Trial],
    steps: int,
    seconds: float = float("inf"),
    budget: float = float("inf"),
) -> tuple[TrainingSettings, str]:
    """The settings with the way that ends a training of so many steps, or so many seconds, first; and a sentence on it.

    What a way takes before its first step at full pace counts. `time_way` gets the settings and the seconds that it may
    take: at most LIMIT, and what is left of the trials' seconds together, which are `budget` and, once the first way's
    pace is known, at most SHARE of the training at that pace. Ways for which it raises TrialError, or for which less
    than LEAST seconds are left, are named in the sentence. The sentence is empty where there is nothing to choose from.
    """
    first, *others = ways(settings)
    if not others:
        return first.applied(settings), ""
    found: dict[Way, Trial] = {}
    failed: list[str] = []
    batches = float(steps * settings.gradient_accumulation_steps)
    began = time.monotonic()
    for way in (first, *others):
        left = budget - (time.monotonic() - began)
        try:
            if left < LEAST:
                raise TrialError(f"trials have had their {SHARE:.0%} of the training's time")
            found[way] = time_way(way.applied(settings), min(LIMIT, left))
        except TrialError as error:
            failed.append(f"{way} left out, {error}")
        if way == first and first in found:
            batches = min(batches, seconds / found[first].step_s)
            length = batches * found[first].step_s
            budget = min(budget, SHARE * length)
            if budget - (time.monotonic() - began) < LEAST:
                sentence = f"steps {first}: {length / 60:.1f} minutes are too few to try other ways"
                return first.applied(settings), sentence
    if not found:
        return first.applied(settings), f"steps {first}: {'; '.join(failed)}"
    order = sorted(found, key=lambda way: found[way].start_s + batches * found[way].step_s)
    paces = [
        f"{way} {settings.micro_batch / trial.step_s:.2f} samples/s, {max(0.0, trial.start_s):.0f} s at the start"
        for way, trial in ((way, found[way]) for way in order)
    ]
    return order[0].applied(settings), f"steps {order[0]}, in a trial on one device " + "; ".join(paces + failed)


def time_apart(config: dict[str, Any], settings: TrainingSettings, limit: float) -> Trial:
    """`time_steps` of the training of a config with these settings, in a process of its own.

    Raises TrialError with a reason of one line where that fails in any way, or takes more than `limit` seconds.
    """
    entries = [*TASKS.values(), *DATA_MODULES.values(), *BACKBONES.values()]
    modules = {getattr(entry, "build", entry).__module__ for entry in entries}
    order = {"config": config, "training": configs.to_mapping(settings), "modules": sorted(modules)}
    device = training_device(settings)
    if device.type == "cuda":
        order["share"] = torch.cuda.get_per_process_memory_fraction(device)
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(order, default=str),
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise TrialError(f"its trial took more than {limit:.0f} s") from error
    except OSError as error:
        raise TrialError(f"its trial could not be started ({error})") from error
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            return Trial(**json.loads(line.removeprefix(_RESULT)))
    errors = re.findall(r"^[\w.]*(?:Error|Exception|Exit)\w*: (.+)$", done.stderr, re.MULTILINE)
    raise TrialError(errors[-1][:200] if errors else f"its trial ended with status {done.returncode}")


def time_steps(settings: TrainingSettings, build: Build) -> Trial:
    """Time some micro-batches of one device, each with an optimiser step, on the first batch again and again."""
    alone = replace(
        settings,
        strategy="single",
        devices=1,
        nodes=1,
        batch_size=settings.micro_batch,
        gradient_accumulation_steps=1,
    )
    device = training_device(settings)
    module, data = build(alone)
    data.compiled = bool(settings.compile)
    batch = first_batch(module, data, device)
    optimizer = build_optimizer(module.trained.parameters(), alone, device)

    def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            with module.autocast():
                loss = module.losses(data.prepare(dict(batch))).float().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    start = run(WARM_UP)
    gc.collect()
    step = run(MEASURED) / MEASURED
    return Trial(step, start - WARM_UP * step)


def _main() -> None:
    """The process of one trial: the order as JSON on stdin, the result as a line on stdout."""
    order = json.load(sys.stdin)
    for name in order["modules"]:
        importlib.import_module(name)
    from lvdm.training.run import build_run  # which imports this module

    run = Settings.read(order["config"]).run
    settings = configs.from_mapping(TrainingSettings, order["training"], where="training")
    device = training_device(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_per_process_memory_fraction(order["share"], device)
    allow_tf32(settings, device.type == "cuda")
    trial = time_steps(settings, lambda each: build_run(order["config"], run, each)[1:])
    print(f"{_RESULT}{json.dumps({'step_s': trial.step_s, 'start_s': trial.start_s})}", flush=True)


if __name__ == "__main__":
    _main()
