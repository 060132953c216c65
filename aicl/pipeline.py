"""Generating with reference videos (Algorithm 2): lvdm's pipeline, with R in its conditional branch."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, nn

from aicl.action_prism import ActionPrism
from aicl.adapter import AdapterInfo, Fingerprint, at_adapter_rate, load_adapter, save_adapter
from aicl.clock import Clock
from aicl.integrated_backbone import IntegratedBackbone
from aicl.model_files import FOLDER_FILE, FolderConfig, ModelFiles, find_model_files
from aicl.motion_features import MotionFeatures, concatenate
from aicl.options import Reference, SamplingOptions
from aicl.reference_context import ReferenceContext
from aicl.reference_videos import captioned, read_clip, reference_key, reference_rows, stacked
from lvdm import config as configs
from lvdm.acceleration import Mode
from lvdm.checkpoints import load_pipeline
from lvdm.checkpoints.folder import new_folder
from lvdm.diffusion import Condition
from lvdm.errors import CheckpointError, ConfigError
from lvdm.models.components import GenerationDefaults
from lvdm.options import read_options, takes_options
from lvdm.pipeline import (
    ImageLike,
    StepCallback,
    VideoPipeline,
    check_prompts,
    progress_bar,
    sample_generators,
    step_callbacks,
)
from lvdm.video import OutputType, check_output_type, convert_pixels


class AICLPipeline:
    """A frozen base model and what lets it read references. Without an adapter it is the base model alone.

    `base` is lvdm's pipeline and stays usable: called directly, it reads no references.
    `files`: where the model was loaded from, None if it was put together from parts.
    `first_reference_until`: the default of that option, which belongs to an adapter: a folder may bring one.
    `timings`: seconds of the last call's phases, in order: text, references (reading and encoding the videos), prism,
    first_step (of sampling; it makes the keys and values of R), sampling (all other steps), decode.
    """

    def __init__(
        self,
        base: VideoPipeline,
        prism: ActionPrism | None = None,
        integrated: IntegratedBackbone | None = None,
        info: AdapterInfo | None = None,
    ) -> None:
        self.base, self.info = base, info
        self.files: ModelFiles | None = None
        self.timings: dict[str, float] = {}
        self.first_reference_until = 0.0
        self._use(prism, integrated)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> "AICLPipeline":
        """Load a folder of `save_pretrained`, a plain model folder, the folder of a run that trained a base model, a
        folder of a diffusers pipeline, or the name of one on the Hugging Face Hub.

        `adapter`, a file or the run that trained it, replaces the folder's own. `torch_dtype` None: as stored, but
        float32 on the CPU, where half precision is several times slower.
        Raises CheckpointError for what is missing or does not fit together.
        """
        if not isinstance(torch_dtype, torch.dtype | None):
            raise ConfigError(f"torch_dtype must be a type of torch, such as torch.float16, got {torch_dtype!r}")
        if torch_dtype is None and torch.device(device or "cpu").type == "cpu":
            torch_dtype = torch.float32
        files = find_model_files(path, adapter)
        pipeline = cls(load_pipeline(files.base, device=device, dtype=torch_dtype))
        if files.adapter is not None:
            pipeline.load_adapter(files.adapter)
        pipeline.files, pipeline.first_reference_until = files, files.first_reference_until
        return pipeline

    def load_adapter(self, path: str | os.PathLike[str]) -> AdapterInfo:
        """Put an adapter file on, in place of the present one. Errors and warnings: see `aicl.adapter.load_adapter`."""
        self.remove_adapter()
        prism, integrated, self.info = load_adapter(path, self.base.components.unet)
        if self.files is not None:
            self.files = ModelFiles(self.files.base, Path(path))
        self._use(prism, integrated)
        return self.info

    def remove_adapter(self) -> None:
        """Give the base model back as it was."""
        if self.integrated is not None:
            self.integrated.unpatch()
        if self.files is not None:
            self.files = ModelFiles(self.files.base)
        self.info, self.first_reference_until = None, 0.0
        self._use(None, None)

    def save_pretrained(self, folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> None:
        """Write a folder for `from_pretrained`: the base model (or only a pointer to `base`) and the adapter.

        Raises CheckpointError if `folder` has content already, ConfigError if there is no adapter to save.
        """
        prism, integrated = self._adapter()
        pointer = FolderConfig(first_reference_until=self.first_reference_until)
        if base is not None:
            pointer.base = str(Path(base).resolve())
        meta = {} if self.info is None else {"step": self.info.step, "fps": self.info.fps, **self.info.notes}
        with new_folder(folder) as temporary:
            if base is None:
                self.base.save(temporary / pointer.base)
            save_adapter(temporary / pointer.adapter, prism, integrated, meta)
            configs.save(temporary / FOLDER_FILE, configs.to_mapping(pointer))

    def accelerate(self, mode: Mode = "auto", expected_steps: int | None = None) -> "AICLPipeline":
        """Choose how the UNet runs from now on, see `lvdm.acceleration`: auto, none, graphs or full."""
        self._patched.acceleration = self.base.accelerate(mode, expected_steps).acceleration
        return self

    @property
    def defaults(self) -> GenerationDefaults:
        """What a call uses where it says nothing: the base model's, at the rate that the adapter was trained at."""
        return at_adapter_rate(self.base.config.defaults, self.info)

    @property
    def device(self) -> torch.device:
        """Where the base model's UNet is."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the UNet's weights."""
        return self.base.components.unet.dtype

    @property
    def compiled(self) -> Mode:
        """How the UNet ran in the last call: what the mode "auto" of `accelerate` came to."""
        return self._patched.acceleration.used(self._patched.components.unet)

    def to(
        self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> "AICLPipeline":
        """Move and cast every part in place; either may be given alone, in any order."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.base.to(device, dtype)
        self._patched.offload = self.base.offload
        for module in self._trained():
            module.to(device=device, dtype=dtype)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep all parts in the CPU's memory and bring each to `device` only while it works: less memory there."""
        self.to("cpu")
        self.base.enable_model_cpu_offload(device)
        self._patched.offload = self.base.offload

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """See `VideoPipeline.enable_vae_slicing`."""
        self.base.enable_vae_slicing(frames)

    def __repr__(self) -> str:
        config, defaults = self.base.config, self.defaults
        image = "image-to-video" if self.base.takes_image else "text-to-video"
        where = "" if self.files is None else f" from {self.files.base}"
        lines = [
            f"AICLPipeline: {config.family}, {image}{where}, on {self.device} in {str(self.dtype).split('.')[1]}",
            f"  videos: {defaults.num_frames} frames of {defaults.width}x{defaults.height} at {defaults.save_fps} fps",
            f"  defaults: num_inference_steps={defaults.num_inference_steps}, guidance_scale={defaults.guidance_scale},"
            f" first_reference_until={self.first_reference_until}",
        ]
        if self.prism is None:
            return "\n".join([*lines, "  no adapter: it reads no references"])
        size = sum(p.numel() for module in self._trained() for p in module.parameters())
        step = f", trained for {self.info.step} steps" if self.info is not None else ""
        return "\n".join([*lines, f"  adapter: {size / 1e6:.1f} M parameters{step}"])

    @torch.no_grad()
    @takes_options(SamplingOptions)
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        references: Any = (),
        image: ImageLike | Sequence[ImageLike] | None = None,
        seed: int | Sequence[int] = 0,
        generator: Generator | Sequence[Generator] | None = None,
        output_type: OutputType = "pixels",
        callback_on_step_end: StepCallback | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Any:
        """Generate one video for each prompt, with its action shown by references: uint8 (b, t, h, w, 3).

        references: one or several for all prompts, or a list of them for each; a `Reference`, or its shorthand: a path,
        a folder of frames, pixels uint8 (t, h, w, 3), a list of PIL images, or motion features.
        options: those of `aicl.options.SamplingOptions`; the other arguments are those of
        `lvdm.pipeline.VideoPipeline.__call__`.

        Raises UserError for arguments that the model cannot take, and files that cannot be read.
        """
        given = read_options(SamplingOptions, options)
        settings = SamplingOptions(**given.filled(self.defaults))
        prompts, (num_frames, size) = check_prompts(prompt), settings.clip()
        check_output_type(output_type)
        rows = reference_rows(references, len(prompts))
        if not rows and {given.reference_guidance_scale, given.first_reference_until, given.reference_fps} != {None}:
            raise ConfigError("options of references mean nothing without references: give some")
        clock = Clock(self.device)
        generators = sample_generators(seed, generator, len(prompts))
        x_T = self.base.initial_noise(generators, num_frames=num_frames, size=size)
        positive, negative = self.base.conditions(
            prompts,
            image,
            size=size,
            fps=settings.fps,
            negative_prompt=settings.negative_prompt,
            num_frames=num_frames,
        )
        clock.lap("text")
        context = None
        if rows:
            fps = settings.reference_fps or self.defaults.save_fps
            features = self._motion_features(rows, prompts, num_frames, size, fps, clock)
            context = self._reference_context(features, rows, len(prompts), settings)
        guidance_scale = cast(float, settings.guidance_scale)  # every model has a default
        embedded = self.base.tell_guidance(guidance_scale)
        latents = self._patched.sample_latents(
            *_branches(negative, positive, context, guidance_scale, settings.reference_guidance_scale, embedded),
            x_T,
            num_inference_steps=settings.num_inference_steps,
            sampler=settings.sampler,
            eta=settings.eta,
            step_cache=settings.step_cache,
            generators=generators,
            callback=clock.steps(step_callbacks(self, callback_on_step_end, progress_bar() if progress else None)),
        )
        clock.lap("sampling")
        pixels = self.base.decode(latents)
        clock.lap("decode")
        self.timings = clock.laps
        return convert_pixels(pixels, output_type)

    @torch.no_grad()
    def encode_references(
        self,
        references: Any,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        reference_fps: float | None = None,
    ) -> MotionFeatures:
        """R of references as a call takes them, in one call of the prism (eq. 4-6).

        prompt: one or several as in a call, the captions of the references that have none of their own. A video becomes
        a clip of `num_frames` frames of `height` x `width` pixels, sampled at `reference_fps` (1/s); the defaults are
        those of the base model's own videos. The result can be saved, and given as a reference, or its file can.
        """
        options = SamplingOptions(num_frames=num_frames, height=height, width=width, reference_fps=reference_fps)
        settings = SamplingOptions(**options.filled(self.defaults))
        prompts, (num_frames, size) = check_prompts(prompt), settings.clip()
        rows = reference_rows(references, len(prompts))
        if not rows:
            raise ConfigError("there is no reference to encode: give at least one")
        fps = reference_fps or self.defaults.save_fps
        return self._motion_features(rows, prompts, num_frames, size, fps, Clock(self.device))

    def _motion_features(
        self,
        rows: list[list[Reference]],
        prompts: list[str],
        num_frames: int,
        size: tuple[int, int],
        fps: float,
        clock: Clock,
    ) -> MotionFeatures:
        """R of rows of references, those that are motion features already as they are, the videos through the prism."""
        prism, _ = self._adapter()
        rows = captioned(rows, prompts)
        given = [_is_features(reference) for reference in rows[0]]
        if any([_is_features(reference) for reference in row] != given for row in rows):
            raise ConfigError("every prompt needs videos and motion features at the same places among its references")
        columns: list[MotionFeatures] = []
        if not all(given):
            videos = [[each for each, known in zip(row, given) if not known] for row in rows]
            columns = self._encode(videos, num_frames, size, fps, clock).split()
        for place in (number for number, known in enumerate(given) if known):
            columns.insert(place, stacked([row[place].video for row in rows]))
        if not all(column.prism.matches(Fingerprint.of(prism)) for column in columns):
            raise CheckpointError("these references were encoded with another adapter: encode their videos again")
        return concatenate(columns)

    def _encode(
        self, rows: list[list[Reference]], num_frames: int, size: tuple[int, int], fps: float, clock: Clock
    ) -> MotionFeatures:
        """R of rows of captioned videos, in one call of the prism; each different video is read and encoded once."""
        prism, _ = self._adapter()
        everything = [reference for row in rows for reference in row]
        different = {reference_key(reference)[0]: reference for reference in everything}
        clips = {video: read_clip(reference, num_frames, size, fps) for video, reference in different.items()}
        pixels = torch.stack(list(clips.values())).to(self.device)  # (videos, 3, t, h, w)
        self.base.bring(self.base.components.codec)
        latents = self.base.components.codec.posterior(pixels).mode()  # (videos, c, t, h/f, w/f)
        context = self.base.encode_prompt([str(reference.caption) for reference in everything])  # (b * k, tokens, d)
        order = [list(clips).index(reference_key(reference)[0]) for reference in everything]
        if self.base.takes_image:  # AP gets the condition of the base model: text and first frame
            image = self.base.encode_image(pixels[:, :, 0])
            context = torch.cat([context, image[order].to(context.dtype)], dim=1)
        clock.lap("references")
        shape = (len(rows), len(rows[0]))
        self.base.bring(prism)
        features = prism(latents[order].unflatten(0, shape), context.unflatten(0, shape))
        clock.lap("prism")
        sources = [str(each.video) if isinstance(each.video, Path) else "pixels" for each in rows[0]]
        return MotionFeatures(features, (latents.shape[2],) * shape[1], Fingerprint.of(prism), sources)

    def _reference_context(
        self, features: MotionFeatures, rows: list[list[Reference]], samples: int, settings: SamplingOptions
    ) -> ReferenceContext | None:
        """What the UNet reads: R with the references' weights and strength, and until when the first is read alone."""
        _, integrated = self._adapter()
        if len(features.features) not in (1, samples):
            raise ConfigError(f"these references were encoded for {len(features.features)} prompts, not for {samples}")
        weights = [reference.weight for reference in rows[0]]
        if any([reference.weight for reference in row] != weights for row in rows):
            raise ConfigError("the weights of references must be the same for all prompts of a call")
        if len(weights) != len(features.frames):  # one file of several references: its weight is that of each
            counts = [len(each.video.frames) if _is_features(each) else 1 for each in rows[0]]
            weights = [weight for weight, count in zip(weights, counts) for _ in range(count)]
        until = settings.first_reference_until
        until = self.first_reference_until if until is None else until
        timestep = self.base.components.schedule.told_at(until) if until else None
        frames = features.features.to(self.device), features.frames
        return integrated.reference_context(*frames, weights, settings.scale, timestep)

    def _adapter(self) -> tuple[ActionPrism, IntegratedBackbone]:
        if self.prism is None or self.integrated is None:
            raise ConfigError(
                "there is no adapter, so references cannot be read: give one with load_adapter, or --adapter"
            )
        return self.prism, self.integrated

    def _trained(self) -> list[nn.Module]:
        """The two trained parts; none without an adapter."""
        return [] if self.prism is None or self.integrated is None else [self.prism, self.integrated.blocks]

    def _use(self, prism: ActionPrism | None, integrated: IntegratedBackbone | None) -> None:
        """Take prism and integration, in the base model's dtype and without gradients, or none."""
        self.base.acceleration.forget()  # what was captured with another adapter, or none
        self.prism, self.integrated, self._patched = prism, integrated, self.base
        if integrated is not None:
            unet = self.base.components.unet
            for module in self._trained():
                module.to(device=next(unet.parameters()).device, dtype=unet.dtype).eval().requires_grad_(False)
            self._patched = self.base.with_unet(integrated)


def _branches(
    negative: Condition,
    positive: Condition,
    context: ReferenceContext | None,
    guidance_scale: float,
    reference_guidance_scale: float | None,
    embedded: bool = False,
) -> tuple[list[Condition], list[float]]:
    """Guidance branches and their weights: e(none), e(text) where it has a strength of its own, e(text, R).

    A model that was distilled with guidance (`embedded`) is told g and has no e(none).
    """
    g, r = guidance_scale, reference_guidance_scale
    full = positive if context is None else replace(positive, extras={**positive.extras, "references": context})
    if context is None or r is None:
        return ([full], [1.0]) if embedded else ([negative, full], [1 - g, g])
    if embedded:
        return [positive, full], [1 - r, r]
    return [negative, positive, full], [1 - g, g - r, r]


def _is_features(reference: Reference) -> bool:
    return isinstance(reference.video, MotionFeatures)
