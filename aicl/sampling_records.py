"""The JSON beside a video: everything that it takes to make the video again, and to know whether it is the same."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from aicl import __version__
from aicl.options import ModelOptions
from aicl.pipeline import AICLPipeline
from aicl.sampling_jobs import Job
from aicl.sampling_run import Sample
from lvdm import config as configs
from lvdm.bases.loading import is_base
from lvdm.errors import CheckpointError, DataError
from lvdm.files import write_json
from lvdm.hashing import cached_hash
from lvdm.outside import read_object

_EXACT = ("device", "dtype", "threads", "aicl", "torch")  # what bits may depend on besides model and options


@dataclass(frozen=True)
class Repetition:
    """What a record says to do: with which model, which job, and which of the videos of a batch is meant."""

    model: ModelOptions
    job: Job
    batch: list[int]
    index: int
    files: dict[str, str]
    environment: dict[str, Any]


def write_record(path: Path, pipe: AICLPipeline, model: ModelOptions, job: Job, sample: Sample) -> None:
    """Write the record of a video at `path`."""
    out = path.with_name(path.stem + ".json")
    own = {"seed": sample.seed, "num_samples": 1, "out": str(path)}
    record: dict[str, Any] = {
        "job": configs.to_mapping(job) | configs.to_mapping(sample.options) | own,
        "batch": {"seeds": sample.batch, "index": sample.index},
        "model": {name: value for name, value in _as_run(pipe, model).items() if value is not None},
        "sha256": file_hashes(pipe, model, job),
        "environment": environment(pipe),
        "seconds": sample.seconds,
    }
    if pipe.reference_checks and pipe.domain is not None:
        rows = pipe.reference_checks
        record["reference_checks"] = {
            "unlike_training": [asdict(check) | {"far": check.far} for check in rows[min(sample.index, len(rows) - 1)]],
            "false_alarms": pipe.domain.false_alarms,
            "held_out_clips": pipe.domain.held_out,
        }
    if pipe.info is not None:
        record["adapter"] = {"step": pipe.info.step, "library": pipe.info.library, **pipe.info.notes}
    write_json(out, record)


def read_record(path: str | os.PathLike[str]) -> Repetition:
    """What a record asks to make again. Raises DataError for a file that is none, or of a version that kept too little.

    Raises ConfigError for settings that this version does not know.
    """
    record = read_object(path, DataError)
    names = ("job", "batch", "model", "sha256", "environment")
    if any(not isinstance(record.get(name), dict) for name in names):
        raise DataError(f"{path} is no record of a video that can be made again: give the JSON that lies beside one")
    model = configs.from_mapping(ModelOptions, record["model"], where=f"model in {path}")
    job = configs.from_mapping(Job, record["job"], where=f"job in {path}")
    batch = configs.from_mapping(_Batch, record["batch"], where=f"batch in {path}")
    if not 0 <= batch.index < len(batch.seeds) or batch.seeds[batch.index] != job.seed:
        raise DataError(f"{path} says that its video is number {batch.index} of a batch that does not hold its seed")
    return Repetition(model, job, batch.seeds, batch.index, record["sha256"], record["environment"])


def check_files(repetition: Repetition, pipe: AICLPipeline) -> None:
    """Raise CheckpointError unless the files that make the video are those that made it."""
    for path, digest in file_hashes(pipe, repetition.model, repetition.job).items():
        if (then := repetition.files.get(path)) != digest:
            was = "was not there" if then is None else f"had SHA-256 {str(then)[:12]}..., now {digest[:12]}..."
            raise CheckpointError(f"{path} {was}: the video cannot be made again with it")


def differences(repetition: Repetition, pipe: AICLPipeline) -> list[str]:
    """What differs from the machine and the versions that made the video: then it is the same up to rounding only."""
    then, now = repetition.environment, environment(pipe)
    return [f"{name} {then.get(name)}, now {now.get(name)}" for name in _EXACT if then.get(name) != now.get(name)]


def environment(pipe: AICLPipeline) -> dict[str, Any]:
    """The device and the versions that a video is made with."""
    cuda = pipe.device.type == "cuda"
    return {
        "aicl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(pipe.device) if cuda else pipe.device.type,
        "threads": None if cuda else torch.get_num_threads(),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "family": pipe.base.config.family,
    }


def file_hashes(pipe: AICLPipeline, model: ModelOptions, job: Job) -> dict[str, str]:
    """SHA-256 of every file that a video depends on, by its path: of the model, its adapter, references and image."""
    files: list[Path] = []
    if pipe.files is not None:
        kinds = (".safetensors", ".json", ".model") if is_base(pipe.files.base) else (".safetensors", ".yaml")
        files += [path for path in sorted(pipe.files.base.rglob("*")) if path.suffix in kinds]
        files += [pipe.files.adapter] if pipe.files.adapter is not None else []
    for each in (*(Path(reference.video) for reference in job.references), *([Path(job.image)] if job.image else [])):
        files += sorted(path for path in each.iterdir() if path.is_file()) if each.is_dir() else [each]
    files += [configs.find(model.config)] if model.config else []
    return {str(path): cached_hash(path) for path in files}


def _as_run(pipe: AICLPipeline, model: ModelOptions) -> dict[str, Any]:
    """The options of the model with what "auto" came to: the next time there may be fewer steps to do."""
    found: dict[str, Any] = configs.to_mapping(model)
    return found | {"compile": pipe.compiled}


@dataclass
class _Batch:
    seeds: list[int]
    index: int
