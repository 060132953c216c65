"""How far a reference is from the clips that an adapter was trained on: measured, said, and never a refusal.

A clip is described by its latents and by R (eq. 4-6), each by four numbers a channel: mean, spread, change from frame
to frame, and change from place to place. Their Mahalanobis distance to the training's clips is compared with a limit
that a chosen share of such clips keeps. The statistic lies beside the adapter, ADAPTER.domain.json.
"""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from aicl.adapter import Fingerprint
from lvdm import config as configs
from lvdm.errors import CheckpointError, ConfigError
from lvdm.files import write_json
from lvdm.outside import hinted, read_object

FORMAT_VERSION = 1
ENDING = ".domain.json"
_EPSILON = 1e-4  # of spreads before their logarithm: far below what any moving clip has
_RIDGE = 0.05  # added to the variance of each standardised number, so that a few hundred clips suffice


@dataclass(frozen=True)
class Gaussian:
    """Where the descriptions of clips lie. limit: the distance that nearly all of them keep."""

    mean: list[float]
    scale: list[float]
    precision: list[list[float]]
    limit: float

    def distances(self, x: Tensor) -> Tensor:
        """Descriptions (n, d) -> Mahalanobis distances (n,)."""
        centred = (x.double() - torch.tensor(self.mean).double()) / torch.tensor(self.scale).double()
        precision = torch.tensor(self.precision).double()
        return torch.einsum("nd,de,ne->n", centred, precision, centred).clamp(min=0).sqrt()

    @classmethod
    def fit(cls, x: Tensor, held: Tensor, share: float) -> "Gaussian":
        """Of descriptions x (n, d); the limit is what all but `share` of the descriptions `held` keep."""
        x = x.double()
        mean, scale = x.mean(0), x.std(0).clamp(min=1e-6)
        standard = (x - mean) / scale
        covariance = standard.T @ standard / (len(x) - 1) + _RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
        fitted = cls(mean.tolist(), scale.tolist(), torch.linalg.inv(covariance).tolist(), 1.0)
        limit = float(torch.quantile(fitted.distances(held), 1 - share))
        return cls(fitted.mean, fitted.scale, fitted.precision, limit)


@dataclass(frozen=True)
class ReferenceCheck:
    """A reference's distances as shares of their limits; latents: None for motion features without their video."""

    reference: str
    latents: float | None
    features: float

    @property
    def ratio(self) -> float:
        """The larger of the two: above 1, the reference is unlike the training's clips. NaN where one is NaN."""
        both = (self.features, self.latents or 0.0)
        return math.nan if any(map(math.isnan, both)) else max(both)

    @property
    def far(self) -> bool:
        """Whether it is beyond a limit, or no number at all."""
        return not self.ratio <= 1


def unusual(checks: Sequence[Sequence[ReferenceCheck]]) -> list[ReferenceCheck]:
    """The references that are far, of the rows of checks of a call: each once, by its name."""
    return list({check.reference: check for row in checks for check in row if check.far}.values())


@dataclass(frozen=True)
class ReferenceDomain:
    """The statistic of one adapter. false_alarms: the share of `held_out` clips, used for nothing else, that are far.

    clips: those that the statistic was made of.
    """

    prism: Fingerprint
    latents: Gaussian
    features: Gaussian
    clips: int
    held_out: int
    false_alarms: float
    format: int = FORMAT_VERSION

    def check(
        self, names: Sequence[str], latents: Sequence[Tensor | None], features: Sequence[Tensor]
    ) -> list[ReferenceCheck]:
        """One check for each reference: latents (c, t, h, w) or None, features (t, c, h, w)."""
        checks = []
        for name, z, r in zip(names, latents, features, strict=True):
            of_features = float(self.features.distances(described_features(r[None]))) / self.features.limit
            of_latents = None if z is None else float(self.latents.distances(described(z[None]))) / self.latents.limit
            checks.append(ReferenceCheck(name, of_latents, of_features))
        return checks

    def sentence(self, check: ReferenceCheck) -> str:
        """What a user is told of a reference that is far."""
        parts = [("its looks", check.latents), ("its motion", check.features)]
        shares = " and ".join(
            f"{what} at {share:.1f} times the usual limit"
            for what, share in parts
            if share is not None and not share <= 1
        )
        return (
            f"reference {check.reference} is unlike the clips that this model was trained on ({shares}): the video may "
            f"break; {self.false_alarms:.1%} of {self.held_out} clips like those of the training get this warning, too"
        )

    def for_prism(self, prism: nn.Module) -> "ReferenceDomain | None":
        """Itself, if it was made for this prism; else None, with a warning, since it says nothing of this one."""
        if self.prism.matches(Fingerprint.of(prism)):
            return self
        warnings.warn(
            "the adapter's statistic of usual references belongs to another adapter: make it anew with aicl calibrate",
            stacklevel=4,  # whoever asked a pipeline to load an adapter
        )
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file beside an adapter."""
        write_json(path, configs.to_mapping(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ReferenceDomain":
        """Read such a file. Raises CheckpointError for one that is damaged or of another version."""
        with hinted("make it anew with aicl calibrate, or remove it"):
            mapping = read_object(path, CheckpointError)
            if mapping.get("format") != FORMAT_VERSION:
                raise CheckpointError(f"{path} is of another version")
            try:
                domain = configs.from_mapping(cls, mapping, where=str(path))
            except ConfigError as error:
                raise CheckpointError(str(error)) from error
            for part in (domain.latents, domain.features):
                size = len(part.mean)
                square = len(part.precision) == size and all(len(row) == size for row in part.precision)
                if not size or len(part.scale) != size or not square or not part.limit > 0 or 0 in part.scale:
                    raise CheckpointError(f"{path} is damaged: its numbers do not fit together")
        return domain


def domain_file(adapter: Path) -> Path:
    """The statistic beside an adapter file."""
    return adapter.with_suffix(ENDING)


def find_domain(adapter: Path) -> ReferenceDomain | None:
    """The statistic beside an adapter file, None where there is none. Raises CheckpointError for a damaged one."""
    path = domain_file(adapter)
    return ReferenceDomain.load(path) if path.is_file() else None


def described(latents: Tensor) -> Tensor:
    """Latents (n, c, t, h, w) -> (n, 4 * c): mean, and the logarithms of spread and changes in time and place."""
    z = latents.float().cpu()
    over = (2, 3, 4)
    in_time, down, across = (
        z.diff(dim=dim).abs().mean(over) if z.shape[dim] > 1 else z.new_zeros(z.shape[:2]) for dim in over
    )
    spread, in_place = z.flatten(2).std(-1), 0.5 * (down + across)
    return torch.cat([z.mean(over), *((each + _EPSILON).log() for each in (spread, in_time, in_place))], dim=1)


def described_features(features: Tensor) -> Tensor:
    """R of one reference each, (n, t, c, h, w) -> (n, 4 * c), as latents are described."""
    return described(features.movedim(2, 1))
