"""References chosen from a library of drawn clips, as `aicl search` chooses them: does the choice find the action?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from aicl.evaluation.sample import MAX_REFERENCES, Clip, Sample
from aicl.puppets.samples import PuppetData, draw_samples
from aicl.reference_retrieval import VerbIndex
from lvdm import cli
from lvdm.config import check_at_least
from lvdm.errors import DataError

if TYPE_CHECKING:
    from aicl.action_library import ActionLibrary
    from aicl.puppets.benchmark import PuppetBenchmark

SEED = 2_000_003  # of the library's clips: no row draws from it
RANDOM = "random"
_BATCH = 32  # clips encoded at once


@dataclass(frozen=True)
class LibraryOptions:
    """Section `benchmark.library`: `clips` of each action, seen and unseen ones, with the vectors that `model` makes.

    model: a folder with base model and adapter.
    """

    model: str
    clips: int = 8

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("clips",), "benchmark.library")


class Chooser:
    """Chooses MAX_REFERENCES clips for a sample in every way that there is.

    verbs, text: by the prompt. motion, appearance: by an example, the sample's second reference, which shows its action
    done by somebody else; it is not in the library. random: any clips.
    """

    def __init__(self, benchmark: PuppetBenchmark, options: LibraryOptions) -> None:
        """Draws the library and reads it with the model. Raises CheckpointError where that is not there."""
        from aicl.action_embeddings import Embedder
        from aicl.action_library import ActionLibrary
        from aicl.pipeline import AICLPipeline
        from aicl.reference_encoding import in_batches

        self.benchmark = benchmark
        self.embedder = Embedder(AICLPipeline.from_pretrained(options.model, device=benchmark.device))
        self.clips: list[Clip] = []
        for actions in ("seen", "unseen"):
            data = PuppetData("seen" if actions == "seen" else "unseen", benchmark.data.captions)
            drawn = draw_samples(data, SEED, 0, options.clips * len(data.pool))
            self.clips += benchmark.clips(list(drawn.targets), drawn.phrases)
        captions = [clip.caption for clip in self.clips]
        rank, _ = cli.rank_and_world_size()  # every process of torchrun reads the library, the first says so
        bar = partial(tqdm, desc="reading the library", unit="batch", leave=False, disable=rank > 0)
        made = [self.embedder.clips(benchmark.shown(batch)) for batch in in_batches(self.clips, _BATCH, bar)]
        motion, appearance = (np.concatenate(column) for column in zip(*made))
        vectors = {"text": self.embedder.texts(captions), "motion": motion, "appearance": appearance}
        self.by_name = {Path(clip.key): clip for clip in self.clips}
        self.library: ActionLibrary = ActionLibrary(list(self.by_name), VerbIndex(captions), vectors)

    def __call__(self, sample: Sample) -> dict[str, tuple[Clip, ...]]:
        """Way -> clips; a way that finds none is left out."""
        [example] = self.benchmark.shown([sample.references[1]])
        asked: dict[str, dict[str, Any]] = {
            "verbs": {"text": sample.prompt},
            "text": {"text": sample.prompt},
            "motion": {"clip": example},
            "appearance": {"clip": example},
        }
        chosen = {way: self._search(way, sample.seed, **what) for way, what in asked.items()}
        numbers = np.random.default_rng(sample.seed).choice(len(self.clips), MAX_REFERENCES, replace=False)
        chosen[RANDOM] = tuple(self.clips[number] for number in numbers.tolist())
        return {way: clips for way, clips in chosen.items() if clips}

    def _search(self, way: Any, seed: int, **what: Any) -> tuple[Clip, ...]:
        try:
            found = self.library.search(by=way, k=MAX_REFERENCES, embedder=self.embedder, seed=seed, **what)
        except DataError:
            return ()
        return tuple(self.by_name[each.path] for each in found)


def found_actions(samples: Sequence[Sample]) -> dict[str, float]:
    """Way -> the share of samples whose first chosen clip shows the sample's action."""
    ways = sorted({way for sample in samples for way in sample.chosen})
    right = {way: [s.chosen[way][0].label == s.label for s in samples if way in s.chosen] for way in ways}
    return {way: sum(hits) / len(samples) for way, hits in right.items()}
