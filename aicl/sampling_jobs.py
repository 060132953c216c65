"""What aicl sample does for each prompt: find references, generate, write the videos and a record of them."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from aicl.pipeline import AICLPipeline, check_reference, is_encoded_file
from aicl.reference_retrieval import Library, load_library
from aicl.sidecar_files import COMPARISON, companion
from lvdm import config as configs
from lvdm.errors import ConfigError, DataError, VideoError
from lvdm.files import atomic_path, write_json
from lvdm.video import contact_sheet, side_by_side, to_pixels, write_video


@dataclass
class Job:
    """One prompt and how to sample it; None is the model's default. A line of a prompts file may set any field.

    refs: videos or files of encoded references. library: an index of videos to take `num_refs` references from, by the
    action of the prompt. ref_captions: one for all or one each; empty is the prompt. size: "WIDTHxHEIGHT" in pixels.
    num_samples videos have the seeds seed, seed + 1, ...; `batch` of them are made at once.
    out: a .mp4, a .gif, or, without an ending, a folder of frames; several samples get their seed appended.
    compare: also write reference | base | AICL, as one video and as a PNG of their frames.
    skip_existing: leave out a job whose files all exist.
    chosen: which videos of the library were taken and why, filled in by `prepare`.
    """

    prompt: str
    refs: list[str] = field(default_factory=list)
    ref_captions: list[str] = field(default_factory=list)
    ref_weights: list[float] = field(default_factory=list)
    ref_fps: float | None = None
    library: str | None = None
    num_refs: int = 1
    image: str | None = None
    negative_prompt: str | None = None
    num_frames: int | None = None
    size: str | None = None
    fps: int | None = None
    steps: int | None = None
    sampler: str = "ddim"
    eta: float | None = None
    guidance: float | None = None
    ref_guidance: float | None = None
    scale: float = 1.0
    lead: float | None = None
    seed: int = 0
    num_samples: int = 1
    batch: int = 1
    out: str | None = None
    compare: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    chosen: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty: describe the video in a sentence")
        if self.refs and self.library:
            raise ConfigError("give either references or a library to choose them from, not both")
        if self.num_refs != 1 and not (self.library or self.chosen):
            raise ConfigError("num_refs says how many references to take from a library: name one, or leave it out")
        configs.check_at_least(self, 1, ("num_refs", "num_samples", "batch", "num_frames", "steps", "fps"))
        configs.check_at_least(self, 0, ("seed",))
        if self.ref_fps is not None and not self.ref_fps > 0:
            raise ConfigError(f"ref_fps is {self.ref_fps}: a frame rate must be positive")
        if self.out and Path(self.out).suffix.lower() not in (".mp4", ".gif", ""):
            raise ConfigError(f"out {self.out} must end in .mp4, .gif, or nothing for a folder of frames")
        self.pixels()

    def pixels(self) -> tuple[int, int] | None:
        """(height, width) in pixels."""
        if self.size is None:
            return None
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", self.size)
        if not match:
            raise ConfigError(f"size '{self.size}' must be written as WIDTHxHEIGHT, such as 512x320")
        return int(match[2]), int(match[1])

    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_samples))

    def outputs(self) -> list[Path]:
        """The video file, or frame folder, of each sample."""
        path = Path(self.out)
        if self.num_samples == 1:
            return [path]
        return [path.with_name(f"{path.stem}-seed{seed}{path.suffix}") for seed in self.seeds()]

    def files(self) -> list[Path]:
        """Everything that the job writes."""
        extra = [_compared, _sheet] if self.compare else []
        return [place(path) for path in self.outputs() for place in (lambda p: p, _record, *extra)]


def read_jobs(defaults: Mapping[str, Any], prompts_file: str | os.PathLike | None = None) -> list[Job]:
    """The jobs that a command line asks for, in order: one, or one for each line of a file.

    A line is a prompt, or a JSON object with fields of Job; empty lines don't count. `defaults` are fields for all. The
    videos of a file get their line's number as name, in the folder `out`. Raises DataError or ConfigError.
    """
    if prompts_file is None:
        job = configs.from_mapping(Job, defaults, where="the command line")
        return [job if job.out else dataclasses.replace(job, out=str(_free_name(job)))]
    try:
        lines = Path(prompts_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts file {prompts_file} cannot be read: {error}") from error
    jobs, folder = [], Path(defaults.get("out") or "samples")
    if folder.suffix:
        raise ConfigError(f"--out {folder} must be a folder where --prompts-file gives several jobs")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{prompts_file} line {number}"
        own: dict[str, Any] = {"prompt": line.strip()}
        if line.lstrip().startswith("{"):
            try:
                own = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where} is not valid JSON: {error}") from error
        name = own.get("out") or f"{number:05d}.mp4"
        own["out"] = str(folder / name) if isinstance(name, str) else name
        jobs.append(configs.from_mapping(Job, {**defaults, **own}, where=where))
    if not jobs:
        raise DataError(f"prompts file {prompts_file} has no prompts")
    names = Counter(path for job in jobs for path in job.files())
    if twice := next((path for path, count in names.items() if count > 1), None):
        raise DataError(f"two jobs of {prompts_file} would write {twice}: give them different names")
    return jobs


def prepare(jobs: list[Job]) -> list[Job]:
    """Find out before anything is computed what can go wrong, and choose references from libraries, saying which.

    Raises VideoError where a job would overwrite a file unasked or a reference cannot be read, DataError where a
    library has no reference for a prompt.
    """
    jobs = [job for job in jobs if not (job.skip_existing and all(path.exists() for path in job.files()))]
    for job in jobs:
        existing = [path for path in job.files() if path.exists()]
        if existing and not (job.overwrite or job.skip_existing):
            raise VideoError(f"{existing[0]} exists already: choose another --out or add --overwrite")
        for path in (*job.refs, *([job.image] if job.image else [])):
            if not Path(path).exists():
                raise VideoError(f"{path} does not exist: check the references and the image of '{job.prompt}'")
    libraries = {path: load_library(path) for path in {job.library for job in jobs if job.library}}
    jobs = [_choose(job, libraries[job.library]) if job.library else job for job in jobs]
    for path in dict.fromkeys(ref for job in jobs for ref in job.refs if not is_encoded_file(ref)):
        check_reference(path)
    return jobs


def _choose(job: Job, library: Library) -> Job:
    chosen = library.select(job.prompt, job.num_refs, job.seed)
    rows = [{"video": str(path), "caption": caption, "shares": action} for path, caption, action in chosen]
    for row in rows:
        print(f"reference {row['video']} ('{row['caption']}') shares '{row['shares']}' with '{job.prompt}'")
    captions = job.ref_captions or [row["caption"] for row in rows]
    return dataclasses.replace(
        job, library=None, refs=[row["video"] for row in rows], ref_captions=captions, chosen=rows
    )


def run_job(pipe: AICLPipeline, job: Job) -> list[Path]:
    """Generate a job's videos, write them, their records and comparisons; returns the video files.

    Says first what it uses.
    """
    defaults = pipe.base.config.defaults
    frames = defaults.num_frames if job.num_frames is None else job.num_frames
    size = job.pixels() or tuple(defaults.size)
    common = {
        "image": job.image,
        "num_frames": frames,
        "size": size,
        "fps": job.fps,
        "steps": job.steps,
        "guidance": job.guidance,
        "sampler": job.sampler,
        "eta": job.eta,
        "negative_prompt": job.negative_prompt,
    }
    chosen = {name: getattr(job, name) for name in ("steps", "guidance", "negative_prompt")}
    if job.sampler == "ddim":
        chosen["eta"] = job.eta
    lead = pipe.lead if job.lead is None else job.lead
    chosen = {name: getattr(defaults, name) if value is None else value for name, value in chosen.items()}
    print(f"'{job.prompt}', {frames} frames of {size[1]}x{size[0]}, {chosen['steps']} steps of {job.sampler}, ", end="")
    print(f"guidance {chosen['guidance']}, seed {job.seed}, {_references(job, lead)}")
    outputs, seeds = job.outputs(), job.seeds()
    for start in range(0, len(seeds), job.batch):
        part = seeds[start : start + job.batch]
        prompts = [job.prompt] * len(part)
        ours = pipe(
            prompts,
            references=job.refs,
            reference_captions=job.ref_captions or None,
            reference_fps=job.ref_fps,
            weights=job.ref_weights or None,
            scale=job.scale,
            lead=job.lead,
            reference_guidance=job.ref_guidance,
            seed=part,
            **common,
        )
        timings = {name: round(seconds, 4) for name, seconds in pipe.timings.items()}
        base = pipe.base(prompts, seed=part, **common) if job.compare else [None] * len(part)
        for path, seed, video, plain in zip(outputs[start:], part, ours, base):
            write_video(path, video, defaults.save_fps, overwrite=True)
            if job.compare:
                shown, labels = _compared_videos(pipe, job, plain, video, frames, size)
                write_video(_compared(path), side_by_side(shown, labels), defaults.save_fps, overwrite=True)
                with atomic_path(_sheet(path)) as temporary:
                    contact_sheet(shown, labels).save(temporary)
            own = {"num_frames": frames, "size": f"{size[1]}x{size[0]}", "seed": seed, "num_samples": 1}
            own["lead"] = lead if job.refs else None
            used = chosen | own | {"out": str(path)}
            record = {"job": dataclasses.asdict(job) | used, "model": _describe(pipe), "seconds": timings}
            write_json(_record(path), record)
    return outputs


def _references(job: Job, lead: float) -> str:
    if not job.refs:
        return "no references"
    names = ", ".join(Path(ref).name for ref in job.refs)
    leading = f", the first leading for {lead:.0%} of the noise" if len(job.refs) > 1 and lead else ""
    return f"reference{'s' if len(job.refs) > 1 else ''} {names} at scale {job.scale}{leading}"


def _compared_videos(
    pipe: AICLPipeline, job: Job, base: Tensor, ours: Tensor, frames: int, size: tuple[int, int]
) -> tuple[list[Tensor], list[str]]:
    """The references that are videos, the base model's video and ours, and what they are called."""
    fps = job.ref_fps or pipe.base.config.defaults.save_fps
    videos = [ref for ref in job.refs if not is_encoded_file(ref)]
    shown = [to_pixels(pipe.read_clip(video, frames, size, fps)) for video in videos]
    return [*shown, base, ours], [*["reference"] * len(shown), "base", "AICL"]


def _describe(pipe: AICLPipeline) -> dict[str, Any]:
    about: dict[str, Any] = {"family": pipe.base.config.family, "dtype": str(pipe.base.components.unet.dtype)}
    about["device"] = str(pipe.base.device)
    if pipe.info is not None:
        about["adapter"] = {"step": pipe.info.step, "library": pipe.info.library, **pipe.info.notes}
    return about


def _record(path: Path) -> Path:
    return path.with_name(path.stem + ".json")


def _compared(path: Path) -> Path:
    return companion(path, COMPARISON)


def _sheet(path: Path) -> Path:
    return path.with_name(f"{path.stem}-compare.png")


def _free_name(job: Job) -> Path:
    """samples/the-first-words.mp4, or with the first number that is free."""
    words = "-".join(re.findall(r"[a-z0-9]+", job.prompt.lower())[:8]) or "sample"
    names = (f"{words}.mp4" if i == 1 else f"{words}-{i}.mp4" for i in range(1, 10**6))
    candidates = (dataclasses.replace(job, out=str(Path("samples") / name)) for name in names)
    return next(Path(c.out) for c in candidates if not any(path.exists() for path in c.files()))
