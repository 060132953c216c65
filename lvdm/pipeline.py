"""From a prompt, and an image where the model takes one, to a video.

Each step is a method of its own, so that a method built on top (references, further guidance branches) composes them:

    context = pipe.encode_prompt(["a dog runs"])                      (b, tokens, d)
    generators = make_generators([0])
    x_T = pipe.initial_noise(generators, num_frames=16, size=(256, 256))
    latents = pipe.sample_latents(branches, weights, x_T, generators=generators)
    pixels = pipe.decode(latents)                                     uint8 (b, t, h, w, c)
"""

import copy
import inspect
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor, nn

from lvdm.acceleration import Acceleration, Mode
from lvdm.arguments import check_number
from lvdm.callbacks import StepCallback, check_step_callback, progress_bar, step_callbacks
from lvdm.diffusion import Condition, Denoiser, draw_noise
from lvdm.diffusion.samplers import SAMPLERS, Callback, steps_taken, takes_spacing
from lvdm.diffusion.step_cache import StepCache
from lvdm.diffusion.windows import Windows
from lvdm.errors import ConfigError
from lvdm.finite import FiniteWatch, check_frames
from lvdm.inputs import ImageLike, check_prompts, first_frames, sample_generators
from lvdm.models.backbone import VideoBackbone
from lvdm.models.components import Components, ModelConfig
from lvdm.models.quantization import Quantization, quantize
from lvdm.offload import SLICE, Offload
from lvdm.options import GenerationOptions, read_options, takes_options
from lvdm.recent import Recent, weights_state
from lvdm.video import OutputType, check_output_type, convert_pixels, to_pixels

KEPT_TEXTS = 4  # the negative prompt, the prompt, and captions of references


class VideoPipeline:
    """A text-to-video or image-to-video model, ready to generate. Device and dtype are those of its parts.

    `components.unet` may be replaced by anything that is called like it, and `components` or `config` by others.
    supports_cuda_graphs: whether trainings may capture its network. supports_latent_cache: whether a data set's latents
    and contexts may be computed beforehand. slices_exactly: whether an autoencoder that takes fewer frames at once
    changes videos by rounding at most. Subclasses for models of other libraries may have none of these.
    """

    supports_cuda_graphs: ClassVar[bool] = True
    supports_latent_cache: ClassVar[bool] = True
    slices_exactly: ClassVar[bool] = True

    def __init__(self, components: Components, config: ModelConfig, acceleration: Acceleration | None = None) -> None:
        missing = [name for name in ("unet", "codec", "text") if getattr(components, name) is None]
        if missing:
            raise ConfigError(f"a pipeline needs the parts unet, codec and text; missing: {', '.join(missing)}")
        self.components, self.config = components, config
        self.acceleration = acceleration or Acceleration()
        self.offload: Offload | None = None
        self._texts = Recent[Tensor](KEPT_TEXTS)
        self._slice_size: int | None = None  # the codec's own, while slicing is on
        self._slices_of_offload = False  # whether offloading turned slicing on

    def accelerate(self, mode: Mode = "auto", expected_steps: int | None = None) -> Self:
        """Choose how the UNet runs from now on, see `lvdm.acceleration`: auto, none, graphs or full."""
        self.acceleration = Acceleration(mode, expected_steps)
        return self

    def quantize(self, kind: Quantization = "fp8") -> Self:
        """Compute the UNet's wide linear layers in 8 bits ("fp8") from now on, for good, which changes results; "none"
        does nothing. Raises ConfigError for a model or a GPU that cannot, see `lvdm.models.quantization`."""
        if quantize(self.components.unet, kind, self.device):
            self.acceleration.forget()
        return self

    @property
    def device(self) -> torch.device:
        """Where the UNet works, and where latents are kept."""
        if self.offload is not None:
            return self.offload.device
        return next(self.components.unet.parameters()).device

    def with_unet(self, unet: VideoBackbone) -> Self:
        """The same pipeline with another network; everything else is shared."""
        other = copy.copy(self)
        other.components = replace(self.components, unet=unet)
        return other

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model as a folder that `load_pipeline` reads. Raises CheckpointError, see `save_pipeline`."""
        from lvdm.checkpoints.folder import save_pipeline  # which makes objects of this class

        save_pipeline(self.components, self.config, folder)

    def prepare_training(self, num_frames: int, size: tuple[int, int]) -> None:
        """Train at this length and size (height, width) from now on; the noise levels of some models depend on them.

        Raises ConfigError for what the model cannot take.
        """
        self.components.unet.latent_shape(num_frames, size, self.components.codec.compression)

    @property
    def takes_image(self) -> bool:
        """Whether this is an image-to-video model."""
        return self.config.takes_image

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and cast every part in place. A device ends offloading."""
        self.components.to(device, dtype)
        if device is not None:
            self.offload = None
            if self._slices_of_offload:
                self.disable_vae_slicing()
        return self

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep all parts in the CPU's memory and bring each to `device` only while it works: less memory there.

        The autoencoder takes SLICE frames at once then, where that changes rounding at most and `enable_vae_slicing`
        has not set another number.
        """
        self.components.to("cpu")
        self.offload = Offload(device)
        if self.slices_exactly and self._slice_size is None:
            self.enable_vae_slicing(SLICE)
            self._slices_of_offload = True

    def bring(self, *parts: nn.Module | None) -> None:
        """Have these parts where they compute: only where parts are offloaded there is something to do."""
        if self.offload is not None:
            self.offload.bring(*(part for part in parts if part is not None))

    def keep_text_on_cpu(self) -> None:
        """Keep the text encoder off the GPU for good. Raises ConfigError for a model whose encoder is not worth it."""
        raise ConfigError("base.text_on_cpu is for models of diffusers, whose text encoders are large: leave it out")

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """Encode and decode no more than this many frames of 512x320 pixels (or as many pixels) at once: less memory.

        Raises ConfigError for less than one.
        """
        if check_number(frames, "frames") < 1:
            raise ConfigError(f"slices of {frames} frames: the autoencoder takes at least 1 at once")
        codec = self.components.codec
        self._slice_size = self._slice_size or codec.slice_size
        codec.slice_size, self._slices_of_offload = int(frames), False

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many frames at once as at first."""
        self.components.codec.slice_size = self._slice_size or self.components.codec.slice_size
        self._slice_size, self._slices_of_offload = None, False

    @torch.no_grad()
    @takes_options(GenerationOptions)
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: ImageLike | Sequence[ImageLike] | None = None,
        seed: int | Sequence[int] = 0,
        generator: Generator | Sequence[Generator] | None = None,
        output_type: OutputType = "pixels",
        callback_on_step_end: StepCallback | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Any:
        """Generate one video for each prompt: uint8 (b, t, h, w, 3), or as `output_type` says.

        prompt: one text or several. image: for image-to-video, one for all prompts or one each: a path, a PIL image, or
        uint8 (h, w, 3). seed: one for each prompt, or the first of consecutive ones; a prompt's video depends on its
        own seed only, not on its batch. generator: one for each prompt in place of a seed, or one that they share.
        output_type: see `lvdm.video.convert_pixels`. callback_on_step_end: called as (pipeline, step from 0, timestep,
        {"latents": latents}) after each step; latents in the dict that it returns replace the sampler's.
        options: those of `lvdm.options.GenerationOptions`; what is None is taken from the model's `defaults`.

        Raises UserError (ConfigError, VideoError) for arguments that the model cannot take.
        """
        given = read_options(GenerationOptions, options)
        settings = given.filled(self.config.defaults)
        prompts = check_prompts(prompt)
        check_output_type(output_type)
        check_step_callback(callback_on_step_end)
        size = settings["height"], settings["width"]
        generators = sample_generators(seed, generator, len(prompts))
        x_T = self.initial_noise(generators, settings["num_frames"], size, given.window_frames)
        texts = {name: settings[name] for name in ("fps", "negative_prompt")}
        positive, negative = self.conditions(prompts, image, size=size, num_frames=settings["num_frames"], **texts)
        latents = self.sample_latents(
            *self.guidance_branches(negative, positive, settings["guidance_scale"]),
            x_T,
            **{name: settings[name] for name in ("num_inference_steps", "sampler", "eta", "step_cache")},
            windows=given.windows(),
            generators=generators,
            callback=step_callbacks(self, callback_on_step_end, progress_bar() if progress else None),
        )
        return convert_pixels(self.decode(latents), output_type)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Texts -> their context (b, tokens, d). The last ones are kept: not to be changed in place."""
        text = self.components.text

        def encode() -> Tensor:
            self.bring(text)
            return text.encode(list(prompts))

        return self._texts.get((tuple(prompts), self.device, weights_state(text)), encode)

    @property
    def context_width(self) -> int:
        """Channels of a context."""
        return self.config.text.width

    @torch.no_grad()
    def encode_image(self, frames: Tensor) -> Tensor:
        """First frames (b, 3, h, w) in [-1, 1], of any size -> context tokens (b, 16, d).

        Raises ConfigError for a model without image input.
        """
        self.check_image(frames)
        encoder, resampler = self.components.image_encoder, self.components.image_resampler
        if encoder is None or resampler is None:
            raise ConfigError("the image encoder of this image-to-video model is not loaded")
        self.bring(encoder, resampler)
        return resampler(encoder(frames.to(self.device)))

    def check_image(self, image: object) -> None:
        """Raises ConfigError for an image that this model does not take, and for None where it begins with one."""
        if self.takes_image and image is None:
            raise ConfigError("this is an image-to-video model: give it an image, the first frame (--image)")
        if image is not None and not self.takes_image:
            raise ConfigError("this is a text-to-video model: it takes no image, leave it out (--image)")

    def image_extras(self, frames: Tensor, num_frames: int) -> dict[str, Tensor]:
        """What the network gets beside the context of first frames (b, 3, h, w) in [-1, 1], of videos of `num_frames`
        frames: further arguments with b rows. Nothing by default, as all is in the context."""
        return {}

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
        """The (conditional, unconditional) branches of classifier-free guidance of videos of this size and length.

        Image-to-video: the context is the text's tokens followed by the image's; the unconditional branch has, as in
        the ancestor, the negative prompt and a mid-grey image (zero in [-1, 1]).
        Raises ConfigError where image or fps and model don't go together.
        """
        self.check_image(image)
        negative_prompt = self.config.defaults.negative_prompt if negative_prompt is None else negative_prompt
        context, unconditional = self.encode_prompt(prompts), self.encode_prompt([negative_prompt])
        if image is not None:
            frames = first_frames(image, len(prompts), size or self.config.defaults.size)
            context = torch.cat([context, self.encode_image(frames).to(context.dtype)], dim=1)
            grey = self.encode_image(torch.zeros_like(frames[:1]))
            unconditional = torch.cat([unconditional, grey.to(context.dtype)], dim=1)
        fps = self.conditioned_fps(fps)
        return Condition(context, fps), Condition(unconditional, fps)

    def guidance_branches(
        self, negative: Condition, positive: Condition, guidance_scale: float
    ) -> tuple[list[Condition], list[float]]:
        """The branches of classifier-free guidance and their weights, [1 - g, g], for `sample_latents`; of a network
        that embeds guidance, which is told the scale, the conditional one alone."""
        if self.tell_guidance(guidance_scale):
            return [positive], [1.0]
        return [negative, positive], [1 - guidance_scale, guidance_scale]

    def tell_guidance(self, guidance_scale: float | None) -> bool:
        """Whether the UNet was distilled with guidance: it is told the scale then, see `VideoBackbone.embed_guidance`,
        and needs no branch without the prompt."""
        unet = self.components.unet
        if not unet.embeds_guidance:
            return False
        unet.embed_guidance(guidance_scale)
        return True

    def conditioned_fps(self, fps: int | None = None) -> int | None:
        """The frame rate to condition on, by default the model's own. Raises ConfigError if the model takes none."""
        if fps is not None and self.config.defaults.fps is None:
            raise ConfigError("this model is not conditioned on a frame rate: leave fps out")
        return self.config.defaults.fps if fps is None else fps

    def initial_noise(
        self,
        generators: Sequence[Generator],
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        window_frames: int | None = None,
    ) -> Tensor:
        """Standard normal latents (b, c, t, h, w), one sample for each generator, which it advances.

        window_frames: how many of the frames the network is to see at once; None: all.
        Raises ConfigError for a size or a number of frames that the model cannot take.
        """
        defaults, parts = self.config.defaults, self.components
        frames = defaults.num_frames if num_frames is None else num_frames
        size, compression = size or defaults.size, parts.codec.compression
        seen = parts.unet.latent_shape(min(frames, window_frames or frames), size, compression)
        shape = (seen[0], *compression.grid(frames, size))
        return draw_noise((len(generators), *shape), generators, self.device)

    def steps_taken(self, num_inference_steps: int, sampler: str) -> int:
        """How many steps a sampler takes where so many are asked for, see `lvdm.diffusion.samplers.steps_taken`."""
        return steps_taken(sampler, self.components.schedule, num_inference_steps, self.config.diffusion.spacing)

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
        """Noise x_T (b, c, t, h, w) -> latents, float32, under the weighted sum of the branches (weights sum to 1).

        step_cache: the steps from one whole call of a UNet to the next, in between which only its outermost level is
        computed, see `lvdm.diffusion.step_cache`; 1 computes everything always, as published. windows: (frames, shared
        frames) of the windows that a longer video is made of, see `lvdm.diffusion.windows`.
        `generators`, those of the initial noise, feed the stochastic samplers. Warns of "lcm" where neither the model's
        defaults nor an embedded guidance say that it was distilled for it. Raises ConfigError for an unknown sampler,
        an eta for a sampler that has none, or branches and weights that don't fit; SamplingError, which names the step,
        where the latents are no longer finite.
        """
        defaults, parts = self.config.defaults, self.components
        sampler = sampler or defaults.sampler
        sample = SAMPLERS[sampler]
        if sampler == "lcm" and defaults.sampler != "lcm" and not parts.unet.embeds_guidance:
            warnings.warn(
                "the sampler 'lcm' is for models that were distilled for it, such as T2V-Turbo, and nothing says that "
                f"this one was: expect bad videos, or leave it out, which takes '{defaults.sampler}'",
                stacklevel=1,  # once, whoever calls
            )
        takes = inspect.signature(sample).parameters
        watch = FiniteWatch(callback)
        options: dict[str, Any] = {"generators": generators, "callback": watch}
        if "eta" in takes:
            options["eta"] = defaults.eta if eta is None else eta
        elif eta is not None:
            raise ConfigError(f"eta is a setting of the sampler 'ddim', not of '{sampler}'")
        if takes_spacing(sampler):
            options["spacing"] = self.config.diffusion.spacing
        steps = defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.bring(parts.unet)
        unet = self.acceleration.network(parts.unet, steps)
        if step_cache != 1 and windows is not None:
            raise ConfigError("step_cache keeps features of one window only: leave it out, or the windows")
        if step_cache != 1:
            unet = StepCache(unet, step_cache)
        if windows is not None:
            time = parts.codec.compression.time  # frames of the video that a latent frame stands for
            unet = Windows(unet, 1 + (windows[0] - 1) // time, windows[1] // time)
        model = Denoiser(unet, parts.schedule, parts.unet.prediction).guided(branches, weights, rescale)
        latents = sample(model, x_T, parts.schedule, steps, **options)
        watch.finish()
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, c, t, h, w) -> pixels uint8 (b, t, h, w, 3) on the CPU. Raises SamplingError for NaN."""
        self.bring(self.components.codec)
        if self.offload is not None:
            self.acceleration.forget()  # graphs of a UNet that is elsewhere now, and their memory
        videos = (check_frames(self.components.codec.decode(sample[None])[0]) for sample in latents)
        return torch.stack([to_pixels(frames).cpu() for frames in videos])
