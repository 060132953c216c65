"""Whether a base model knows a prompt's action by itself, and so needs no reference for it.

An adapter that was trained on single clips follows whatever it is shown. That is what it is for where the action is
new; where the base model knows the action, a reference of another one only does harm. What the base model knows is
seen in its first prediction: words that it has learnt change the motion in it, words that it has not change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aicl.pipeline import AICLPipeline
from aicl.verbs import generalised
from lvdm.diffusion import Denoiser
from lvdm.errors import ConfigError
from lvdm.inputs import ImageLike, sample_generators

LIMIT = 0.04
"""Of `KnownAction.effect`, of the small world's base model: actions that it was trained on have more, others less."""

_BATCH = 8  # prompts at once


@dataclass(frozen=True)
class KnownAction:
    """How far the words for its action change what the base model makes of a prompt.

    general: the prompt with a general word in place of the action, which it is compared with; None where the prompt
    names no action that is found. effect: the energy of the change of motion in the first prediction of the clean
    latents, as a share of the energy of the motion there; 0 where there is nothing to compare.
    """

    prompt: str
    general: str | None
    effect: float

    def is_known(self, limit: float = LIMIT) -> bool:
        """Whether the base model knows the action: its words change the motion by more than this share."""
        return self.effect > limit


@torch.no_grad()
def known_actions(
    pipe: AICLPipeline,
    prompts: Sequence[str],
    general: Sequence[str | None] | None = None,
    image: ImageLike | Sequence[ImageLike | None] | None = None,
    seed: int = 0,
    fps: int | None = None,
) -> list[KnownAction]:
    """What the base model of `pipe` knows of each prompt's action: two calls of its network for every few prompts.

    general: the prompts with a general word in place of the action, such as "a dog is moving on a beach" for "a dog is
    surfing on a beach"; None, as a whole or for one, is what `aicl.verbs.generalised` makes of it. image: the first
    frames of an image-to-video model. seed: of the noise that is predicted from, at the noisiest timestep. fps: as in a
    call of `pipe`, the rate (1/s) that base models which take one are told.
    Raises ConfigError where prompts, general prompts and images do not go together, or the model takes no fps.
    """
    general = [None] * len(prompts) if general is None else list(general)
    if len(general) != len(prompts):
        raise ConfigError(f"{len(general)} general prompts were given for {len(prompts)} prompts: give one each")
    compared = [generalised(prompt) if given is None else given for prompt, given in zip(prompts, general)]
    images: list[ImageLike | None] = list(image) if isinstance(image, list | tuple) else [image] * len(prompts)  # type: ignore[list-item]
    if len(images) != len(prompts):
        raise ConfigError(f"{len(images)} images were given for {len(prompts)} prompts: give one each, or one for all")
    effects = [0.0] * len(prompts)
    some = [i for i, text in enumerate(compared) if text is not None]
    for batch in (some[start : start + _BATCH] for start in range(0, len(some), _BATCH)):
        shown = [image for i in batch if (image := images[i]) is not None] or None
        own = _first_motion(pipe, [prompts[i] for i in batch], shown, seed, fps)
        other = _first_motion(pipe, [str(compared[i]) for i in batch], shown, seed, fps)
        for i, effect in zip(batch, _energy(own - other) / _energy(other).clamp(min=1e-12)):
            effects[i] = float(effect)
    return [KnownAction(*each) for each in zip(prompts, compared, effects)]


def _first_motion(
    pipe: AICLPipeline, prompts: list[str], image: Sequence[ImageLike] | None, seed: int, fps: int | None
) -> Tensor:
    """What the base model makes of noise at the first step, without its mean over time: latents (b, c, t, h, w)."""
    base, parts = pipe.base, pipe.base.components
    defaults = pipe.defaults
    base.tell_guidance(defaults.guidance_scale)
    x = base.initial_noise(sample_generators(seed, None, 1)).expand(len(prompts), -1, -1, -1, -1)
    fps = defaults.fps if fps is None else fps  # the adapter's, where the base model's own is another
    condition, _ = base.conditions(prompts, image, fps=fps, num_frames=defaults.num_frames)
    base.bring(parts.unet)
    t = torch.full((len(prompts),), len(parts.schedule) - 1, device=x.device)
    denoiser = Denoiser(parts.unet, parts.schedule, parts.unet.prediction)
    clean, _ = parts.schedule.solve(x, denoiser.predict(x, t, [condition]), t, denoiser.prediction)
    return clean - clean.mean(2, keepdim=True)


def _energy(x: Tensor) -> Tensor:
    """The mean square of each sample, (b, ...) -> (b,)."""
    return x.float().square().flatten(1).mean(1)
