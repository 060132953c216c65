"""Rows of references -> R (eq. 4-6): the videos among them are read, encoded and seen by the prism, each once."""

from pathlib import Path

import torch
from torch import Tensor

from aicl.action_prism import ActionPrism
from aicl.adapter import Fingerprint
from aicl.clock import Clock
from aicl.motion_features import MotionFeatures, concatenate
from aicl.options import Reference
from aicl.reference_videos import captioned, read_clip, reference_key, stacked
from lvdm.errors import CheckpointError, ConfigError
from lvdm.pipeline import VideoPipeline


def is_features(reference: Reference) -> bool:
    """Whether a reference is R already, and no video."""
    return isinstance(reference.video, MotionFeatures)


def weights_and_spans(rows: list[list[Reference]]) -> list[tuple[float, float, float]]:
    """(weight, start, end) of each reference of a row; what is said of a file of several is said of each of them.

    Raises ConfigError where rows differ.
    """
    told = [(each.weight, each.start, each.end) for each in rows[0]]
    if any([(each.weight, each.start, each.end) for each in row] != told for row in rows):
        raise ConfigError(
            "the weights of references must be the same for all prompts, and so must be when they are read"
        )
    counts = [len(each.video.frames) if is_features(each) else 1 for each in rows[0]]
    return [each for each, count in zip(told, counts) for _ in range(count)]


def encode_rows(
    base: VideoPipeline,
    prism: ActionPrism,
    rows: list[list[Reference]],
    prompts: list[str],
    num_frames: int,
    size: tuple[int, int],
    fps: float,
    clock: Clock,
) -> tuple[MotionFeatures, list[Tensor | None]]:
    """R of rows of references, and of each reference its latents (rows, c, t, h, w), None for motion features.

    Those that are motion features already are taken as they are, the videos go through the prism.
    rows: one for all prompts or one each; a reference without a caption gets its prompt. num_frames, size (h, w) in
    pixels, fps (1/s): of the clip that a video becomes. Raises ConfigError for rows that do not go together,
    CheckpointError for features of another prism.
    """
    rows = captioned(rows, prompts)
    given = [is_features(reference) for reference in rows[0]]
    if any([is_features(reference) for reference in row] != given for row in rows):
        raise ConfigError("every prompt needs videos and motion features at the same places among its references")
    places: list[tuple[MotionFeatures, Tensor | None]] = []  # of a video, or of a file with one or more references
    if not all(given):
        videos = [[each for each, known in zip(row, given) if not known] for row in rows]
        encoded, latents = _encode(base, prism, videos, num_frames, size, fps, clock)
        places = list(zip(encoded.split(), latents.unbind(1)))
    for place in (number for number, known in enumerate(given) if known):
        places.insert(place, (stacked([row[place].video for row in rows]), None))
    if not all(column.prism.matches(Fingerprint.of(prism)) for column, _ in places):
        raise CheckpointError("these references were encoded with another adapter: encode their videos again")
    return concatenate([column for column, _ in places]), [z for column, z in places for _ in column.frames]


def _encode(
    base: VideoPipeline,
    prism: ActionPrism,
    rows: list[list[Reference]],
    num_frames: int,
    size: tuple[int, int],
    fps: float,
    clock: Clock,
) -> tuple[MotionFeatures, Tensor]:
    """R of rows of captioned videos, in one call of the prism, and their latents (rows, videos, c, t, h, w).

    Each different video is read and encoded once.
    """
    everything = [reference for row in rows for reference in row]
    different = {reference_key(reference)[0]: reference for reference in everything}
    clips = {video: read_clip(reference, num_frames, size, fps) for video, reference in different.items()}
    pixels = torch.stack(list(clips.values())).to(base.device)  # (videos, 3, t, h, w)
    base.bring(base.components.codec)
    latents = base.components.codec.posterior(pixels).mode()  # (videos, c, t, h/f, w/f)
    captions = [str(reference.caption) for reference in everything]
    context = base.encode_prompt(captions)  # (b * k, tokens, d)
    order = [list(clips).index(reference_key(reference)[0]) for reference in everything]
    if base.takes_image:  # AP gets the condition of the base model: text and first frame
        image = base.encode_image(pixels[:, :, 0])
        context = torch.cat([context, image[order].to(context.dtype)], dim=1)
    clock.lap("references")
    shape = (len(rows), len(rows[0]))
    base.bring(prism)
    latents = latents[order].unflatten(0, shape)
    features = prism(latents, context.unflatten(0, shape))
    clock.lap("prism")
    sources = [str(each.video) if isinstance(each.video, Path) else "pixels" for each in rows[0]]
    return MotionFeatures(features, (num_frames,) * shape[1], Fingerprint.of(prism), sources), latents
