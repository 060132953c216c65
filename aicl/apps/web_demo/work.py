"""What a worker does with a task: load the model on its device, generate, and write everything that the page offers."""

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from aicl.apps.web_demo.jobs import Task
from aicl.apps.web_demo.outputs import SampleFiles, clip_file, features_file, sample_files
from aicl.options import ModelOptions
from aicl.pipeline import AICLPipeline
from aicl.reference_domain import unusual
from aicl.reference_videos import read_pixels
from aicl.sampling_models import load_model
from aicl.sampling_records import write_record
from aicl.sampling_run import Sample, filled_options, generate_samples, write_sample
from lvdm import cli
from lvdm.callbacks import StepCallback
from lvdm.video import probe, read_frames, write_video


def worker_devices(named: Sequence[str] | None) -> list[str | None]:
    """The devices that work: those named, or all GPUs, or the CPU. Raises ConfigError for one that cannot be used."""
    for name in named or ():
        cli.device(name)
    if named:
        return list(named)
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or [None]


class Worker:
    """Makes the videos of tasks on one device, and keeps the model of the last one loaded.

    options: what all models have in common. device: None for a GPU if there is one, else the CPU.
    """

    def __init__(self, options: ModelOptions, device: str | None = None) -> None:
        self._options, self._device = options, device
        self._name: str | None = None
        self._pipe: AICLPipeline | None = None

    def __call__(self, task: Task) -> None:
        """Make a task's videos. Raises Cancelled where it was cancelled, UserError for what the model cannot take."""
        pipe, job = self.pipeline(task.model), task.job
        model = replace(self._options, model=task.model)
        for files, sample in zip(
            sample_files(task), generate_samples(pipe, job, on_step=_counting(task), progress=False)
        ):
            write_sample(pipe, job, sample, files.video)
            write_record(files.video, pipe, model, job, sample)
            _write_more(pipe, files, sample)
            task.warnings = unusual_references(pipe)
        if job.references:
            self._write_references(pipe, task)

    def pipeline(self, model: str) -> AICLPipeline:
        """A model, loaded unless it is the last one. Raises CheckpointError."""
        if self._pipe is None or self._name != model:
            self._pipe, self._name = None, None  # first, so that two never share the memory
            self._pipe = load_model(replace(self._options, model=model, device=self._device))
            self._name = model
        return self._pipe

    def _write_references(self, pipe: AICLPipeline, task: Task) -> None:
        """What was read of each reference, and R of all of them."""
        job, options = task.job, filled_options(pipe, task.job)
        num_frames, size = options.clip()
        for number, reference in enumerate(job.references, start=1):
            pixels = read_pixels(reference, num_frames, size, float(options.reference_fps or 0))
            write_video(clip_file(task, number), pixels, pipe.defaults.save_fps, overwrite=True)
        features = pipe.encode_references(job.references, job.prompt, reference_fps=options.reference_fps)
        features.sources = [os.path.basename(source) for source in features.sources]
        features.save(features_file(task), overwrite=True)


def unusual_references(pipe: AICLPipeline) -> list[str]:
    """A sentence about each reference of the last call that is unlike the clips that the adapter was trained on."""
    if pipe.domain is None:
        return []
    far = unusual(pipe.reference_checks)
    return [pipe.domain.sentence(replace(check, reference=os.path.basename(check.reference))) for check in far]


def _write_more(pipe: AICLPipeline, files: SampleFiles, sample: Sample) -> None:
    """The base model's video by itself, and GIFs."""
    fps = pipe.defaults.save_fps
    write_video(files.video.with_suffix(".gif"), sample.video, fps, overwrite=True)
    if sample.base is not None:
        write_video(files.base, sample.base, fps, overwrite=True)
        info = probe(files.comparison)
        compared = read_frames(files.comparison, range(info.num_frames))
        write_video(files.comparison.with_suffix(".gif"), compared, info.fps, overwrite=True)


def _counting(task: Task) -> StepCallback:
    """A callback of the sampler's that counts the steps of a task, and ends it where it was cancelled."""
    return lambda pipeline, step, timestep, tensors: task.step()
