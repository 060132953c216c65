"""What `aicl sample` does for each prompt: find references, generate, write the videos and a record of each."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from aicl.options import Reference, SamplingOptions
from aicl.sidecar_files import COMPARISON, sidecar
from lvdm import config as configs
from lvdm.errors import ConfigError, DataError, UserError, VideoError
from lvdm.files import check_writable
from lvdm.options import option
from lvdm.outside import check_text, parse_json, read_lines

SAMPLES = "outputs/samples"  # where videos go whose place nobody says
OF_REFERENCES = {
    "scale": "is the strength of references",
    "reference_guidance_scale": "is the strength of references",
    "first_reference_until": "says when the first of several references is read alone",
    "reference_fps": "is the rate at which references are sampled",
}
"""Options of a job that do nothing without references, and why."""
ENDINGS = (".mp4", ".webm", ".gif", ".webp")  # what `lvdm.video.write_video` writes, which is slow to import


@dataclass(kw_only=True)
class Job(SamplingOptions):
    """One prompt and how to sample it; a line of a prompts file may set any field.

    references: each as `Reference.of` takes it. library: of `aicl index`, to take `num_references` references from:
    `library_by` verbs or text of the prompt, or by motion or appearance of an `example` clip. num_samples videos have
    the seeds seed, seed + 1, ...; `batch_size` of them are made at once. out: a file that ends in one of ENDINGS, or,
    without an ending, a folder of frames; several samples get their seed appended. compare: also write image |
    reference | base | AICL, as one video and as a PNG of their frames. label: the class of the action, kept for
    evaluation. chosen: which videos of the library were taken and why, filled in by `prepare`. left_out: the references
    that were left out by reference_guard.
    """

    RENAMED: ClassVar[dict[str, str]] = SamplingOptions.RENAMED | {
        "refs": "references",
        "ref_captions": "references",
        "ref_weights": "references",
        "num_refs": "num_references",
        "batch": "batch_size",
    }

    prompt: str
    references: list[Reference] = dataclasses.field(default_factory=list)
    library: str | None = option(None, "take references from this library (see `aicl index`)", group="references")
    library_by: Literal["verbs", "text", "motion", "appearance"] | None = option(
        None, "how they are chosen (default: motion with --example, else verbs, else text)", group="references"
    )
    example: str | None = option(
        None, "a clip for --library, which takes those that move like it", group="references", metavar="VIDEO"
    )
    num_references: int = option(
        1, "how many to take from the library (default: 1)", least=1, group="references", spellings=("num-refs",)
    )
    reference_guard: float | None = option(
        None,
        "leave the references out where the base model knows the prompt's action: where its words change the motion of "
        "the first prediction by more than this share, such as 0.04",
        above=0,
        group="references",
    )
    general_prompt: str | None = option(
        None,
        "for --reference-guard: the prompt with a general word, such as moving, for its action (default: made from it)",
        group="references",
        metavar="TEXT",
    )
    image: str | None = option(
        None,
        "the first frame of image-to-video models: a PNG, JPEG or WebP file, stretched to the size of the video",
    )
    seed: int = option(0, "of the first sample (default: 0)", least=0)
    num_samples: int = option(1, "videos of each prompt, with consecutive seeds (default: 1)", least=1, most=100_000)
    batch_size: int = option(1, "samples made at once (default: 1)", least=1, spellings=("batch",))
    label: str | None = option(None, "the class of the action, kept in the record for `aicl evaluate`", group="output")
    out: str | None = option(
        None,
        ".mp4, .webm, .gif, .webp or a folder of frames by its ending; with --prompts-file the videos' folder",
        group="output",
    )
    compare: bool = option(False, "also image | reference | base | AICL, as a video and a PNG", group="output")
    overwrite: bool = option(False, "replace existing files", group="output")
    skip_existing: bool = option(False, "go on with an interrupted run", group="output")
    chosen: list[dict[str, str]] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.references = [Reference.of(each) for each in self.references]
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty: describe the video in a sentence")
        if self.references and self.library:
            raise ConfigError("give either references or a library to choose them from, not both")
        if self.num_references != 1 and not (self.library or self.chosen):
            raise ConfigError("num_references says how many to take from a library: name one, or leave it out")
        if not self.library and (self.library_by or self.example):
            raise ConfigError("library_by and example say how to choose from a library: name one, or leave them out")
        if self.reference_guard is not None and not (self.references or self.library):
            raise ConfigError("reference_guard decides whether references are read: give some, or leave it out")
        if self.image is not None and not self.image.strip():
            raise ConfigError("image is an empty name: give a PNG, JPEG or WebP file, or leave it out")
        if self.general_prompt is not None and self.reference_guard is None:
            raise ConfigError("general_prompt is what reference_guard compares the prompt with: set it, too")
        if self.out and Path(self.out).suffix.lower() not in (*ENDINGS, ""):
            raise ConfigError(f"out {self.out} must end in {', '.join(ENDINGS)}, or nothing for a folder of frames")

    def sampling(self) -> SamplingOptions:
        """The job's options of the pipeline alone."""
        return SamplingOptions(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(SamplingOptions)}
        )

    def seeds(self) -> list[int]:
        """The seed of each sample."""
        return list(range(self.seed, self.seed + self.num_samples))

    def outputs(self) -> list[Path]:
        """The video file, or frame folder, of each sample."""
        path = Path(self.out or "")
        if self.num_samples == 1:
            return [path]
        return [path.with_name(f"{path.stem}-seed{seed}{path.suffix}") for seed in self.seeds()]

    def files(self) -> list[Path]:
        """Everything that the job writes."""
        return [file for path in self.outputs() for file in files_beside(path, self.compare)]

    def missing(self) -> dict[int, Path]:
        """What is still to be made, by its seed: with skip_existing, what has all of its files is not made again."""
        places = dict(zip(self.seeds(), self.outputs()))
        if not self.skip_existing:
            return places
        return {seed: path for seed, path in places.items() if not _whole(path, self.compare)}

    def batches(self) -> list[list[int]]:
        """The seeds that are made at once, without batches of which nothing is missing. A batch is not cut: a video
        depends on the others in it, by rounding."""
        seeds, missing = self.seeds(), self.missing()
        cut = [seeds[start : start + self.batch_size] for start in range(0, len(seeds), self.batch_size)]
        return [batch for batch in cut if missing.keys() & set(batch)]


def record_file(video: Path) -> Path:
    """The JSON beside a video."""
    return video.with_name(video.stem + ".json")


def sheet_file(video: Path) -> Path:
    """The picture of a comparison's frames, beside a video."""
    return video.with_name(f"{video.stem}-compare.png")


def files_beside(video: Path, compare: bool) -> list[Path]:
    """A video and what is written with it."""
    return [video, record_file(video), *([sidecar(video, COMPARISON), sheet_file(video)] if compare else [])]


def _whole(video: Path, compare: bool) -> bool:
    return all(path.exists() for path in files_beside(video, compare))


def read_jobs(defaults: Mapping[str, Any], prompts_file: str | os.PathLike[str] | None = None) -> list[Job]:
    """The jobs that a command line asks for, in order: one, or one for each line of a file.

    A line is a prompt, or a JSON object with fields of Job; empty lines don't count. `defaults` are fields for all. The
    videos of a file get their line's number as name, in the folder `out`. Raises DataError or ConfigError.
    """
    if prompts_file is None:
        job = _job(defaults, where="the command line")
        if not (job.references or job.library):
            for name, what in OF_REFERENCES.items():
                if defaults.get(name) is not None:
                    raise ConfigError(f"--{name.replace('_', '-')} {what}, and none is given: add --references")
        return [job if job.out else dataclasses.replace(job, out=str(free_name(job)))]
    folder = Path(defaults.get("out") or SAMPLES)
    if folder.suffix:
        raise ConfigError(f"--out {folder} must be a folder where --prompts-file gives several jobs")
    jobs = []
    for number, line in read_lines(prompts_file, DataError):
        if line.strip():
            where = f"{prompts_file} line {number}"
            jobs.append(_job({**defaults, **_line(line, f"{number:05d}.mp4", folder, where)}, where))
    if not jobs:
        raise DataError(f"prompts file {prompts_file} has no prompts")
    names = Counter(path for job in jobs for path in job.files())
    if twice := next((path for path, count in names.items() if count > 1), None):
        raise DataError(f"two jobs of {prompts_file} would write {twice}: give them different names")
    return jobs


def prepare(jobs: list[Job]) -> list[Job]:
    """Find out before anything is computed what can go wrong, and choose references by verbs from libraries.

    Where another way is asked for, the job keeps its library: `aicl.sampling_library.choose_by_model` comes later.
    Raises VideoError where a job would overwrite a file unasked, or its references or image cannot be read, UserError
    where its files cannot be written, DataError where a library has no reference for a prompt.
    """
    jobs = [job for job in jobs if job.missing()]
    for job in jobs:
        existing = [path for path in job.files() if path.exists()]
        if existing and not (job.overwrite or job.skip_existing):
            raise VideoError(f"{existing[0]} exists already: choose another --out or add --overwrite")
        others = [Path(path) for path in (job.image, job.example) if path]
        for path in (*(each.video for each in job.references), *others):
            if not path.exists():
                raise VideoError(f"{path} does not exist: check the references and the image of '{job.prompt}'")
            if own := next((file for file in existing if file.samefile(path)), None):
                raise VideoError(f"{own} is read by the job that would replace it: choose another --out")
        for path in job.outputs():
            if path.is_dir() and (path.suffix or any(each.suffix != ".png" for each in path.iterdir())):
                raise VideoError(f"{path} is a folder of something else than PNG files: choose another --out")
    from aicl.reference_videos import check_reference  # slow to import, and not needed for the mistakes above
    from lvdm.video import read_image

    if any(job.library for job in jobs):
        from aicl.sampling_library import choose_by_verbs

        jobs = choose_by_verbs(jobs)
    for image in {job.image for job in jobs if job.image}:
        read_image(image)
    for reference in {each.video: each for job in jobs for each in job.references}.values():
        check_reference(reference)
    for job in jobs:
        for path in job.files():
            check_writable(path)
    return jobs


def free_name(job: Job) -> Path:
    """outputs/samples/the-first-words.mp4, or with the first number that is free."""
    words = "-".join(re.findall(r"[a-z0-9]+", job.prompt.lower())[:8])[:80] or "sample"
    names = (f"{words}.mp4" if i == 1 else f"{words}-{i}.mp4" for i in range(1, 10**6))
    candidates = (dataclasses.replace(job, out=str(Path(SAMPLES) / name)) for name in names)
    free = next(c for c in candidates if not any(path.exists() for path in c.files()))
    return Path(str(free.out))


def _job(mapping: Mapping[str, Any], where: str) -> Job:
    """A job from plain values. Raises ConfigError that names `where`."""
    references = mapping.get("references", [])
    if not isinstance(references, list):
        raise ConfigError(f"{where}: references must be a list, got {references!r}")
    read = [
        Reference.of(each, where=f"{where}: reference {number}")
        if isinstance(each, str | Mapping | Reference)
        else each
        for number, each in enumerate(references, start=1)
    ]
    try:
        return configs.from_mapping(Job, {**mapping, "references": read}, where=where)
    except UserError as error:
        raise error if where in str(error) else type(error)(f"{where}: {error}") from error


def _line(line: str, name: str, folder: Path, where: str) -> dict[str, Any]:
    """The fields of a job that a line of a prompts file gives; `name` if it gives none. Raises DataError."""
    own: Any = {"prompt": line.strip()}
    if line.lstrip().startswith("{"):
        own = parse_json(line, where, DataError)
    out = own.get("out") or name
    return {**own, "out": _inside(folder, out, where) if isinstance(out, str) else out}


def _inside(folder: Path, name: str, where: str) -> str:
    """A place in the output folder. Raises DataError for a name that leads out of it: the file may not be ours."""
    check_text(name, f"{where}: out", DataError)
    place, whole = (folder / name).resolve(), folder.resolve()
    if Path(name).is_absolute() or whole not in place.parents:
        raise DataError(f"{where}: out '{name}' is not a name inside the output folder {folder}: choose one that is")
    return str(folder / name)
