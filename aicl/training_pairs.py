"""What accompanies a training sample: another clip of the same action, or its own clip, changed (a self-pair).

Who says which clip a reference is: for files a pair sampler, while the sample is drawn; for data that is made on the
device (puppets) `PairMaker`. Who changes the frames is `PairMaker` in both cases, on the device; a latent cache holds
clips that were changed when it was made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from aicl.reference_retrieval import VerbIndex, VerbPairSampler
from lvdm.config import from_mapping
from lvdm.data import (
    CachedChanges,
    Changed,
    ClipRecord,
    PairSampler,
    SelfPairConfig,
    Wrong,
    change_clips,
    motion_similarity,
    reference_seed,
    sample_rng,
)
from lvdm.errors import ConfigError, DataError

_STREAM = 15  # of the choice between kinds for data that is made on the device
_CAPTIONS = 16  # of which captions are left out


@dataclass(frozen=True)
class ReferenceSettings:
    """Section `references` of an AICL training; a plain number is short for its `count`.

    count: references of each sample.
    kind: "same_action", another video whose caption shares an action (eq. 8), targets being the videos that have enough
    of them; "self", the target's own clip, changed, for which any folder of videos will do; "mixed", both.
    self_share: for "mixed", the share of self-pairs: a number, or a schedule [[sample number, share], ...], linear
    between its points and constant outside, so that [[0, 1], [24000, 1], [32000, 0]] begins with self-pairs alone.
    A video of which no other shares an action is paired with itself.
    wrong_share: share of the samples whose references come from another video, whatever it shows, told with the
    target's caption, so that the model learns to mistrust references that do not belong. It needs captions that tell
    what belongs.
    geometry: what the strengths of scale, rotation, aspect, shift and crop in `changes` are multiplied by: a number, or
    a schedule like that of self_share, for a training that begins with weak changes and ends with strong ones. It does
    not reach what a cache holds.
    changes: see SelfPairConfig. cached_changes: how many changed versions of each cached crop a latent cache holds.
    candidates: for "same_action", how many other clips of the action are read, of which the `count` are kept whose
    motion is most like the target's (see lvdm.data.motion_similarity); None keeps those that are drawn.
    captions: what the prism is told of a self-pair: the "target"'s caption, or the "given" one, where the data brings
    references of its own (puppets) whose captions a self-pair may keep. caption_dropout: share of the samples whose
    references have an empty caption. prompt_dropout: share of the samples whose own caption is empty to the base model,
    so that R has to tell all that it can.
    feature_noise, feature_dropout: what is done to R in training, see `aicl.training_features`.
    """

    count: int = 1
    kind: Literal["same_action", "self", "mixed"] = "same_action"
    self_share: float | list[tuple[float, float]] = 0.5
    wrong_share: float = 0.0
    geometry: float | list[tuple[float, float]] = 1.0
    changes: SelfPairConfig = field(default_factory=SelfPairConfig)
    cached_changes: int = 4
    candidates: int | None = None
    captions: Literal["target", "given"] = "target"
    caption_dropout: float = 0.0
    prompt_dropout: float = 0.0
    feature_noise: float = 0.0
    feature_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.cached_changes < 1:
            raise ConfigError("references.count and references.cached_changes must each be 1 or more")
        for name, value in (("self_share", self.self_share), ("geometry", self.geometry)):
            if isinstance(value, list) and (not value or any(b[0] <= a[0] for a, b in pairwise(value))):
                raise ConfigError(f"references.{name} needs points in ascending order of sample numbers")
        if not all(0.0 <= share <= 1.0 for share in [*_heights(self.self_share), self.wrong_share]):
            raise ConfigError("references.self_share and references.wrong_share are shares: choose numbers in [0, 1]")
        for factor in _heights(self.geometry):
            if factor < 0:
                raise ConfigError("references.geometry multiplies strengths: choose numbers of 0 or more")
            self.changes.with_geometry(factor)  # which says what is too strong
        if self.wrong_share and self.kind == "same_action":
            raise ConfigError("references.wrong_share needs references.kind = self or mixed")
        if self.self_share != 0.5 and self.kind != "mixed":
            raise ConfigError("references.self_share needs references.kind = mixed: leave it out with another kind")
        for name, default in (("geometry", 1.0), ("captions", "target")):
            if self.kind == "same_action" and getattr(self, name) != default:
                raise ConfigError(
                    f"references.{name} does nothing with references.kind = same_action, which has no self-pairs: "
                    "leave it out, or set the kind to self or mixed"
                )
        if self.candidates is not None and (self.kind != "same_action" or self.candidates < self.count):
            raise ConfigError(
                "references.candidates needs references.kind = same_action, and a number of references.count or more"
            )
        for name in ("caption_dropout", "prompt_dropout", "feature_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"references.{name} = {getattr(self, name)} is a share: choose a number in [0, 1)")
        if not 0.0 <= self.feature_noise < math.inf:
            raise ConfigError(f"references.feature_noise = {self.feature_noise}: choose a number of 0 or more")

    @classmethod
    def read(cls, section: Any) -> "ReferenceSettings":
        """From section `references` of a config: a mapping, a number of references, or None for the defaults.

        Raises ConfigError.
        """
        mapping = {} if section is None else {"count": section} if isinstance(section, int) else section
        return from_mapping(cls, mapping, where="references")

    @property
    def drawn(self) -> int:
        """How many references of each sample are read."""
        return self.count if self.candidates is None else self.candidates

    @property
    def empties_captions(self) -> bool:
        """Whether some captions are left out."""
        return self.caption_dropout > 0 or self.prompt_dropout > 0

    @property
    def changes_to_cache(self) -> CachedChanges | None:
        """The changed clips that a latent cache for such references holds."""
        return None if self.kind == "same_action" else CachedChanges(self.changes, self.cached_changes)

    def share_of_self_pairs(self, number: int) -> float:
        """How likely a reference of sample `number` is its own clip."""
        return _height(self.self_share, number) if self.kind == "mixed" else float(self.kind == "self")

    def geometry_of(self, number: int) -> float:
        """The factor of the geometry's strengths for sample `number`."""
        return _height(self.geometry, number)


def check_given(settings: ReferenceSettings, given: int) -> None:
    """Raise ConfigError for what does nothing with data that brings so many references of each sample of its own."""
    if settings.captions == "given" and not given:
        raise ConfigError("references.captions = given needs data that brings references of its own: leave it out")
    if given and settings.candidates not in (None, given):
        raise ConfigError(
            f"references.candidates is {settings.candidates}, and the data brings {given} references: set "
            "data.references alike"
        )
    if given and settings.candidates is None and settings.count not in (1, given):
        raise ConfigError(
            f"references.count is {settings.count}, and the data brings {given} references: set data.references alone"
        )


def _heights(curve: float | list[tuple[float, float]]) -> list[float]:
    """The values that a number, or a schedule [[sample number, value], ...], goes through."""
    return [value for _, value in curve] if isinstance(curve, list) else [curve]


def _height(curve: float | list[tuple[float, float]], number: int) -> float:
    """The value of a number, or of a schedule, at a sample number."""
    if not isinstance(curve, list):
        return curve
    numbers, values = zip(*curve, strict=True)
    return float(np.interp(number, numbers, values))


class ReferenceSampler:
    """A pair sampler for `lvdm.data` that takes any video as a target: with itself, with others, or both by shares.

    Raises DataError where other videos are asked for and there are none.
    """

    def __init__(self, settings: ReferenceSettings, records: Sequence[ClipRecord]) -> None:
        self.settings, self._size = settings, len(records)
        mixed = settings.kind == "mixed"
        self._index = VerbIndex.of_records(records) if mixed else None
        if settings.wrong_share and len({record.key for record in records}) < 2:
            raise DataError("references.wrong_share takes references from other videos: the data has only one")

    def __call__(
        self, rng: np.random.Generator, records: Sequence[ClipRecord], number: int = 0
    ) -> list[int | Changed | Wrong]:
        """[target, reference, ...] of sample `number`, as indices of `records`, which must be those of the start."""
        if len(records) != self._size:
            raise DataError(f"references were indexed for {self._size} videos, the data set has {len(records)}")
        count, target = self.settings.count, int(rng.integers(self._size))
        own = rng.random(count) < self.settings.share_of_self_pairs(number)
        if rng.random() < self.settings.wrong_share:
            wrong = (target + 1 + rng.integers(self._size - 1, size=count)) % self._size
            return [target, *(Wrong(self._other(int(i), target, records), bool(c)) for i, c in zip(wrong, own))]
        others = [] if self._index is None or own.all() else self._index.positives(target, count, rng)
        own[len(others) :] = True  # where no other video shows the action
        return [target, *(Changed(target) if own[i] else others[i].index for i in range(count))]

    def _other(self, index: int, target: int, records: Sequence[ClipRecord]) -> int:
        """`index`, or the next one that is another video than the target: one may be listed with several captions."""
        while records[index].key == records[target].key:
            index = (index + 1) % self._size
        return index


def build_pair_sampler(settings: ReferenceSettings, records: Sequence[ClipRecord]) -> PairSampler:
    """The pair sampler that the settings describe. Raises DataError where the data has no such pairs."""
    if settings.kind == "same_action":
        return VerbPairSampler(VerbIndex.of_records(records), settings.drawn)
    return ReferenceSampler(settings, records)


def pairs_line(sampler: PairSampler, settings: ReferenceSettings) -> str:
    """What accompanies the targets, in words, for the screen."""
    if isinstance(sampler, VerbPairSampler):
        index = sampler.index
        usable = index.num_videos - sampler.unused
        others = "another" if settings.drawn == 1 else f"{settings.drawn} others"
        return (
            f"{len(index.counts())} actions; {usable} clips have {others} of their action, "
            f"{sampler.unused} have not and are never targets"
        )
    line = "each clip is shown itself, changed"
    if settings.kind == "mixed":
        line += ", or another clip of its action as reference"
    return line + (f"; in {settings.wrong_share:.0%} of the samples another clip" if settings.wrong_share else "")


class PairMaker:
    """Finishes the references of a batch on the device: says which are self-pairs where the data did not, and changes
    their frames."""

    def __init__(self, settings: ReferenceSettings) -> None:
        self.settings = settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with all references in place; one that has them already, such as one from a cache, is kept.

        Expects frames (b, 3, t, h, w), caption and the host's `number` and `noise_seed`. It may hold references
        (b, k, 3, t, h, w), and for each of them, as lists of k, reference_changed (change it) or reference_wrong (it
        is none of this action: leave the clip as it is chosen). Without references the targets become self-pairs.
        """
        if batch.get("pairs_finished"):
            return batch
        if self.settings.candidates is not None:
            batch = _most_similar(batch, self.settings.count)
        if "frames" not in batch:
            return batch
        b, seeds = len(batch["caption"]), batch["noise_seed"].tolist()
        if "references" in batch:
            count = batch["references"].shape[1]
            changed = batch.get("reference_changed")
            own = None if changed is not None else self._own(batch, count)
        else:
            if self.settings.kind == "same_action":
                return batch
            count, changed, own = self.settings.count, None, [[True] * self.settings.count] * b
        batch = dict(batch)
        if own is not None:
            self._replace(batch, own, count)
            changed = self._changed(batch, own, count)
        if changed is not None and any(map(any, changed)):
            rows = [(i, j) for i in range(b) for j in range(count) if changed[i][j]]
            numbers = [reference_seed(seeds[i], j) for i, j in rows]
            samples = batch["number"].tolist()
            factors = [self.settings.geometry_of(samples[i]) for i, _ in rows]
            references = batch["references"].flatten(0, 1)
            if len(rows) == len(references):
                references = change_clips(references, numbers, self.settings.changes, factors)
            else:
                places = torch.tensor([i * count + j for i, j in rows], device=references.device)
                new = change_clips(references[places], numbers, self.settings.changes, factors)
                references = references.index_copy(0, places, new)
            batch["references"] = references.unflatten(0, (b, count))
        return batch | {"pairs_finished": True}

    def leave_out_captions(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with some captions emptied, as the settings say; each sample's by its own noise seed."""
        if not self.settings.empties_captions:
            return batch
        draws = [sample_rng(seed, _CAPTIONS).random(2) for seed in batch["noise_seed"].tolist()]
        prompts = [u < self.settings.prompt_dropout for u, _ in draws]
        texts = [u < self.settings.caption_dropout for _, u in draws]
        return batch | {
            "caption": ["" if drop else text for text, drop in zip(batch["caption"], prompts, strict=True)],
            "reference_captions": [
                [""] * len(row) if drop else row for row, drop in zip(batch["reference_captions"], texts, strict=True)
            ],
        }

    def _own(self, batch: dict[str, Any], count: int) -> list[list[bool]] | None:
        """Which references become self-pairs, (b, k); None where none does."""
        if self.settings.kind == "same_action":
            return None
        wrong = batch.get("reference_wrong", [[False] * count] * len(batch["caption"]))
        rows = []
        for number, seed, given in zip(batch["number"].tolist(), batch["noise_seed"].tolist(), wrong, strict=True):
            rng = sample_rng(seed, _STREAM)
            share = self.settings.share_of_self_pairs(number)
            rows.append([bool(u < share) and not w for u, w in zip(rng.random(count), given, strict=True)])
        return rows

    def _replace(self, batch: dict[str, Any], own: list[list[bool]], count: int) -> None:
        """Put the targets' clips and captions in place of the references that are self-pairs."""
        copies = batch["frames"][:, None].expand(-1, count, -1, -1, -1, -1)
        if all(map(all, own)):
            batch["references"] = copies
        else:
            mask = torch.tensor(own, device=copies.device)[:, :, None, None, None, None]
            batch["references"] = torch.where(mask, copies, batch["references"])
        texts = batch.get("reference_captions")
        if texts is not None and self.settings.captions == "given":
            return
        texts = texts or [[""] * count] * len(own)
        batch["reference_captions"] = [
            [caption if mine else text for mine, text in zip(row, given, strict=True)]
            for caption, row, given in zip(batch["caption"], own, texts, strict=True)
        ]

    def _changed(self, batch: dict[str, Any], own: list[list[bool]], count: int) -> list[list[bool]]:
        """Self-pairs, and beside them the references that do not belong, which must not be told by their looks."""
        wrong = batch.get("reference_wrong", [[False] * count] * len(own))
        if self.settings.kind != "self":
            wrong = [[False] * count] * len(own)
        return [[a or b for a, b in zip(mine, other, strict=True)] for mine, other in zip(own, wrong, strict=True)]


def _most_similar(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The batch with those `count` references of each sample whose motion is most like the target's."""
    target, references = (
        batch[name] if name in batch else batch[latents]
        for name, latents in (("frames", "latent_mean"), ("references", "reference_latent_mean"))
    )
    if references.shape[1] <= count:
        return batch
    best = motion_similarity(target, references).topk(count, dim=1).indices  # (b, count)
    rows = torch.arange(len(best), device=best.device)[:, None]
    kept, numbers = dict(batch), best.tolist()
    for name, value in batch.items():
        if name.startswith("reference") and isinstance(value, torch.Tensor):
            kept[name] = value[rows.to(value.device), best.to(value.device)]
        elif name.startswith("reference"):
            kept[name] = [[row[i] for i in chosen] for row, chosen in zip(value, numbers, strict=True)]
    return kept
