"""Endless training batches of the puppet world: drawn as numbers on the CPU, rendered on the device that trains.

A loader worker makes rows of a few dozen numbers and captions, each a pure function of (seed, sample number);
`PuppetDataModule.prepare` turns them into the frames that the dataset of files would have read. So there is no data
set to store, no two epochs are alike, and a run resumes exactly.
"""

from dataclasses import astuple, dataclass, field
from math import inf
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from aicl.puppets.actions import ACTIONS, SEEN_INDICES, UNSEEN_INDICES
from aicl.puppets.captions import GENERIC, Description, Wording, caption, describe, made_up, random_wording
from aicl.puppets.hard_scenes import HardScenes, render_hard, scene_seeds
from aicl.puppets.programs import FIRST_RANDOM, program_bank
from aicl.puppets.renderer import SECONDS, render
from aicl.puppets.scene_parameters import CAMERA_FIELDS, FIELDS, MOTION_FIELDS, draw_scene_parameters, looks, uniforms
from lvdm.data.datamodule import EndlessDataModule
from lvdm.errors import ConfigError

_STREAM = 1  # keeps these draws apart from those of random programs
_DRAWS = len(FIELDS) + 2  # uniforms for one scene
_CHOICES = 8  # uniforms for everything else about a sample
FPS = 8.0  # of 16 frames in two seconds


@dataclass(frozen=True)
class NameShares:
    """A caption names a seen action by its own name, a made-up one, or none ("is moving"). Shares are normalised."""

    real: float = 1.0
    made_up: float = 0.0
    generic: float = 0.0


@dataclass(frozen=True)
class ReferenceShares:
    """A reference's caption: its own, the target's prompt, or its action without looks. Shares are normalised."""

    own: float = 0.6
    prompt: float = 0.25
    bare: float = 0.15


@dataclass(frozen=True)
class PuppetConfig:
    """Section `data` of a puppet config.

    frames: of a clip, which lasts `seconds`: 17 in 2.125 s are 8 a second, as 16 in 2 s, for autoencoders that are
    causal in time. actions: which named actions appear. programs: how many random motions the bank holds;
    program_share: how often a sample shows one. names: how seen actions are named; random motions are named by a
    made-up name or, in `generic_share` of cases, not at all. free_captions, bare_captions: shares of captions in free
    wording, and without looks. patterns: share of striped shirts, and of striped backgrounds.
    in_turn: sample n shows the n-th named action, counted round and round, and no random motion (for measuring).
    references: how many clips accompany a target (0 for a base model). paired: share of references that are another
    rendering of the target's own motion, with other person, looks and camera; the rest are independent scenes of the
    same motion. same_camera: share of the paired ones that keep the target's camera.
    wrong_share: share of samples with an action's own name whose references all show another action; their captions say
    what the target does. hard_scenes: moving cameras, textures and the like, see HardScenes.
    """

    size: int = 64
    frames: int = 16
    seconds: float = SECONDS
    actions: Literal["seen", "unseen", "all"] = "seen"
    programs: int = 16384
    program_share: float = 0.4
    names: NameShares = field(default_factory=NameShares)
    generic_share: float = 0.2
    free_captions: float = 0.25
    bare_captions: float = 0.05
    patterns: float = 0.2
    in_turn: bool = False
    references: int = 0
    paired: float = 0.0
    same_camera: float = 0.0
    wrong_share: float = 0.0
    hard_scenes: HardScenes = field(default_factory=HardScenes)
    reference_captions: ReferenceShares = field(default_factory=ReferenceShares)
    workers: int = 2

    def __post_init__(self) -> None:
        for name in (
            "program_share",
            "generic_share",
            "free_captions",
            "bare_captions",
            "patterns",
            "paired",
            "same_camera",
            "wrong_share",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"data.{name} = {getattr(self, name)} is a share: choose a number in [0, 1]")
        for name in ("names", "reference_captions"):
            shares = astuple(getattr(self, name))
            if min(shares) < 0 or not 0 < sum(shares) < inf:
                raise ConfigError(f"data.{name} are shares: choose numbers from 0 on, not all of them 0")
        if self.program_share > 0 and self.programs < 1:
            raise ConfigError("data.program_share asks for random motions: set data.programs to 1 or more")
        if min(self.size, self.frames) < 1 or self.references < 0:
            raise ConfigError("data.size and data.frames must be positive, data.references zero or more")
        if self.wrong_share and not self.references:
            raise ConfigError("data.wrong_share says which references do not belong: set data.references, or it to 0")
        if not 0.0 < self.seconds <= 60.0:
            raise ConfigError(f"data.seconds = {self.seconds}: a clip lasts more than 0 and at most 60 seconds")
        if self.hard_scenes.any and self.seconds != SECONDS:
            raise ConfigError(f"data.hard_scenes are drawn in clips of {SECONDS:g} seconds: leave data.seconds out")

    @property
    def action_indices(self) -> tuple[int, ...]:
        """The actions to draw from, as indices of `ACTIONS`."""
        return {"seen": SEEN_INDICES, "unseen": UNSEEN_INDICES, "all": tuple(range(len(ACTIONS)))}[self.actions]


def draw_batch(config: PuppetConfig, seed: int, numbers: NDArray[np.int64]) -> dict[str, Any]:
    """The samples `numbers` as numbers and captions, without frames.

    number, noise_seed int64 (b,), timestep_u float64 (b,), scene_parameters float32 (b, FIELDS), caption (list), fps
    (b,); with references also reference_scene_parameters (b, k, FIELDS), reference_captions and, with a wrong_share,
    reference_wrong (lists of lists of k); with hard scenes scene_seeds (a list of lists of 1 + k).
    """
    clips = 1 + config.references
    width = _CHOICES + clips * (_DRAWS + _CHOICES)
    draws = uniforms(seed, numbers, width, stream=_STREAM)
    choices, per_clip = draws[:, :_CHOICES], draws[:, _CHOICES:].reshape(len(numbers), clips, _DRAWS + _CHOICES)
    motions = _motions(config, numbers, choices)
    rows = draw_scene_parameters(per_clip[..., :_DRAWS].reshape(-1, _DRAWS), motions.repeat(clips), config.patterns)
    rows = rows.reshape(len(numbers), clips, len(FIELDS))
    if config.references:
        _pair(config, rows, per_clip[..., _DRAWS:])
        wrong = _mislead(config, rows, choices)
    captions = [_captions(config, clip_rows, choice) for clip_rows, choice in zip(rows, choices)]
    scenes = torch.from_numpy(rows)
    batch = {
        "number": torch.from_numpy(np.asarray(numbers, np.int64)),
        "timestep_u": torch.from_numpy(choices[:, 3].copy()),
        "noise_seed": torch.from_numpy((choices[:, 4] * 2**53).astype(np.int64)),
        "scene_parameters": scenes[:, 0].contiguous(),
        "caption": [texts[0] for texts in captions],
        "fps": torch.full((len(numbers),), config.frames / config.seconds),
    }
    if config.references:
        batch["reference_scene_parameters"] = scenes[:, 1:].contiguous()
        batch["reference_captions"] = [texts[1:] for texts in captions]
        if config.wrong_share:
            batch["reference_wrong"] = [[bool(each)] * config.references for each in wrong]
    if config.hard_scenes.any:
        batch["scene_seeds"] = [scene_seeds(clip_rows) for clip_rows in rows]
    return batch


def _motions(config: PuppetConfig, numbers: NDArray[np.int64], choices: NDArray[np.float64]) -> NDArray[np.int64]:
    """What moves in each sample: indices into the program bank, (b,)."""
    named = np.asarray(config.action_indices)
    if config.in_turn:
        return named[numbers % len(named)]
    return np.where(
        choices[:, 0] < config.program_share,
        FIRST_RANDOM + (choices[:, 1] * config.programs).astype(np.int64),
        named[(choices[:, 1] * len(named)).astype(np.int64)],
    )


def _pair(config: PuppetConfig, rows: NDArray[np.float32], draws: NDArray[np.float64]) -> None:
    """Make some references, in place, renderings of the target's own motion. `draws` (b, 1 + k, choices)."""
    paired = draws[:, 1:, 0] < config.paired
    shared = [(MOTION_FIELDS, paired), (CAMERA_FIELDS, paired & (draws[:, 1:, 1] < config.same_camera))]
    for fields, which in shared:
        for column in fields:
            rows[:, 1:, column] = np.where(which, rows[:, :1, column], rows[:, 1:, column])


def _mislead(config: PuppetConfig, rows: NDArray[np.float32], choices: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Let the references of some samples do something else, in place; returns of which, (b,).

    Only those of actions under their own names: to a motion with a name that is made up for it everything belongs.
    """
    program, named = FIELDS.index("program"), np.asarray(config.action_indices)
    own = rows[:, 0, program].astype(np.int64)
    wrong = (choices[:, 6] < config.wrong_share) & (own < FIRST_RANDOM) & (len(named) > 1)
    for i in np.flatnonzero(wrong):  # as `_phrase` will find, whose generator begins alike
        wrong[i] = _name_kind(config, int(own[i]), Random(int(choices[i, 5] * 2**53))) == 0
    for i in np.flatnonzero(wrong):
        others = named[named != own[i]]
        rows[i, 1:, program] = others[int(choices[i, 7] * len(others))]
    return wrong


def _captions(config: PuppetConfig, rows: NDArray[np.float32], choices: NDArray[np.float64]) -> list[str]:
    """The captions of a target (first) and its references, all with one name for what they do."""
    random = Random(int(choices[5] * 2**53))
    phrase = _phrase(config, int(rows[0, FIELDS.index("program")]), random)
    wording = random_wording(random) if random.random() < config.free_captions else Wording()
    prompt = caption(describe(rows[0], phrase, looks=random.random() >= config.bare_captions), wording)
    shares = config.reference_captions
    texts = [prompt]
    for row in rows[1:]:
        kind = _choose(random, (shares.own, shares.prompt, shares.bare))
        own = caption(describe(row, phrase))
        texts.append((own, prompt, caption(Description(phrase)))[kind])
    return texts


def _name_kind(config: PuppetConfig, motion: int, random: Random) -> int:
    """0 for an action's own name, 1 for a made-up one, 2 for a generic one."""
    names = config.names
    shares = (names.real, names.made_up, names.generic)
    if motion >= FIRST_RANDOM:
        shares = (0.0, 1.0 - config.generic_share, config.generic_share)
    return _choose(random, shares)


def _phrase(config: PuppetConfig, motion: int, random: Random) -> str:
    kind = _name_kind(config, motion, random)
    if kind == 0:
        return ACTIONS[motion].phrase
    return made_up(random) if kind == 1 else GENERIC[int(random.random() * len(GENERIC))]


def _choose(random: Random, shares: tuple[float, ...]) -> int:
    point = random.random() * sum(shares)
    for index, share in enumerate(shares):
        if point < share:
            return index
        point -= share
    return max(index for index, share in enumerate(shares) if share > 0)


class PuppetDataset(Dataset[dict[str, Any]]):
    """Samples by global sample number; a loader fetches a whole batch at once."""

    def __init__(self, config: PuppetConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One sample, as an item that `lvdm.data.collate` takes."""
        batch = draw_batch(self.config, self.seed, np.asarray([number], np.int64))
        return {
            name: value[0] if isinstance(value, list) or value.ndim > 1 else value.item()
            for name, value in batch.items()
        }

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        return draw_batch(self.config, self.seed, np.asarray(numbers, np.int64))


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


class PuppetDataModule(EndlessDataModule):
    """Endless batches of a `PuppetDataset`, drawn on the device: by fused kernels in trainings that compile."""

    about = "clips of the puppet world, drawn as they are needed"

    def __init__(self, config: PuppetConfig, batch_size: int, seed: int = 0, start: int = 0) -> None:
        super().__init__(PuppetDataset(config, seed), batch_size, config.workers, start, collate=_as_it_is)
        self.config, self.seed = config, seed
        self._banks: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Render a batch on the device it lies on: adds frames (b, 3, t, h, w), references (b, k, 3, t, h, w), and for
        measuring evaluators action (b,) (-1 for a random motion) and looks (b, 3). A batch with frames is kept."""
        if "frames" in batch:
            return batch
        rows = batch["scene_parameters"]
        motion = rows[:, FIELDS.index("program")].long()
        batch = batch | {"action": torch.where(motion < FIRST_RANDOM, motion, -1), "looks": looks(rows)}
        references = batch.get("reference_scene_parameters", rows.new_zeros(len(rows), 0, len(FIELDS)))
        together = torch.cat([rows, references.flatten(0, 1)])  # in one go: small batches are slow to launch
        bank, options = self.bank(rows.device), (self.config.size, self.config.frames, self.compiled)
        if self.config.hard_scenes.any:
            targets = [seeds[0] for seeds in batch["scene_seeds"]]
            seeds = [*targets, *(seed for seeds in batch["scene_seeds"] for seed in seeds[1:])]
            frames = render_hard(together, seeds, bank, self.config.hard_scenes, *options)
        else:
            frames = render(together, bank, *options, seconds=self.config.seconds)
        batch["frames"] = frames[: len(rows)]
        if references.shape[1]:
            batch["references"] = frames[len(rows) :].unflatten(0, references.shape[:2])
        return batch

    def bank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The motions that scenes refer to, kept on the device."""
        if device not in self._banks:
            count = self.config.programs if self.config.program_share > 0 else 0
            programs, cycles = program_bank(count, self.seed)
            self._banks[device] = programs.to(device), cycles.to(device)
        return self._banks[device]
