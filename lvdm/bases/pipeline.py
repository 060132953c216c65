"""A pipeline of diffusers as a `VideoPipeline`: its own parts and scheduler, our conditions, guidance and seeds."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from lvdm.acceleration import Acceleration, Mode, compile_regions
from lvdm.bases.backbone import DiffusersBackbone
from lvdm.bases.codec import DiffusersCodec, frames_that_fit
from lvdm.bases.config import DiffusersConfig, DiffusersDefaults
from lvdm.bases.images import IMAGES, ImageCondition
from lvdm.bases.schedules import Steps, equal_steps, mochi_steps, prediction_of, ready, schedule_of
from lvdm.bases.text import DiffusersText
from lvdm.diffusion import Condition, Denoiser
from lvdm.diffusion.samplers import Callback
from lvdm.errors import ConfigError
from lvdm.finite import FiniteWatch
from lvdm.inputs import ImageLike, first_frames
from lvdm.models.components import Components
from lvdm.pipeline import VideoPipeline

# Rates (1/s) at which videos are meant to be played, where a pipeline's call does not name one.
_RATES = {"WanPipeline": 16, "WanImageToVideoPipeline": 16, "HunyuanVideoPipeline": 24, "MochiPipeline": 30}
_RATE = 8
SIGMAS = {"LTXPipeline": equal_steps, "HunyuanVideoPipeline": equal_steps, "MochiPipeline": mochi_steps}
"""Pipeline class -> the noise levels of so many steps that it gives its scheduler."""
_UNSUPPORTED = {  # and what is supported of the same network
    "LTXImageToVideoPipeline": "LTXPipeline",
    "HunyuanVideoImageToVideoPipeline": "HunyuanVideoPipeline",
    "HunyuanSkyreelsImageToVideoPipeline": "HunyuanVideoPipeline",
}


class DiffusersPipeline(VideoPipeline):
    """What `lvdm.bases.loading.load_base` makes of a pipeline of diffusers; `pipe` is that pipeline.

    Its latents, contexts and predictions are those of `pipe`, and without references its videos are `pipe`'s to
    rounding, given the same initial latents. Raises ConfigError for a network that `lvdm.bases.kinds` does not know.
    """

    components: Components
    supports_cuda_graphs, supports_latent_cache, slices_exactly = False, False, False

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.image_condition = IMAGES.get(type(pipe).__name__)
        _check_supported(pipe)
        codec, text = DiffusersCodec(pipe.vae), DiffusersText(pipe)
        network = getattr(pipe, "transformer", None) or pipe.unet
        backbone = DiffusersBackbone(network, codec.compression, prediction_of(pipe.scheduler))
        defaults = _defaults(pipe, backbone, codec)
        config = DiffusersConfig(
            backbone.family, backbone.config, defaults, codec.factor, self.image_condition is not None
        )
        tokens = _cells((1, *backbone.latent_shape(defaults.num_frames, defaults.size, codec.compression)))
        components = Components(schedule_of(pipe.scheduler, tokens), config.diffusion, backbone, codec, text)
        image_encoder = getattr(pipe, "image_encoder", None)
        components.image_encoder = None if image_encoder is text.model else image_encoder
        super().__init__(components, config, Acceleration("none"))
        self.acceleration.choice = "the network runs as diffusers has it"
        self._compiled = False

    @property
    def backbone(self) -> DiffusersBackbone:
        """The network without what a method on top put around it."""
        bare = _bare(self.components.unet)
        assert isinstance(bare, DiffusersBackbone)
        return bare

    @property
    def context_width(self) -> int:
        text: Any = self.components.text
        return int(text.width)

    def prepare_training(self, num_frames: int, size: tuple[int, int]) -> None:
        """The noise levels of some models depend on the length and size of what they are trained on."""
        parts = self.components
        shape = parts.unet.latent_shape(num_frames, size, parts.codec.compression)
        parts.schedule = schedule_of(self.pipe.scheduler, _cells((1, *shape)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the folder as diffusers does."""
        self.pipe.save_pretrained(str(folder), safe_serialization=True)

    def accelerate(self, mode: Mode = "auto", expected_steps: int | None = None) -> Self:
        """auto and none: as diffusers runs it. full: its blocks are compiled, hooks stay alive. Raises ConfigError for
        graphs, which networks that copy from the host while they run cannot be captured into."""
        if mode == "graphs":
            raise ConfigError("compile 'graphs' is for this library's own networks: choose auto, none or full")
        if mode == "full" and not self._compiled:
            compile_regions(_bare(self.components.unet))
            self._compiled = True
            self.acceleration.choice += ", its blocks compiled"
        return self

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """Single frames so many at once; an autoencoder that is causal in time works in tiles."""
        super().enable_vae_slicing(frames)
        codec: Any = self.components.codec
        codec.bound_memory()

    def disable_vae_slicing(self) -> None:
        """Whole videos again, where `enable_vae_slicing` had been called."""
        codec: Any = self.components.codec
        if self._slice_size is not None:
            codec.bound_memory(False)
        super().disable_vae_slicing()

    def keep_text_on_cpu(self) -> None:
        """See `DiffusersText.keep_on_cpu`."""
        text: Any = self.components.text
        text.keep_on_cpu()

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        text = self.components.text
        self.bring(text)
        return text.encode(list(prompts)).to(self.device)  # which remembers the last ones

    def encode_image(self, frames: Tensor) -> Tensor:
        """First frames (b, 3, h, w) -> context tokens (b, n, d); none where the network takes latents alone."""
        found = self._image(frames, 1).tokens
        return frames.new_zeros(len(frames), 0, self.context_width) if found is None else found.to(self.device)

    def image_extras(self, frames: Tensor, num_frames: int) -> dict[str, Tensor]:
        """The network's further arguments for first frames (b, 3, h, w) of videos of so many frames."""
        return self._image(frames, num_frames).extras if self.takes_image else {}

    def conditions(
        self,
        prompts: Sequence[str],
        image: ImageLike | Sequence[ImageLike] | None = None,
        *,
        size: tuple[int, int] | None = None,
        fps: int | None = None,
        negative_prompt: str | None = None,
        num_frames: int | None = None,
    ) -> tuple[Condition, Condition]:
        self.check_image(image)
        defaults = self.config.defaults
        negative_prompt = defaults.negative_prompt if negative_prompt is None else negative_prompt
        context, unconditional = self.encode_prompt(prompts), self.encode_prompt([negative_prompt])
        fps = self.conditioned_fps(fps)
        if image is None:
            return Condition(context, fps), Condition(unconditional, fps)
        frames = first_frames(image, len(prompts), size or defaults.size).to(self.device)
        given = self._image(frames, num_frames or defaults.num_frames)
        without = given.without or given
        unconditional = unconditional.expand(len(prompts), -1, -1)
        return (
            Condition(_joined(context, given.tokens), fps, dict(given.extras)),
            Condition(_joined(unconditional, without.tokens), fps, dict(without.extras)),
        )

    def steps_taken(self, num_inference_steps: int, sampler: str) -> int:
        """As many as the scheduler has timesteps for: some of them evaluate the network several times a step."""
        return len(self._scheduler(num_inference_steps, cells=1, device="cpu").timesteps)

    def sample_latents(
        self,
        branches: Sequence[Condition],
        weights: Sequence[float],
        x_T: Tensor,
        *,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        rescale: float = 0.0,
        step_cache: int = 1,
        windows: tuple[int, int] | None = None,
        generators: Sequence[Generator] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """See `VideoPipeline.sample_latents`. The sampler is the pipeline's own scheduler, so another than the default
        is refused, as are `step_cache`, which is for UNets of this library, and an eta that the scheduler has not."""
        if sampler not in ("scheduler", None):
            name = type(self.pipe.scheduler).__name__
            raise ConfigError(f"this model samples with its own scheduler, {name}: leave sampler out")
        if step_cache != 1:
            raise ConfigError("step_cache leaves out the inner levels of this library's UNets: leave it out")
        if windows is not None:
            raise ConfigError("window_frames is for this library's own networks: leave it out")
        if rescale:
            raise ConfigError("guidance rescale is not done with the schedulers of diffusers: leave it out")
        steps = num_inference_steps or self.config.defaults.num_inference_steps
        backbone = self.components.unet
        self.bring(backbone)
        scheduler = self._scheduler(steps, _cells(x_T.shape), x_T.device)
        loop, watch = Steps(scheduler, generators, eta), FiniteWatch(callback)
        denoiser = Denoiser(backbone, self.components.schedule, backbone.prediction)
        guided = denoiser.guided(branches, weights)
        x = x_T.float() * getattr(scheduler, "init_noise_sigma", 1.0)
        for number, t in enumerate(scheduler.timesteps, start=1):
            told = loop.told(t).to(x.device)
            outputs = denoiser.output(loop.input(x, t), told.expand(len(x)), guided.branches)
            x = loop.step(self._guided(outputs, guided.weights), t, x)
            changed = watch(number, len(loop), round(float(told)), x)
            x = x if changed is None else changed
        watch.finish()
        return x

    def _scheduler(self, steps: int, cells: int, device: torch.device | str) -> Any:
        """The pipeline's own, see `ready`."""
        return ready(self.pipe.scheduler, steps, cells, torch.device(device), SIGMAS.get(type(self.pipe).__name__))

    def _guided(self, outputs: Tensor, weights: Sequence[float]) -> Tensor:
        """The weighted sum of the branches' outputs (branches * b, c, t, h, w).

        Stable Video Diffusion is guided the more the farther a frame is from the image: from the last branch alone at
        the first frame to the full weights at the last.
        """
        parts = outputs.chunk(len(weights))
        if type(self.pipe).__name__ != "StableVideoDiffusionPipeline":
            return _weighted(parts, weights)
        ramp = torch.linspace(0, 1, outputs.shape[2], device=outputs.device).view(1, 1, -1, 1, 1)
        last = len(weights) - 1
        return _weighted(parts, [(weight - (i == last)) * ramp + (i == last) for i, weight in enumerate(weights)])

    def _image(self, frames: Tensor, num_frames: int) -> ImageCondition:
        self.check_image(frames)
        assert self.image_condition is not None
        parts = self.components
        self.bring(parts.codec, parts.text, parts.image_encoder)
        codec: Any = parts.codec
        with torch.no_grad():
            return self.image_condition(self.pipe, codec, frames.to(self.device), num_frames)


def _weighted(parts: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:]):
        total = total + part * weight
    return total


def _joined(context: Tensor, tokens: Tensor | None) -> Tensor:
    return context if tokens is None else torch.cat([context, tokens.to(context)], dim=1)


def _bare(backbone: nn.Module) -> nn.Module:
    """The network without what a method on top put around it."""
    inner = getattr(backbone, "backbone", backbone)
    assert isinstance(inner, nn.Module)
    return inner


def _cells(shape: Sequence[int]) -> int:
    """The cells of latents (b, c, t, h, w), which schedulers count as tokens."""
    return shape[2] * shape[3] * shape[4]


def _is_offloaded(part: nn.Module) -> bool:
    """Whether hooks of accelerate or of diffusers move a part, or groups of its layers, between devices."""
    for module in part.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if hasattr(module, "_hf_hook") or (registry is not None and registry.get_hook("group_offloading") is not None):
            return True
    return False


def _check_supported(pipe: Any) -> None:
    """Raise ConfigError for pipelines whose networks are known, but which do more with them than is done here."""
    config = pipe.config
    if getattr(pipe, "transformer_2", None) is not None or config.get("boundary_ratio") is not None:
        raise ConfigError("this pipeline has two networks, one for strong and one for weak noise: one is supported")
    if config.get("expand_timesteps"):
        raise ConfigError("this pipeline gives every token a noise level of its own, which is not supported")
    if any(_is_offloaded(part) for part in pipe.components.values() if isinstance(part, nn.Module)):
        raise ConfigError(
            "diffusers moves the parts of this pipeline to the GPU and back itself, which does not move what is added "
            "to them: load it without offload, and call enable_model_cpu_offload() of the AICL pipeline"
        )
    if type(pipe).__name__ in _UNSUPPORTED:
        name = type(pipe).__name__
        raise ConfigError(f"a {name} is not supported: the text-to-video one, {_UNSUPPORTED[name]}, is")


def _defaults(pipe: Any, backbone: DiffusersBackbone, codec: DiffusersCodec) -> DiffusersDefaults:
    """The defaults of the pipeline's own call, and of its networks' configs where that names none."""
    own = {name: parameter.default for name, parameter in inspect.signature(pipe.__call__).parameters.items()}
    config, factor = backbone.model.config, codec.factor
    height, width = (own.get(name) or getattr(pipe, f"default_{name}", None) for name in ("height", "width"))
    if height is None or width is None:
        side = getattr(config, "sample_size", None)
        sides = side if isinstance(side, tuple | list) else (side, side)
        height = (getattr(config, "sample_height", None) or sides[0]) * factor
        width = (getattr(config, "sample_width", None) or sides[1]) * factor
    frames = own.get("num_frames") or getattr(config, "sample_frames", None) or getattr(config, "num_frames", None)
    frames = frames_that_fit(int(frames or 16), codec.compression)
    while frames > 1 and codec.compression.grid(frames, (height, width))[0] % backbone.patch[0]:
        frames -= codec.compression.time
    rate = own.get("frame_rate", own.get("fps"))
    return DiffusersDefaults(
        num_frames=frames,
        size=(height, width),
        num_inference_steps=own["num_inference_steps"],
        guidance_scale=float(own.get("guidance_scale", own.get("max_guidance_scale", 1.0))),
        eta=float(own.get("eta") or 0.0),
        fps=rate,
        save_fps=rate or _RATES.get(type(pipe).__name__, _RATE),
    )
