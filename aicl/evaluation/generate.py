"""The first stage: videos of rows, each a lossless file that is found again by what it follows from.

    FOLDER/<hash of model and settings>/<hash of the sample>.mkv

So nothing is generated twice: an interrupted run goes on where it stopped, tables share rows, several processes share
the work through the folder, and a changed metric or another evaluator costs no video.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from aicl.evaluation.benchmark import Benchmark, read_as
from aicl.evaluation.lossless import ENDING, write_lossless
from aicl.evaluation.method import Maker, Work
from aicl.evaluation.sample import Clip, Sample
from aicl.evaluation.source import Hashes, Source, reference_captions, sample_key
from aicl.evaluation.time_left import TimeLeft
from aicl.known_actions import known_actions
from aicl.options import Reference
from aicl.pipeline import AICLPipeline
from aicl.reference_videos import read_pixels
from lvdm.errors import CheckpointError, ConfigError, DataError, SamplingError
from lvdm.files import write_json
from lvdm.finite import check_frames
from lvdm.outside import read_object
from lvdm.video import to_frames, to_pixels

_WRITERS = 8  # threads: encoding a batch of small videos takes longer than the wait for the next one
_KEY = 24  # characters of a hash in a name: enough for any number of videos
_INFO = "row.json"
_FAILURE = "failure.json"  # in a row's folder: why its videos were not made, for the processes that made others
_OWN_FAULT = (SamplingError, CheckpointError, ConfigError)  # of a row, where others may well be made


@dataclass(frozen=True)
class Made:
    """A video to be made or found: its file, and what it is of."""

    path: Path
    source: Source
    benchmark: Benchmark
    seed: int
    sample: Sample

    @property
    def place(self) -> tuple[Path, int]:
        """The same for the videos of one row on one benchmark, which are made alike."""
        return self.path.parent, id(self.benchmark)


class VideoStore:
    """A folder of generated videos."""

    def __init__(self, folder: Path, hashes: Hashes | None = None) -> None:
        self.folder, self.hashes = folder, hashes or Hashes()
        self.failures: dict[Path, str] = {}  # folder -> why videos of it could not be made

    def place(self, source: Source) -> Path:
        """The folder of a row's videos. Raises CheckpointError where its model is not there."""
        return self.folder / source.key(self.hashes(source.parts()))[:_KEY]

    def videos(self, source: Source, benchmark: Benchmark, seed: int, samples: Sequence[Sample]) -> list[Made]:
        """Where the videos of these samples are, or will be."""
        folder, with_target = self.place(source), source.takes_target()
        reading = read_as(benchmark)
        keys = [sample_key(source.row, sample, benchmark.content, with_target, reading)[:_KEY] for sample in samples]
        return [Made(folder / f"{key}{ENDING}", source, benchmark, seed, sample) for key, sample in zip(keys, samples)]

    def fill(
        self,
        videos: Sequence[Made],
        device: torch.device,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        say: Callable[[str], None] = print,
    ) -> int:
        """Generate what is missing, or this process's share of it; returns how many videos that was.

        Batches are cut from the full list, by row and seed, so that every process cuts the same ones whatever is there
        by now, and an interrupted run makes the same videos as one that was not. One model is in memory at a time.
        A row that cannot be made, such as one whose numbers are no longer finite, is left, and the others go on:
        `find_failures` says why. `say` gets a sentence about it, about what is missing and how long it takes.
        """
        unique = list({made.path: made for made in reversed(videos)}.values())[::-1]  # the first of the same ones
        batches = list(_batches(unique, batch_size))
        missing = [made for made in unique if not made.path.is_file()]
        mine = [batch for batch in batches[rank::world_size] if not all(made.path.is_file() for made in batch)]
        if rank == 0:
            rows = {made.path.parent for made in missing}
            say(f"generating: {len(missing)} of {len(unique)} videos are missing, in {len(rows)} rows")
        work = sum(not made.path.is_file() for batch in mine for made in batch)
        clock = TimeLeft(work, say if rank == 0 else None, "generating")
        with (
            ThreadPoolExecutor(_WRITERS) as writers,
            tqdm(total=work, unit="video", disable=rank > 0 or not work) as bar,
            RowMaker(unique, device) as maker,
        ):
            pending = list[Future[None]]()
            left: set[tuple[Path, int]] = set()  # rows that cannot be made
            generated = 0
            for batch in mine:
                if all(made.path.is_file() for made in batch):  # by now: another program works in this folder, too
                    continue
                if batch[0].place in left:
                    continue
                source, folder, doing = batch[0].source, batch[0].path.parent, f"seed {batch[0].seed}"
                if rank == 0:
                    clock.row(f"'{source.row.label}', {doing}")
                bar.set_description(f"generating '{source.row.label}' with {source.files.base.name}, {doing}")
                try:
                    pixels, fps = maker.make(batch)
                except _OWN_FAULT as error:
                    left.add(batch[0].place)
                    write_json(folder / _FAILURE, {"why": str(error)})
                    say(f"row '{source.row.label}' cannot be made, the others go on: {error}")
                    continue
                new = [(made, video) for made, video in zip(batch, pixels) if not made.path.is_file()]
                for waiting in pending:  # the batch before: not more than one is kept in memory
                    waiting.result()
                _describe(folder, source, self.hashes)
                pending = [writers.submit(write_lossless, made.path, video, fps) for made, video in new]
                bar.update(len(new))
                clock.done(len(new))
                generated += len(new)
            for waiting in pending:
                waiting.result()
            clock.row(None)
        return generated

    def find_failures(self, videos: Sequence[Made]) -> None:
        """Set `failures`, once every process has come to the end of `fill`: folders that lack videos, and why."""
        self.failures = {}
        for folder in dict.fromkeys(made.path.parent for made in videos):
            note = folder / _FAILURE
            if not note.is_file():
                continue
            if all(made.path.is_file() for made in videos if made.path.parent == folder):
                note.unlink(missing_ok=True)  # of an earlier run; another process may have done it
            else:
                self.failures[folder] = str(read_object(note, DataError)["why"])


class RowMaker:
    """Makes batches of videos. The model of one row at a time is in memory, loaded when the row's first batch comes."""

    def __init__(self, videos: Sequence[Made], device: torch.device) -> None:
        self._videos, self._device = videos, device
        self._row = ExitStack()  # gives the model back as it was before the row
        self._pipeline: AICLPipeline | None = None
        self._loaded: tuple[Any, ...] | None = None  # what `_pipeline` was made of
        self._maker: Maker | None = None
        self._place: tuple[Path, int] | None = None  # of the row that `_maker` makes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._row.__exit__(*raised)

    def make(self, batch: Sequence[Made]) -> tuple[Tensor, float]:
        """The videos of a batch of one row, uint8 (n, t, h, w, 3) on the CPU, and their frames in a second.

        All of it is made, whatever is there already: a batch of another size would round otherwise. Where this raises
        an error, the model is given up, in whatever state it is.
        """
        source, benchmark = batch[0].source, batch[0].benchmark
        try:
            pipeline, maker = self._start(batch[0])
            pixels = maker([made.sample for made in batch])
        except _OWN_FAULT:
            self._row.close()
            self._place = self._pipeline = self._maker = self._loaded = None
            raise
        coded = source.row.kind == "autoencoder"  # clips as they are compared, at that rate
        return pixels, benchmark.fps if coded else pipeline.defaults.save_fps

    def _start(self, first: Made) -> tuple[AICLPipeline, Maker]:
        """The model of this video's row, and what makes the row: those at hand where the row has begun."""
        if self._place != first.place:
            self._row.close()
            self._place = None
            pipeline = self._load(first.source)
            samples = [made.sample for made in self._videos if made.path.parent == first.path.parent]
            row = making(pipeline, first.source, first.benchmark, samples, first.path.parent)
            self._maker = self._row.enter_context(row)
            self._place = first.place
        assert self._pipeline is not None and self._maker is not None
        return self._pipeline, self._maker

    def _load(self, source: Source) -> AICLPipeline:
        """The model of a row: the one in memory where it is the same, else that one is given up first."""
        made_of = (source.parts(), source.dtype, source.compile, source.row.quantization)
        if self._pipeline is None or self._loaded != made_of:
            self._pipeline = self._maker = self._loaded = None
            self._pipeline, self._loaded = source.load(self._device), made_of
        return self._pipeline


@contextmanager
def making(
    pipeline: AICLPipeline, source: Source, benchmark: Benchmark, samples: Sequence[Sample], folder: Path
) -> Iterator[Maker]:
    """What makes the videos of a row; `samples` are all of it, `folder` is where its videos are."""
    if source.method is None:
        yield partial(make, pipeline, source, benchmark)
        return
    row = source.row
    work = Work(
        pipeline,
        benchmark,
        samples,
        shown=row.shown,
        captions=partial(reference_captions, row),
        folder=folder,
        adapter=source.parts().get("adapter"),
        guidance_scale=row.guidance_scale,
        num_inference_steps=row.num_inference_steps,
    )
    with source.method.start(work) as maker:
        yield maker


@torch.no_grad()
def make(pipeline: AICLPipeline, source: Source, benchmark: Benchmark, samples: Sequence[Sample]) -> Tensor:
    """The videos of samples, uint8 (n, t, h, w, 3) on the CPU, at the model's own size and length.

    Raises ConfigError where the benchmark lacks what the row shows.
    """
    row, base = source.row, pipeline.base
    targets = [sample.target for sample in samples if sample.target is not None]
    if (row.kind == "autoencoder" or base.takes_image) and len(targets) < len(samples):
        raise ConfigError(f"row '{row.label}' needs a real clip of every sample, which {benchmark} does not have")
    if row.kind == "autoencoder":
        pixels, _ = benchmark.load(targets)
        return to_pixels(check_frames(base.components.codec.reconstruct(to_frames(pixels).to(base.device)))).cpu()
    images = [video[0] for video in shown_pixels(pipeline, benchmark, targets)] if base.takes_image else None
    if row.reference_guard is None:
        return _generate(pipeline, source, benchmark, samples, images, references=row.references)
    known = known_actions(pipeline, [sample.prompt for sample in samples], image=images)
    needless = [each.is_known(row.reference_guard) for each in known]
    made: list[Tensor] = [torch.empty(0)] * len(samples)
    for left_out in (False, True):
        places = [i for i, each in enumerate(needless) if each is left_out]
        if places:
            some, first = [samples[i] for i in places], None if images is None else [images[i] for i in places]
            videos = _generate(pipeline, source, benchmark, some, first, references=0 if left_out else row.references)
            for i, video in zip(places, videos):
                made[i] = video
    return torch.stack(made)


def _generate(
    pipeline: AICLPipeline,
    source: Source,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    images: list[Tensor] | None,
    references: int,
) -> Tensor:
    """Videos with the row's references or with none (0), at the guidance that the model has with or without.

    images: the first frames, uint8 (h, w, 3) each, of an image-to-video model alone.
    """
    row, base = source.row, pipeline.base
    options: dict[str, Any] = {}
    guidance_scale = source.guidance_scale
    if row.references and not references:
        guidance_scale = base.config.defaults.guidance_scale if row.guidance_scale is None else row.guidance_scale
    if references:
        if any(len(row.shown(sample)) < row.references for sample in samples):
            kind = "references of another action" if row.wrong else "references"
            raise ConfigError(f"row '{row.label}' shows {row.references} {kind}, of which {benchmark} has fewer")
        clips = [clip for sample in samples for clip in row.shown(sample)]
        shown = benchmark.shown(clips)
        captions: list[str | None] = [None] * len(shown)  # the prompt
        if row.reference_captions != "prompt":
            captions = [text for sample in samples for text in reference_captions(row, sample)]
        given = [Reference(video, text) for video, text in zip(shown, captions)]
        options["references"] = [given[i : i + row.references] for i in range(0, len(given), row.references)]
        options |= {"reference_guidance_scale": row.reference_guidance_scale, "scale": row.scale}
        options["first_reference_until"] = source.first_reference_until
    return pipeline(
        [sample.prompt for sample in samples],
        image=images,
        seed=[sample.seed for sample in samples],
        num_inference_steps=row.num_inference_steps,
        guidance_scale=guidance_scale,
        step_cache=row.step_cache,
        progress=False,
        **options,
    ).cpu()


def shown_pixels(pipeline: AICLPipeline, benchmark: Benchmark, clips: Sequence[Clip]) -> list[Tensor]:
    """Clips as the model sees them as references, uint8 (t, h, w, 3) each."""
    defaults = pipeline.defaults
    size = (defaults.height, defaults.width)
    videos = [Reference(video) for video in benchmark.shown(clips)]
    return [read_pixels(video, defaults.num_frames, size, defaults.save_fps).cpu() for video in videos]


def _batches(videos: Sequence[Made], size: int) -> Iterator[list[Made]]:
    """By model, so that each is loaded once; a batch is of one row and one seed of one benchmark."""
    groups: dict[tuple[Path, int, int], list[Made]] = {}
    for made in videos:
        groups.setdefault((made.path.parent, id(made.benchmark), made.seed), []).append(made)
    for group in sorted(groups.values(), key=lambda group: str([*group[0].source.parts().values()])):
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _describe(folder: Path, source: Source, hashes: Hashes) -> None:
    """Say in the row's folder, for people, what its videos are of."""
    if not (folder / _INFO).is_file():
        parts = source.parts()
        files = {name: {"path": str(path), "sha256": hashes(parts)[name]} for name, path in parts.items()}
        write_json(folder / _INFO, {"label": source.row.label, "settings": source.settings(), "model": files})
