"""The puppet world as a benchmark: clips are drawn, not read, so there is no end of samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any, Literal

import torch
from torch import Tensor

from aicl.evaluation.sample import MAX_REFERENCES, Clip, Sample
from aicl.pseudo_words import gerund
from aicl.puppets.actions import ACTIONS
from aicl.puppets.captions import caption, describe
from aicl.puppets.data import FPS
from aicl.puppets.hard_scenes import VERSION as HARD_VERSION
from aicl.puppets.hard_scenes import HardScenes, render_hard, scene_seeds
from aicl.puppets.programs import program_bank
from aicl.puppets.renderer import VERSION, render
from aicl.puppets.retrieval import Chooser, LibraryOptions
from aicl.puppets.samples import PuppetData, draw_samples
from aicl.puppets.scene_parameters import FIELD, looks
from lvdm import config as configs
from lvdm.data.self_pairs import blank_half
from lvdm.errors import ConfigError
from lvdm.video import to_pixels

REAL_SEED = 1_000_003  # of the set of real clips: no row draws from it
SHARED_SEED = 1_000_033  # of references that all samples of an action share
_REAL = 2200  # clips in that set, unless another number is asked for


class PuppetBenchmark:
    """Actions, "seen" or "unseen" ones, in "plain" captions (the UCF protocol: one wording for all) or "free" ones (the
    WebVid protocol), under their real names or made_up ones. size: height and width in pixels; a clip lasts two seconds
    at any number of frames. library: what `aicl.puppets.retrieval.LibraryOptions` has, such as {model: FOLDER}: samples
    get references that are chosen from a library of clips, too. hard_scenes: what `HardScenes` has, such as
    {moving_camera: 1.0}, in references and real clips alike. partial_references: every reference shows only one half of
    its frames, the first and third reference of a sample the first half, the second one the second; the rest is blank,
    see `lvdm.data.self_pairs.blank_half`. shared_references: all samples of an action are shown the same clips of it,
    as where one trains for an action with what there is of it; wrong references stay each sample's own.
    """

    count: int | None = None
    paper: str | None = None

    def __init__(
        self,
        device: torch.device | str,
        actions: Literal["seen", "unseen"] = "unseen",
        captions: Literal["plain", "free"] = "plain",
        names: Literal["real", "made_up"] = "real",
        size: int = 64,
        frames: int = 16,
        hard_scenes: Mapping[str, float] | None = None,
        library: Mapping[str, Any] | None = None,
        partial_references: bool = False,
        shared_references: bool = False,
    ) -> None:
        for name, value, choices in (
            ("actions", actions, ("seen", "unseen")),
            ("captions", captions, ("plain", "free")),
            ("names", names, ("real", "made_up")),
        ):
            if value not in choices:
                raise ConfigError(f"benchmark.{name} is '{value}': choose {choices[0]} or {choices[1]}")
        if size < 1 or frames < 2:
            raise ConfigError("benchmark.size must be positive and benchmark.frames 2 or more")
        self.data = PuppetData(actions, captions, names)
        self.hard_scenes = configs.from_mapping(HardScenes, hard_scenes or {}, where="benchmark.hard_scenes")
        self.partial_references, self.shared_references = partial_references, shared_references
        self.frames, self.fps, self.size = frames, FPS * frames / 16, (size, size)
        self.pool: tuple[str, ...] | None = tuple(ACTIONS[index].name for index in self.data.pool)
        self.device = torch.device(device)
        self.library = None if library is None else configs.from_mapping(LibraryOptions, library, "benchmark.library")
        self._chooser: Chooser | None = None
        programs, cycles = program_bank(0, 0)
        self._bank = programs.to(device), cycles.to(device)

    def __str__(self) -> str:
        hard = [each.name for each in fields(HardScenes) if getattr(self.hard_scenes, each.name)]
        partial = ["references of which one half is shown"] if self.partial_references else []
        shared = ["the same references for all samples of an action"] if self.shared_references else []
        return ", ".join([str(self.data), *(name.replace("_", " ") for name in hard), *partial, *shared])

    def samples(self, seed: int, start: int, stop: int) -> list[Sample]:
        """See `Benchmark`; every action of the pool comes up equally often."""
        drawn, made = draw_samples(self.data, seed, start, stop), []
        if self.shared_references:  # sample i of the first ones does action i of the pool, and so does every n-th
            pool = self.data.pool
            shared = draw_samples(self.data, SHARED_SEED, 0, len(pool)).references
            drawn.references = shared[[number % len(pool) for number in range(start, stop)]]
        for i, (prompt, phrase) in enumerate(zip(drawn.prompts, drawn.phrases)):
            references, wrong = (
                tuple(_clip(row, phrase, half=k % 2 if self.partial_references else None) for k, row in enumerate(rows))
                for rows in (drawn.references[i], drawn.wrong[i])
            )
            target = _clip(drawn.targets[i], phrase)
            noise, words = drawn.noise_seeds[i], gerund(phrase)
            made.append(Sample(start + i, noise, prompt, target.label, references, wrong, target, words))
        if self.library is not None:
            self._chooser = self._chooser or Chooser(self, self.library)
            made = [replace(sample, chosen=self._chooser(sample)) for sample in made]
        return made

    def clips(self, scenes: Sequence[Tensor], phrases: Sequence[str]) -> list[Clip]:
        """Clips of scenes (FIELDS,), whose actions have these names."""
        return [_clip(scene, phrase) for scene, phrase in zip(scenes, phrases)]

    def real(self, count: int | None) -> list[Clip]:
        """Clips that do what further prompts say."""
        drawn = draw_samples(self.data, REAL_SEED, 0, _REAL if count is None else count)
        return [_clip(row, phrase, prompt) for row, phrase, prompt in zip(drawn.targets, drawn.phrases, drawn.prompts)]

    def content(self, clip: Clip) -> str:
        """A hash of the scene and of how it is drawn."""
        hard = f" {HARD_VERSION} {self.hard_scenes}" if self.hard_scenes.any else ""
        return sha256(f"{clip.key} {VERSION} {self.size[0]} {self.frames}{hard}".encode()).hexdigest()

    @torch.no_grad()
    def load(self, clips: Sequence[Clip]) -> tuple[Tensor, list[float]]:
        """See `Benchmark`: drawn on the device, and left there."""
        scenes = torch.stack([_scene(clip) for clip in clips])
        seeds, scenes = scene_seeds(scenes.numpy()), scenes.to(self.device)
        if self.hard_scenes.any:
            frames = render_hard(scenes, seeds, self._bank, self.hard_scenes, self.size[0], self.frames)
        else:
            frames = render(scenes, self._bank, self.size[0], self.frames)
        for i, clip in enumerate(clips):
            if clip.drawn.half is not None:
                frames[i] = blank_half(frames[i], clip.drawn.half)
        return to_pixels(frames), [self.fps] * len(clips)

    def shown(self, clips: Sequence[Clip]) -> list[Any]:
        """Their pixels, uint8 (t, h, w, 3)."""
        return list(self.load(clips)[0])

    def facts(self, samples: Sequence[Sample], shown: Sequence[Sequence[Clip]]) -> dict[str, Tensor]:
        """looks (n, 3): shirt, trousers and background of each prompt; shown_looks (n, MAX_REFERENCES, 3): those of its
        references, -1 for absent ones."""
        of_prompts = torch.stack([looks(_scene(sample.target)) for sample in samples])
        of_shown = torch.full((len(samples), MAX_REFERENCES, 3), -1)
        for i, clips in enumerate(shown):
            for k, clip in enumerate(clips):
                of_shown[i, k] = looks(_scene(clip))
        return {"looks": of_prompts, "shown_looks": of_shown}


@dataclass(frozen=True)
class _Drawn:
    """A scene (FIELDS,), and which half of its frames is shown; None for all of them."""

    scene: Tensor
    half: int | None = None


def _scene(clip: Clip | None) -> Tensor:
    assert clip is not None and isinstance(clip.drawn, _Drawn)
    return clip.drawn.scene


def _clip(scene: Tensor, phrase: str, prompt: str | None = None, half: int | None = None) -> Clip:
    """The clip of a scene (FIELDS,) whose action is called `phrase`."""
    own, bare = (caption(describe(scene, phrase, looks=with_looks)) for with_looks in (True, False))
    label = ACTIONS[int(scene[FIELD["program"]])].name
    key = sha256(scene.numpy().tobytes()).hexdigest() + ("" if half is None else f" half {half}")
    return Clip(key, prompt or own, label, bare, drawn=_Drawn(scene, half))
