"""Which references are usual for an adapter: the statistic of `aicl.reference_domain`, made from clips."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aicl.adapter import Fingerprint
from aicl.clock import Clock
from aicl.options import Reference
from aicl.pipeline import AICLPipeline
from aicl.reference_domain import Gaussian, ReferenceDomain, described, described_features
from aicl.reference_encoder import ReferenceEncoder
from aicl.reference_encoding import in_batches, of_readable
from lvdm.data.clips import ClipRecord
from lvdm.errors import ConfigError, DataError

LEAST_CLIPS = 40


def calibrate(
    pipe: AICLPipeline,
    records: Sequence[ClipRecord],
    *,
    share: float = 0.01,
    batch_size: int = 8,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> ReferenceDomain:
    """The statistic of a pipeline's adapter, from clips like those of its training, with their captions.

    Half of the clips make the Gaussians, a quarter the limits, which `share` of them may exceed, and on the last
    quarter the false alarms are counted; the clips are dealt out in turn. What cannot be read is left out.
    Raises ConfigError without an adapter, DataError for fewer than LEAST_CLIPS clips that can be read.
    """
    if pipe.prism is None:
        raise ConfigError("there is no adapter to calibrate: give one with --adapter")
    if not 0 < share < 0.5:
        raise ConfigError(f"the share of false alarms is {share}: choose one between 0 and 0.5, such as 0.01")
    if len(records) < LEAST_CLIPS:  # before any of them is read
        raise DataError(
            f"{len(records)} clips are too few to say what is usual: give {LEAST_CLIPS} or more, or do without"
        )
    described_clips: list[tuple[Tensor, Tensor]] = []
    for batch in in_batches(records, batch_size, progress):
        described_clips += of_readable(batch, partial(_described_batch, pipe))[0]
    if len(described_clips) < LEAST_CLIPS:
        raise DataError(
            f"{len(described_clips)} clips can be read, {LEAST_CLIPS} are needed to say what is usual: give more, "
            "or do without a calibration"
        )
    latents, features = (torch.stack(column) for column in zip(*described_clips))
    return fit_domain(Fingerprint.of(pipe.prism), latents, features, share)


def fit_domain(prism: Fingerprint, latents: Tensor, features: Tensor, share: float) -> ReferenceDomain:
    """The statistic from descriptions of clips, (n, d) each, see `aicl.reference_domain.described`."""
    turn = torch.arange(len(latents)) % 4
    fit, limit, held = (turn == 0) | (turn == 2), turn == 1, turn == 3
    of_latents, of_features = (Gaussian.fit(x[fit], x[limit], share / 2) for x in (latents, features))  # half from each
    far = (of_latents.distances(latents[held]) > of_latents.limit) | (
        of_features.distances(features[held]) > of_features.limit
    )
    return ReferenceDomain(
        prism,
        of_latents,
        of_features,
        clips=len(latents),
        held_out=int(held.sum()),
        false_alarms=float(far.double().mean()),
    )


def _described_batch(pipe: AICLPipeline, records: Sequence[ClipRecord]) -> list[tuple[Tensor, Tensor]]:
    """Descriptions of clips. Raises VideoError where one cannot be read."""
    defaults, prism = pipe.defaults, pipe.prism
    assert prism is not None
    rows = [[Reference(record.path, record.caption)] for record in records]
    size, fps = (defaults.height, defaults.width), defaults.save_fps
    encode = ReferenceEncoder(pipe.base, prism)
    encoded, latents = encode(rows, defaults.num_frames, size, fps, Clock(pipe.device))
    return list(zip(described(latents[:, 0]), described_features(encoded.features)))
