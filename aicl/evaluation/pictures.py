"""The pictures of a preset: samples, features of the UNet (Fig. 4) and of the prism, attention to words (Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from aicl.evaluation.figures import attention_sheet, feature_sheet, generated_feature_sheet, sample_sheet, sample_video
from aicl.evaluation.generate import shown_pixels
from aicl.evaluation.presets import PictureSpec
from aicl.evaluation.row import Row
from aicl.evaluation.sample import Sample
from aicl.evaluation.table_run import TableRun
from aicl.pipeline import AICLPipeline
from lvdm.bases.config import DiffusersConfig
from lvdm.errors import ConfigError
from lvdm.files import atomic_path
from lvdm.video import write_video

ANIMATED, SHEET_BATCH = 4, 10  # samples in an animation; videos made at once for a sheet


def draw(run: TableRun, spec: PictureSpec, out: Path, name: str) -> list[Path]:
    """Draw a kind of picture as NAME-KIND.png or NAME-KIND-SAMPLE.png; returns the files.

    Raises CheckpointError for a model or adapter that is not there, ConfigError for an image-to-video model.
    """
    row = Row("picture", model=spec.model, adapter=spec.adapter, references=spec.references)
    source = run.source(row)
    assert source is not None
    source.check(run.benchmark.size)
    if spec.kind == "attention" and isinstance(source.config, DiffusersConfig):
        raise ConfigError(f"'{spec.model}' is a model of diffusers: pictures of attention are of this library's own")
    pipe = source.load(run.device)
    if pipe.base.takes_image:
        raise ConfigError(f"'{spec.model}' is an image-to-video model: pictures are of text-to-video ones")
    samples = run.benchmark.samples(0, 0, spec.samples)
    shown = [shown_pixels(pipe, run.benchmark, row.shown(sample)) for sample in samples]
    if spec.kind == "samples":
        return _draw_samples(out / f"{name}-samples", pipe, samples, shown)
    written = []
    for index, sample in enumerate(samples):
        if spec.kind == "features":
            sheet = generated_feature_sheet(pipe, sample.prompt, shown[index], seed=sample.seed)
        elif spec.kind == "motion_features":
            words = sample.words or sample.prompt
            labels = [f"{words}, reference {number}" for number in range(1, spec.references + 1)]
            sheet = feature_sheet(pipe, shown[index], [sample.prompt] * spec.references, labels)
        else:
            words = sample.words or sample.prompt
            sheet = attention_sheet(pipe, sample.prompt, words, shown[index], seed=sample.seed)
        written.append(out / f"{name}-{spec.kind}-{index}.png")
        with atomic_path(written[-1]) as temporary:
            sheet.save(temporary)
    return written


def _draw_samples(
    path: Path, pipe: AICLPipeline, samples: Sequence[Sample], shown: Sequence[Sequence[Tensor]]
) -> list[Path]:
    """Write PATH.png and, of the first samples, PATH.gif: the first reference, the base model and AICL."""
    base: list[Tensor] = []
    ours: list[Tensor] = []
    for start in tqdm(range(0, len(samples), SHEET_BATCH), desc="sampling", unit="batch"):
        part = samples[start : start + SHEET_BATCH]
        prompts, seeds = [sample.prompt for sample in part], [sample.seed for sample in part]
        base += pipe(prompts, seed=seeds, progress=False).cpu()
        references = [list(clips) for clips in shown[start : start + SHEET_BATCH]]
        ours += pipe(prompts, references=references, seed=seeds, progress=False).cpu()
    rows = [[clips[0], without, with_] for clips, without, with_ in zip(shown, base, ours)]
    names = [sample.words or sample.label or "" for sample in samples]
    labels = [[f"reference: {name}", "base model", "AICL"] for name in names]
    sheet = path.with_suffix(".png")
    with atomic_path(sheet) as temporary:
        sample_sheet(rows, labels, [sample.prompt for sample in samples]).save(temporary)
    video = sample_video(rows[:ANIMATED], [[name, "base model", "AICL"] for name in names[:ANIMATED]])
    fps = pipe.defaults.save_fps
    return [sheet, Path(write_video(path.with_suffix(".gif"), video, fps, overwrite=True))]
