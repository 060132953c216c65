"""Guidance by a reference without any training: while it is sampled, a video is pulled towards the reference's motion.

The base model sees the noised reference at each step, and the latents go down the gradient of how far its reaction to
them is from that. Two measures of the reaction, both from the decoder half of the network:

- "attention": the temporal attention maps, where the reference's are largest, as in MotionClone (arXiv 2406.05338).
- "features": how the mean over places of a block's features differs between any two frames, as the space-time features
  of DMT do (arXiv 2311.17009); it does not say where something happens.

The gradient step is on the latents, as in DMT and Attend-and-Excite (arXiv 2301.13826): at zero terminal SNR a change
of the predicted noise, which is what MotionClone changes, would do nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from aicl.baselines.attentions import attentions, unfuse
from aicl.baselines.low_rank import frozen
from aicl.baselines.shown import check_text_to_video, references_of
from aicl.evaluation.method import METHODS, Maker, Work
from aicl.evaluation.sample import Sample
from lvdm.config import check_at_least
from lvdm.diffusion import Condition, Denoiser, Guided, make_generators, sample_ddim
from lvdm.errors import ConfigError
from lvdm.models.attention import Attention
from lvdm.models.backbone import Grid, VideoBackbone
from lvdm.models.components import ModelConfig

_LEAST = 1e-12  # a gradient of this size or less gives no direction


@METHODS.register("attention_guidance")
@dataclass
class AttentionGuidance:
    """energy: what is compared, see above. strength: the length of a gradient step, as a share of the noise's standard
    deviation at the step's noise level. until: the share of the steps, from the noisiest on, that are guided.
    iterations: gradient steps at each. top: the keys of each query that are compared, the largest of the reference; for
    "attention" only.
    """

    trained: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    several: ClassVar[bool] = False
    captioned: ClassVar[bool] = True

    energy: Literal["attention", "features"] = "attention"
    strength: float = 0.1
    until: float = 0.6
    iterations: int = 1
    top: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("iterations", "top"), "method attention_guidance")
        check_at_least(self, 0, ("strength",), "method attention_guidance")
        if not 0 <= self.until <= 1:
            raise ConfigError(f"method attention_guidance: until is {self.until}: it is a share, from 0 to 1")

    def check(self, config: ModelConfig, sample: Sample) -> None:
        """Raise ConfigError for an image-to-video model."""
        check_text_to_video(config)

    @contextmanager
    def start(self, work: Work) -> Iterator[Maker]:
        """Nothing is prepared: see `_make`."""
        unet = work.pipeline.base.components.unet
        with frozen(unet), recorder(unet, self.energy) as record:
            yield partial(self._make, work, record)

    @torch.no_grad()
    def _make(self, work: Work, record: "Recorder", samples: Sequence[Sample]) -> Tensor:
        """Videos by DDIM, the sampler and the guidance of the pipeline, with gradient steps before its calls.

        The reference is noised with the noise that the video starts from, so what differs is not the noise.
        """
        base = work.pipeline.base
        defaults, schedule, unet = base.config.defaults, base.components.schedule, base.components.unet
        generators = make_generators([sample.seed for sample in samples])
        x_T = base.initial_noise(generators)
        positive, negative = base.conditions([sample.prompt for sample in samples])
        references = references_of(work, samples)[:, 0]
        captions = [work.captions(sample)[0] for sample in samples]
        shown = Condition(base.encode_prompt(captions), base.conditioned_fps())
        denoiser = Denoiser(unet, schedule, unet.prediction)
        steps = defaults.num_inference_steps if work.num_inference_steps is None else work.num_inference_steps
        scale = defaults.guidance_scale if work.guidance_scale is None else work.guidance_scale
        last = schedule.told_at(self.until)

        def pulled(x: Tensor, t: Tensor) -> Tensor:
            if not self.strength or float(schedule.told(t)[0]) < last:
                return x
            with record.recording():
                denoiser.predict(schedule.add_noise(references, x_T, t), t, [shown])
                target = record.taken()
            for _ in range(self.iterations):
                with torch.enable_grad(), record.recording():
                    latents = x.detach().requires_grad_()
                    denoiser.predict(latents, t, [positive])
                    energy = self.distance(record.taken(), target)
                    (gradient,) = torch.autograd.grad(energy, latents)
                size = gradient.square().flatten(1).mean(1).sqrt().clamp(min=_LEAST).view(-1, *[1] * (x.ndim - 1))
                sigma = schedule.sigmas.to(x.device)[t].to(x.dtype).view_as(size)
                x = x - self.strength * sigma * gradient / size
            return x

        guided = denoiser.guided(*base.guidance_branches(negative, positive, scale))
        model = Pulled(**vars(guided), before=pulled)
        spacing = base.config.diffusion.spacing
        latents = sample_ddim(model, x_T, schedule, steps, defaults.eta, generators=generators, spacing=spacing)
        return base.decode(latents).cpu()

    def distance(self, taken: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """How far two reactions are from each other, summed over samples and averaged over layers; a scalar.

        Tensors (b, ...), see `Recorder`: attention (b, n, m, rows) or features (b, t, c).
        """
        total = torch.zeros((), device=taken[0].device)
        for own, theirs in zip(taken, target):
            if self.energy == "attention":
                kept = theirs >= theirs.topk(min(self.top, theirs.shape[2]), dim=2).values[:, :, -1:]
                total = total + ((own - theirs).square() * kept).flatten(1).mean(1).sum()
            else:
                apart = _between_frames(own) - _between_frames(theirs)
                norm = _between_frames(theirs).square().flatten(1).mean(1).clamp(min=_LEAST)
                total = total + (apart.square().flatten(1).mean(1) / norm).sum()
        return total / len(taken)


@dataclass(frozen=True)
class Pulled(Guided):
    """A guided denoiser that changes the latents before it looks at them: samplers go on from the changed ones."""

    before: Callable[[Tensor, Tensor], Tensor] = lambda x, t: x

    def predict(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x0, noise) of the changed latents, both of x's shape."""
        return super().predict(self.before(x, t), t)


class Recorder:
    """The reaction of a network's decoder half to the last call inside `recording`, layer by layer, in float32.

    "attention": maps (b, n queries, m keys, places * heads) of the temporal attention layers. "features": the mean over
    places of the blocks' tokens, (b, t, c).
    """

    def __init__(self) -> None:
        self._on, self._values = False, list[Tensor]()
        self.batch, self.latents = 0, (0, 0, 0)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, calls of the network are recorded."""
        self._on, self._values = True, []
        try:
            yield
        finally:
            self._on = False

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the network."""
        self._values, self.batch = [], len(args[0])
        t, h, w = args[0].shape[2:]
        self.latents = (t, h, w)

    def add(self, make: Callable[[], Tensor]) -> None:
        """Keep a value, while recording."""
        if self._on:
            self._values.append(make().float())

    def taken(self) -> list[Tensor]:
        """What was recorded last."""
        return self._values


@contextmanager
def recorder(unet: VideoBackbone, energy: Literal["attention", "features"]) -> Iterator[Recorder]:
    """Inside, a network can be recorded. Raises ConfigError for a network whose layers are not known."""
    record, queries = Recorder(), dict[str, Tensor]()
    fused = unfuse(unet)
    handles = [unet.register_forward_pre_hook(record.begin)]
    if energy == "attention":
        found = list(attentions(unet).items())
        for name, layer in found[len(found) // 2 :]:

            def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name) -> None:
                queries[name] = output

            def take(
                module: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name, layer: Attention = layer
            ) -> None:
                record.add(lambda: temporal_map(layer, queries[name], output))

            handles += [layer.to_q.register_forward_hook(keep), layer.to_k.register_forward_hook(take)]
    else:
        blocks = list(unet.extensible_blocks())
        for block in blocks[len(blocks) // 2 :]:

            def see(module: nn.Module, args: tuple[Any, ...], output: Any, block: Any = block) -> None:
                grid: Grid = block.grid(record.latents)
                record.add(lambda: block.layout.read(output, grid).mean(2))

            handles.append(block.module.register_forward_hook(see))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
        fused()


def temporal_map(layer: Attention, q: Tensor, k: Tensor) -> Tensor:
    """The attention map of a temporal layer, softmax((q_i . (k_j + rel_k_ij)) / sqrt(d)), as (b, n, m, places * heads).

    q, k: what its projections give, (b, t, s, heads * d).
    """
    q, k = (x.unflatten(-1, (layer.heads, -1)).float() for x in (q, k))  # (b, t, s, heads, d)
    scores = torch.einsum("bishd,bjshd->bijsh", q, k)
    if layer.relative_position_k is not None:
        n = q.shape[1]
        scores = scores + torch.einsum("bishd,ijd->bijsh", q, layer.relative_position_k(n, n).float())
    return (scores / math.sqrt(q.shape[-1])).softmax(dim=2).flatten(3)


def _between_frames(features: Tensor) -> Tensor:
    """(b, t, c) -> the difference of any two frames, (b, t, t, c)."""
    return features[:, :, None] - features[:, None]
