"""The evaluation sets of the puppet world as numbers: prompts, and the scenes of the references that go with them.

A sample is a pure function of (seed, number).
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aicl.evaluation.sample import MAX_REFERENCES
from aicl.puppets.actions import ACTIONS, SEEN_INDICES, UNSEEN_INDICES
from aicl.puppets.captions import Wording, caption, describe, made_up, random_wording
from aicl.puppets.scene_parameters import FIELDS, draw_scene_parameters, uniforms

_STREAM = 40  # apart from the streams of training data
_DRAWS = len(FIELDS) + 2  # uniforms of one scene
_CHOICES = 4  # uniforms of everything else


@dataclass(frozen=True)
class PuppetData:
    """Which prompts. `plain` captions are the UCF protocol, one wording for all; `free` ones are the WebVid protocol.

    names: actions have their real names, or a made-up name of their own in every prompt.
    """

    actions: Literal["seen", "unseen"] = "unseen"
    captions: Literal["plain", "free"] = "plain"
    names: Literal["real", "made_up"] = "real"

    @property
    def pool(self) -> tuple[int, ...]:
        """The numbers of the actions."""
        return SEEN_INDICES if self.actions == "seen" else UNSEEN_INDICES

    def __str__(self) -> str:
        names = "" if self.names == "real" else ", made-up names"
        return f"puppets, {len(self.pool)} {self.actions} actions, {self.captions} captions{names}"


@dataclass
class Samples:
    """n samples: what is asked for, what is shown, and the seed of the noise.

    targets (n, FIELDS): a scene as the prompt describes it, whose looks count as right. references
    (n, 3, FIELDS): independent scenes of the same action, with looks of their own. wrong (n, 3, FIELDS): the same
    people doing one other action of the pool. phrases: the action's name in the prompt.
    """

    prompts: list[str]
    phrases: list[str]
    targets: Tensor
    references: Tensor
    wrong: Tensor
    noise_seeds: list[int]

    @property
    def actions(self) -> Tensor:
        """Of the prompts, (n,)."""
        return _actions(self.targets)


def draw_samples(data: PuppetData, seed: int, start: int, stop: int) -> Samples:
    """Samples number `start` to `stop` - 1 of a seed; every action of the pool comes up equally often."""
    numbers = np.arange(start, stop, dtype=np.int64)
    clips = 1 + MAX_REFERENCES
    draws = uniforms(seed, numbers, _CHOICES + clips * _DRAWS, stream=_STREAM)
    choices, per_clip = draws[:, :_CHOICES], draws[:, _CHOICES:].reshape(len(numbers), clips, _DRAWS)
    pool = np.asarray(data.pool)
    place = numbers % len(pool)
    other = (place + 1 + (choices[:, 0] * (len(pool) - 1)).astype(np.int64)) % len(pool)
    rows = _scenes(per_clip, pool[place])
    wrong = _scenes(per_clip, pool[other])[:, 1:]
    prompts, phrases = [], []
    for row, choice in zip(rows[:, 0], choices):
        random = Random(int(choice[1] * 2**53))
        action = ACTIONS[int(row[FIELDS.index("program")])].phrase
        phrase = made_up(random) if data.names == "made_up" else action
        wording = random_wording(random) if data.captions == "free" else Wording()
        phrases.append(phrase)
        prompts.append(caption(describe(row, phrase), wording))
    noise_seeds = (choices[:, 2] * 2**53).astype(np.int64).tolist()
    return Samples(prompts, phrases, rows[:, 0], rows[:, 1:], wrong, noise_seeds)


def _scenes(draws: NDArray[np.float64], motions: NDArray[np.int64]) -> Tensor:
    """(n, clips, FIELDS) of draws (n, clips, width), all clips of a sample doing motions (n,)."""
    n, clips, width = draws.shape
    rows = draw_scene_parameters(draws.reshape(-1, width), motions.repeat(clips))
    return torch.from_numpy(rows.reshape(n, clips, -1))


def _actions(scenes: Tensor) -> Tensor:
    return scenes[:, FIELDS.index("program")].long()
