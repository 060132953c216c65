"""Rows of references -> R (eq. 4-6): the videos among them are read, encoded and seen by the prism, each once."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from aicl.clock import Clock
from aicl.motion_features import MotionFeatures, concatenate
from aicl.options import Reference
from aicl.reference_encoder import ReferenceEncoder
from aicl.reference_videos import captioned, stacked
from lvdm.errors import CheckpointError, ConfigError, VideoError

Item = TypeVar("Item")
Made = TypeVar("Made")


def is_features(reference: Reference) -> bool:
    """Whether a reference is R already, and no video."""
    return isinstance(reference.video, MotionFeatures)


def weights_and_spans(rows: list[list[Reference]]) -> list[tuple[float, float, float]]:
    """(weight, start, end) of each reference of a row; what is said of a file of several is said of each of them.

    Raises ConfigError where rows differ.
    """
    told = [(each.weight, each.start, each.end) for each in rows[0]]
    if any([(each.weight, each.start, each.end) for each in row] != told for row in rows):
        raise ConfigError("the weights of references must be the same for all prompts, and when they are read")
    counts = [len(each.video.frames) if is_features(each) else 1 for each in rows[0]]
    return [each for each, count in zip(told, counts) for _ in range(count)]


def first_alone(told: Sequence[tuple[float, float, float]], until: float) -> list[tuple[float, float, float]]:
    """(weight, start, end) of references of which the first, of those that weigh anything, is read alone until this
    share of the noise levels is over."""
    first = next((i for i, (weight, _, _) in enumerate(told) if weight > 0), 0)
    return [each if i == first else (each[0], until, 1.0) for i, each in enumerate(told)]


def encode_rows(
    encode: ReferenceEncoder,
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
        encoded, latents = encode(videos, num_frames, size, fps, clock)
        places = list(zip(encoded.split(), latents.unbind(1)))
    for place in (number for number, known in enumerate(given) if known):
        places.insert(place, (stacked([row[place].video for row in rows]), None))
    if not all(column.prism.matches(encode.fingerprint) for column, _ in places):
        raise CheckpointError("these references were encoded with another adapter: encode their videos again")
    return concatenate([column for column, _ in places]), [z for column, z in places for _ in column.frames]


def in_batches(
    items: Sequence[Item], size: int, progress: Callable[[Sequence[Sequence[Item]]], Iterable[Sequence[Item]]] = iter
) -> Iterable[Sequence[Item]]:
    """Slices of at most `size` items, in order; `progress` may wrap them, such as tqdm does."""
    return progress([items[start : start + size] for start in range(0, len(items), size)])


def of_readable(
    videos: Sequence[Item], make: Callable[[Sequence[Item]], Sequence[Made]]
) -> tuple[list[Made], list[str]]:
    """What `make` makes of videos, and why some cannot be read: these are left out, the others made one by one then."""
    try:
        return list(make(videos)), []
    except VideoError as error:
        if len(videos) == 1:
            return [], [str(error)]
    parts = [of_readable([video], make) for video in videos]
    return [each for made, _ in parts for each in made], [reason for _, reasons in parts for reason in reasons]
