"""Making the videos of a job and writing them, with the record and the comparison of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from aicl.options import Reference, SamplingOptions
from aicl.pipeline import AICLPipeline
from aicl.reference_videos import is_features_file, read_pixels
from aicl.sampling_jobs import Job, sheet_file
from aicl.sidecar_files import COMPARISON, sidecar
from lvdm.callbacks import StepCallback
from lvdm.errors import ConfigError
from lvdm.files import atomic_path
from lvdm.inputs import first_frames
from lvdm.options import GenerationOptions
from lvdm.video import contact_sheet, side_by_side, to_pixels, write_video


@dataclass(frozen=True)
class Sample:
    """One video of a job, and what it was made with.

    options: with the model's defaults filled in. batch: the seeds of all videos that were made at once, among which
    this one has number `index`: it depends on them by rounding alone. base: the base model's video, for comparison.
    """

    seed: int
    options: SamplingOptions
    batch: list[int]
    index: int
    video: Tensor
    base: Tensor | None = None
    seconds: dict[str, float] | None = None


def generate_samples(
    pipe: AICLPipeline,
    job: Job,
    batches: list[list[int]] | None = None,
    on_step: StepCallback | None = None,
    progress: bool = True,
) -> Iterator[Sample]:
    """The job's videos, uint8 (t, h, w, 3), batch by batch; `batches` of seeds in place of the job's own.

    on_step: called after each step of the sampler, also of the base model's; what it raises ends the job. progress:
    whether a bar on stderr shows the steps.
    """
    watch: dict[str, Any] = {"callback_on_step_end": on_step, "progress": progress}
    options = filled_options(pipe, job)
    for batch in batches or job.batches():
        prompts = [job.prompt] * len(batch)
        given = job.sampling().given()
        videos = pipe(prompts, references=job.references, image=job.image, seed=batch, **watch, **given)
        seconds = {name: round(value, 4) for name, value in pipe.timings.items()}
        plain: list[Tensor | None] = [None] * len(batch)
        if job.compare:
            own = {name: value for name, value in given.items() if name in _GENERATION}
            if options.fps is not None:  # both at the rate that the adapter was trained at
                own["fps"] = options.fps
            plain = list(pipe.base(prompts, image=job.image, seed=batch, **watch, **own))
        for index, (seed, video, base) in enumerate(zip(batch, videos, plain)):
            yield Sample(seed, options, batch, index, video, base, seconds)


def check_jobs(pipe: AICLPipeline, jobs: Sequence[Job]) -> None:
    """Find out before anything is computed that a job lacks the image that the model begins with, or has one too many,
    and that there is no adapter to read its references.

    Raises ConfigError that names the job's prompt.
    """
    for job in jobs:
        try:
            pipe.base.check_image(job.image)
            if job.references and pipe.prism is None:
                raise ConfigError(
                    "no adapter reads its references: add --adapter, or give a folder with both as --model"
                )
        except ConfigError as error:
            raise ConfigError(f"'{job.prompt}' cannot be sampled: {error}") from error


def filled_options(pipe: AICLPipeline, job: Job) -> SamplingOptions:
    """The job's options with the model's defaults in place of None."""
    options = SamplingOptions(**job.sampling().filled(pipe.defaults_with(references=bool(job.references))))
    if job.references:
        if options.first_reference_until is None:
            options.first_reference_until = pipe.first_reference_until
        options.reference_fps = options.reference_fps or pipe.defaults.save_fps
    return options


def write_sample(pipe: AICLPipeline, job: Job, sample: Sample, path: Path) -> None:
    """Write a video and, where the job asks for it, its comparison; replaces what is there."""
    fps = pipe.defaults.save_fps
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, sample.video, fps, overwrite=True)
    if sample.base is not None:
        shown, labels = _compared(job, sample)
        write_video(sidecar(path, COMPARISON), side_by_side(shown, labels), fps, overwrite=True)
        with atomic_path(sheet_file(path)) as temporary:
            contact_sheet(shown, labels).save(temporary)


def job_line(pipe: AICLPipeline, job: Job) -> str:
    """A job in one line, for the screen."""
    o = filled_options(pipe, job)
    text = f"'{job.prompt}', {o.num_frames} frames of {o.width}x{o.height}, {_course(pipe, o)}"
    return f"{text}, seed {job.seed}, {_references_line(job, o.first_reference_until or 0)}"


def comparison_line(pipe: AICLPipeline, job: Job) -> str:
    """With what a job's comparison makes the base model's video, whose defaults may be others than the adapter's."""
    own = SamplingOptions(**job.sampling().filled(pipe.base.config.defaults))
    return f"beside it the base model's own video from the same noise, {_course(pipe, own)}"


def unknown_words(pipe: AICLPipeline, job: Job) -> list[str]:
    """The words of a job's prompt and captions that the model was never taught, in order; none if it reads any word."""
    tokenizer = pipe.base.components.text.tokenizer
    texts = [job.prompt, *(each.caption for each in job.references if each.caption)]
    return list(dict.fromkeys(word for text in texts for word in tokenizer.unknown_words(text)))


def _course(pipe: AICLPipeline, options: SamplingOptions) -> str:
    """Steps and guidance in words."""
    asked, sampler = cast(int, options.num_inference_steps), cast(str, options.sampler)  # filled in
    taken = pipe.base.steps_taken(asked, sampler)
    more = "" if taken == asked else f" (the model's timesteps for {asked})"
    return f"{taken} steps of {sampler}{more}, guidance {options.guidance_scale}"


def _references_line(job: Job, until: float) -> str:
    if not job.references:
        return "no references"
    names = ", ".join(Path(each.video).name for each in job.references)
    several = len(job.references) > 1
    first = f", the first alone for {until:.0%} of the noise" if several and until else ""
    return f"reference{'s' if several else ''} {names} at scale {job.scale}{first}"


def _compared(job: Job, sample: Sample) -> tuple[list[Tensor], list[str]]:
    """The image, the references that are videos, the base model's video and ours, and what they are called."""
    num_frames, size = sample.options.clip()
    num_frames = min(num_frames, sample.options.window_frames or num_frames)
    fps, base = cast(float, sample.options.reference_fps), cast(Tensor, sample.base)  # filled in; made to be compared
    videos: list[Reference] = [each for each in job.references if not is_features_file(each.video)]
    shown = [read_pixels(each, num_frames, size, fps) for each in videos]
    names = ["reference"] * len(shown)
    if job.image is not None:
        still = to_pixels(first_frames(job.image, 1, size).movedim(0, 1))  # as the model gets it
        shown, names = [still, *shown], ["image", *names]
    return [*shown, base, sample.video], [*names, "base", "AICL"]


_GENERATION = frozenset(GenerationOptions.__dataclass_fields__)
