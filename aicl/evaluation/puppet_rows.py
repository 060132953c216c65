"""Rows of the puppet world's tables, made and measured on one device without a file in between.

Prompts and references are drawn as numbers, references rendered, videos generated in large batches, and the evaluators
look at them where they lie. What remains of a video is a few hundred numbers.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from aicl.evaluation.accuracy import puppet_verdict
from aicl.evaluation.clip_scores import PuppetCLIPScorer, clip_consistency, frame_consistency
from aicl.evaluation.folders import MANIFEST
from aicl.evaluation.motion import dynamic_degree, motion_histogram, motion_similarity, video_flow
from aicl.evaluation.puppet_set import MAX_REFERENCES, PuppetData, Samples, draw_samples
from aicl.evaluation.weights import file_hash
from aicl.options import Reference
from aicl.pipeline import AICLPipeline
from aicl.puppets.actions import ACTIONS
from aicl.puppets.classifier import PuppetClassifier
from aicl.puppets.data import FPS
from aicl.puppets.evaluators import load_evaluator
from aicl.puppets.programs import program_bank
from aicl.puppets.renderer import render
from aicl.puppets.scene_parameters import looks
from aicl.sidecar_files import REFERENCE, companion
from lvdm.checkpoints import find_export
from lvdm.errors import ConfigError
from lvdm.video import to_frames, to_pixels, write_video

Kind = Literal["generated", "real", "autoencoder"]
Measured = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One row of a table: where its videos come from.

    kind: "real" are clips that do what the prompt says, "autoencoder" the same after encoding and decoding, which no
    model can beat. references: how many are shown; `wrong` ones do another action. reference_captions: the prompt,
    their own with looks, or the action alone ("bare"). guidance, reference_guidance, lead, steps: None is the model's
    own.
    model, adapter: of this row, where they are not the preset's. missing: why this row cannot be run yet.
    group: (i, n) keeps the i-th of n equal groups, by how much the references move, from slow (0) to fast.
    """

    label: str
    kind: Kind = "generated"
    references: int = 0
    wrong: bool = False
    reference_captions: Literal["prompt", "own", "bare"] = "prompt"
    guidance: float | None = None
    reference_guidance: float | None = None
    scale: float = 1.0
    lead: float | None = None
    steps: int | None = None
    model: str | None = None
    adapter: str | None = None
    missing: str | None = None
    group: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.references <= MAX_REFERENCES:
            raise ConfigError(f"row '{self.label}': references must be 0 to {MAX_REFERENCES}, got {self.references}")
        if self.wrong and self.references == 0:
            raise ConfigError(f"row '{self.label}': a wrong reference needs references, got 0")
        if self.group is not None and not 0 <= self.group[0] < self.group[1]:
            raise ConfigError(f"row '{self.label}': group {list(self.group)} must be [i, n] with 0 <= i < n")


class Evaluators:
    """The networks that measure, on one device: the classifier, and the small CLIP where its folder is given.

    A folder is that of the weights, or of the training run that made them. Raises CheckpointError for missing ones.
    """

    def __init__(self, classifier: str | os.PathLike, clip: str | os.PathLike | None, device: torch.device) -> None:
        self.device = device
        folder = find_export(os.fspath(classifier), "classifier.safetensors")
        self.classifier: PuppetClassifier = load_evaluator(folder, "classifier", device)
        self.hashes = {"classifier": file_hash(folder / "classifier.safetensors")}
        self.clip = None
        if clip is not None:
            folder = find_export(os.fspath(clip), "clip.safetensors")
            self.hashes["clip"] = file_hash(folder / "clip.safetensors")
            self.clip = PuppetCLIPScorer(load_evaluator(folder, "clip", device), self.hashes["clip"])
        self._bank = tuple(tensor.to(device) for tensor in program_bank(0, 0))

    @property
    def size(self) -> int:
        """Height and width of the videos that can be measured."""
        return self.classifier.config.size

    @property
    def frames(self) -> int:
        """Their number of frames."""
        return self.classifier.config.frames

    def render(self, performances: Tensor) -> Tensor:
        """Performances (n, FIELDS) -> frames (n, 3, t, h, w) in [-1, 1] with 8-bit values, like a file."""
        frames = render(performances.to(self.device), self._bank, self.size, self.frames)
        return to_frames(to_pixels(frames))

    @torch.no_grad()
    def measure(self, frames: Tensor, references: Tensor, others: Tensor, prompts: Sequence[str]) -> Measured:
        """What tables need to know of videos (n, 3, t, h, w) with these prompts, on the CPU.

        Their motion is compared with that of `references` and of `others`, one clip a video, all of one shape.
        """
        prediction = puppet_verdict(self.classifier, frames)
        flow, reference_flow, other_flow = (video_flow(clips) for clips in (frames, references, others))
        motion = motion_histogram(flow)
        measured = {
            "action_logits": prediction.action,
            "looks_logits": prediction.looks,
            "features": prediction.features,
            "dynamics": dynamic_degree(flow),
            "reference_dynamics": dynamic_degree(reference_flow),
            "motion": motion_similarity(motion, motion_histogram(reference_flow)),
            "motion_other": motion_similarity(motion, motion_histogram(other_flow)),
        }
        if self.clip is not None:
            frame_features = self.clip.encode_frames(frames)
            measured["cc"] = clip_consistency(self.clip.encode_text(prompts), frame_features)
            measured["fc"] = frame_consistency(frame_features)
            measured["fc_all"] = frame_consistency(frame_features, "all")
        return {name: value.float().cpu() for name, value in measured.items()}


def measure_row(
    row: Row,
    data: PuppetData,
    seed: int,
    count: int,
    evaluators: Evaluators,
    pipeline: AICLPipeline | None = None,
    batch_size: int = 128,
    save_videos: Path | None = None,
) -> Measured:
    """Make and measure samples 0 to count - 1 of a seed. Real rows need no pipeline, those "autoencoder" its codec.

    Returns, beside what `Evaluators.measure` tells, the truth: actions, looks, shown_actions and shown_looks
    (n, 3 references, 3), -1 for absent ones. Rows without references are compared with the first that others show:
    what they have in common with it is chance. Motion is also compared with a clip of the other of the two actions,
    the right and the wrong one. `save_videos`: a folder for mp4 files, the references that they are compared with, and
    their manifest.jsonl (file, caption, label, reference, seed).
    """
    parts = []
    for start in range(0, count, batch_size):
        samples = draw_samples(data, seed, start, min(start + batch_size, count))
        shown, other = (samples.wrong, samples.references) if row.wrong else (samples.references, samples.wrong)
        shown = shown[:, : max(row.references, 1)]
        references = evaluators.render(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])  # (n, k, 3, t, h, w)
        frames = _videos(row, samples, shown, references, evaluators, pipeline)
        if save_videos is not None:
            _save(save_videos, start, to_pixels(frames).cpu(), to_pixels(references[:, 0]).cpu(), samples)
        others = evaluators.render(other[:, 0])
        measured = evaluators.measure(frames, references[:, 0], others, samples.prompts)
        parts.append(measured | _truth(row, samples, shown))
    return joined(parts)


def joined(parts: Sequence[Measured]) -> Measured:
    """Measurements of several batches or seeds as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _videos(
    row: Row,
    samples: Samples,
    shown: Tensor,
    references: Tensor,
    evaluators: Evaluators,
    pipeline: AICLPipeline | None,
) -> Tensor:
    """The videos of a batch, frames (n, 3, t, h, w) in [-1, 1] with 8-bit values, on the evaluators' device."""
    if row.kind == "real":
        return evaluators.render(samples.targets)
    if row.kind == "autoencoder":
        codec = pipeline.base.components.codec
        frames = codec.decode(codec.posterior(evaluators.render(samples.targets)).mode())
        return to_frames(to_pixels(frames))
    options = {}
    if row.references:
        videos = to_pixels(references)
        captions = [[None] * videos.shape[1]] * len(videos)
        if row.reference_captions != "prompt":
            captions = samples.reference_captions(shown, row.reference_captions)
        options["references"] = [list(map(Reference, *pair)) for pair in zip(videos, captions)]
        options |= {"reference_guidance_scale": row.reference_guidance, "first_reference_until": row.lead}
        options["scale"] = row.scale
    pixels = pipeline(
        samples.prompts,
        seed=samples.noise_seeds,
        height=evaluators.size,
        width=evaluators.size,
        num_frames=evaluators.frames,
        num_inference_steps=row.steps,
        guidance_scale=row.guidance,
        progress=False,
        **options,
    )
    return to_frames(pixels.to(evaluators.device))


def _save(folder: Path, start: int, videos: Tensor, references: Tensor, samples: Samples) -> None:
    """Write videos and a reference of each, uint8 (n, t, h, w, 3), numbered from `start`; append to the manifest."""
    lines, fps = [], FPS * videos.shape[1] / 16
    for index, prompt in enumerate(samples.prompts):
        path = folder / f"{start + index:05d}.mp4"
        reference = companion(path, REFERENCE)
        write_video(path, videos[index], fps=fps, overwrite=True)
        write_video(reference, references[index], fps=fps, overwrite=True)
        label, seed = ACTIONS[samples.actions[index]].name, samples.noise_seeds[index]
        entry = {"file": path.name, "caption": prompt, "label": label, "reference": reference.name, "seed": seed}
        lines.append(json.dumps(entry) + "\n")
    with open(folder / MANIFEST, "a" if start else "w", encoding="utf-8") as manifest:
        manifest.writelines(lines)


def _truth(row: Row, samples: Samples, shown: Tensor) -> Measured:
    shown_looks = torch.full((len(shown), MAX_REFERENCES, 3), -1)
    shown_looks[:, : shown.shape[1]] = looks(shown)
    shown_actions = samples.wrong_actions if row.wrong else samples.actions
    return {
        "actions": samples.actions,
        "looks": samples.looks,
        "shown_actions": shown_actions,
        "shown_looks": shown_looks,
    }
