"""Generating with reference videos (Algorithm 2): lvdm's pipeline, with R in its conditional branch."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

import torch
from torch import Generator

from aicl.action_prism import ActionPrism
from aicl.adapter import AdapterInfo, at_adapter_rate
from aicl.clock import Clock
from aicl.guidance import branches
from aicl.integrated_backbone import IntegratedBackbone
from aicl.loaded_adapter import LoadedAdapter
from aicl.model_files import FolderConfig, ModelFiles, adapter_file, fetch_model_files, with_references
from aicl.motion_features import MotionFeatures
from aicl.options import OF_ADAPTER, SamplingOptions
from aicl.reference_domain import ReferenceCheck, ReferenceDomain
from aicl.reference_videos import reference_rows
from lvdm.acceleration import Mode
from lvdm.arguments import check_device, check_dtype, check_number, check_path
from lvdm.callbacks import StepCallback, check_step_callback, progress_bar, step_callbacks
from lvdm.checkpoints import load_pipeline
from lvdm.checkpoints.folder import new_folder
from lvdm.checkpoints.hub import upload
from lvdm.errors import CheckpointError, ConfigError
from lvdm.inputs import ImageLike, check_prompts, sample_generators
from lvdm.models.components import GenerationDefaults
from lvdm.models.quantization import Quantization
from lvdm.options import read_options, takes_options
from lvdm.pipeline import VideoPipeline
from lvdm.video import OutputType, check_output_type, convert_pixels


class AICLPipeline:
    """A frozen base model and what lets it read references. Without an adapter it is the base model alone.

    `base` is lvdm's pipeline and stays usable: called directly, it reads no references.
    `files`: where the model was loaded from, None if it was put together from parts.
    `first_reference_until`, `guidance_scale`, `num_inference_steps`: defaults of these options with references, which
    belong to an adapter: a folder may bring them. Where the last two are None, references have the base model's.
    `timings`: seconds of the last call's phases, in order: text, references (reading and encoding the videos), prism,
    first_step (of sampling; it makes the keys and values of R), sampling (all other steps), decode.
    `reference_checks`: how far the references of the last call were from those usual for the adapter, see `domain`, for
    each prompt's row of references (one row if all share them); empty where that was not measured.
    """

    def __init__(
        self,
        base: VideoPipeline,
        prism: ActionPrism | None = None,
        integrated: IntegratedBackbone | None = None,
        info: AdapterInfo | None = None,
    ) -> None:
        if (prism is None) != (integrated is None):
            raise ConfigError("an adapter is a prism and an integration: give both, or neither")
        self.base = base
        self.files: ModelFiles | None = None
        self.timings: dict[str, float] = {}
        self.adapter_scale = 1.0
        self.reference_checks: list[list[ReferenceCheck]] = []
        self._use(None if prism is None or integrated is None else LoadedAdapter(base, prism, integrated, info))

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        torch_dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """Load a folder of `save_pretrained`, a plain model folder, the folder of a run that trained a base model, a
        folder of a diffusers pipeline, or the name of one on the Hugging Face Hub.

        `path` may also be OWNER/NAME of the Hugging Face Hub, with `hub` options revision, cache_dir, token and
        local_files_only. `adapter`, a file or the run that trained it, replaces the folder's own. `torch_dtype` None:
        as stored, but float32 on the CPU, where half precision is several times slower.
        Raises CheckpointError for what is missing or does not fit together, ConfigError for wrong types.
        """
        check_dtype(torch_dtype)
        device = None if device is None else check_device(device)
        if torch_dtype is None and torch.device(device or "cpu").type == "cpu":
            torch_dtype = torch.float32
        files = fetch_model_files(path, adapter, **hub)
        pipeline = cls(load_pipeline(files.base, device=device, dtype=torch_dtype))
        if files.adapter is not None:
            pipeline.load_adapter(files.adapter)
        pipeline.files = files
        for name in OF_ADAPTER:
            setattr(pipeline, name, getattr(files, name))
        return pipeline

    def load_adapter(self, path: str | os.PathLike[str]) -> AdapterInfo:
        """Put an adapter on, a file or the run that trained it, in place of the present one, which stays whatever keeps
        the file from being used.

        Errors and warnings: see `aicl.adapter.load_adapter`.
        """
        check_path(path, "the adapter")
        path = adapter_file(path)
        if self._adapter is not None:
            self._adapter.integrated.unpatch()
        try:
            adapter = LoadedAdapter.load(self.base, path)
        except BaseException:  # without its layers, references would be left out in silence
            if self._adapter is not None:
                self._adapter.integrated.patch()
            raise
        self._use(adapter)
        if self.files is not None:
            self.files = ModelFiles(self.files.base, path)
        assert adapter.info is not None
        return adapter.info

    def remove_adapter(self) -> None:
        """Give the base model back as it was."""
        if self._adapter is not None:
            self._adapter.integrated.unpatch()
        if self.files is not None:
            self.files = ModelFiles(self.files.base)
        self._use(None)

    def save_pretrained(self, folder: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> None:
        """Write a folder for `from_pretrained`: the base model (or only a pointer to `base`, a folder) and the adapter.

        Raises CheckpointError if `folder` has content already or `base` is none, ConfigError if there is no adapter to
        save.
        """
        adapter = self._reading()
        if base is not None and not Path(base).is_dir():
            raise CheckpointError(f"there is no model folder {base}: give one on this disk, or leave base out")
        pointer = FolderConfig(**{name: getattr(self, name) for name in OF_ADAPTER})
        if base is not None:
            pointer.base = str(Path(base).resolve())
        with new_folder(folder) as temporary:
            if base is None:
                self.base.save(temporary / pointer.base)
            adapter.save(temporary / pointer.adapter)
            pointer.save(temporary)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Save the model at OWNER/NAME of the Hugging Face Hub; returns the address of the change.

        Raises CheckpointError where that is not allowed, or the Hub cannot be reached; ConfigError without an adapter.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model")
            return upload(
                Path(folder) / "model",
                repo_id,
                private=private,
                revision=revision,
                commit_message=commit_message,
                token=token,
            )

    def set_adapter_scale(self, scale: float) -> None:
        """Multiply the strength of references by this number, from 0 up, in all calls from now on; 1 at first.

        As diffusers' set_ip_adapter_scale; a call's own `scale` is multiplied by it. Raises ConfigError.
        """
        self.adapter_scale = SamplingOptions(scale=check_number(scale, "scale")).scale

    def accelerate(self, mode: Mode = "auto", expected_steps: int | None = None) -> Self:
        """Choose how the UNet runs from now on, see `lvdm.acceleration`: auto, none, graphs or full."""
        self.base.accelerate(mode, expected_steps)
        return self

    def quantize(self, kind: Quantization = "fp8") -> Self:
        """Compute the base model's wide linear layers in 8 bits from now on, see `VideoPipeline.quantize`."""
        self.base.quantize(kind)
        return self

    @property
    def prism(self) -> ActionPrism | None:
        """The adapter's Action Prism, None without an adapter."""
        return None if self._adapter is None else self._adapter.prism

    @property
    def integrated(self) -> IntegratedBackbone | None:
        """The UNet with the adapter's Action Integration, None without an adapter."""
        return None if self._adapter is None else self._adapter.integrated

    @property
    def info(self) -> AdapterInfo | None:
        """What the adapter's file says about it, None where it was not loaded from one."""
        return None if self._adapter is None else self._adapter.info

    @property
    def domain(self) -> ReferenceDomain | None:
        """What references are usual for the adapter, None where that was not measured. Setting it needs an adapter."""
        return None if self._adapter is None else self._adapter.domain

    @domain.setter
    def domain(self, domain: ReferenceDomain | None) -> None:
        self._reading().domain = domain

    @property
    def defaults(self) -> GenerationDefaults:
        """What a call without references uses where it says nothing: the base model's, at the adapter's frame rate."""
        return at_adapter_rate(self.base.config.defaults, self.info)

    def defaults_with(self, references: bool) -> GenerationDefaults:
        """What a call uses where it says nothing: `defaults`, with references what the adapter has of its own."""
        own = (self.guidance_scale, self.num_inference_steps) if references else (None, None)
        return with_references(self.defaults, *own)

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
        return self.base.acceleration.used(self._sampler().components.unet)

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and cast every part in place; either may be given alone, in any order."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        check_dtype(dtype)
        device = None if device is None else check_device(device)
        self.base.to(device, dtype)
        for module in self._adapter.trained() if self._adapter is not None else ():
            module.to(device=device, dtype=dtype)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep all parts in the CPU's memory and bring each to `device` only while it works: less memory there, also by
        slices of the autoencoder, see `VideoPipeline.enable_model_cpu_offload`. `to` a device ends it."""
        device = check_device(device)
        self.to("cpu")
        self.base.enable_model_cpu_offload(device)

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """See `VideoPipeline.enable_vae_slicing`."""
        self.base.enable_vae_slicing(frames)

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many frames at once as at first."""
        self.base.disable_vae_slicing()

    def __repr__(self) -> str:
        config, defaults = self.base.config, self.defaults_with(references=self._adapter is not None)
        image = "image-to-video" if self.base.takes_image else "text-to-video"
        where = "" if self.files is None else f" from {self.files.base}"
        lines = [
            f"AICLPipeline: {config.family}, {image}{where}, on {self.device} in {str(self.dtype).split('.')[1]}",
            f"  videos: {defaults.num_frames} frames of {defaults.width}x{defaults.height} at {defaults.save_fps} fps",
            f"  defaults: num_inference_steps={defaults.num_inference_steps}, guidance_scale={defaults.guidance_scale},"
            f" first_reference_until={self.first_reference_until}",
        ]
        if self._adapter is None:
            return "\n".join([*lines, "  no adapter: it reads no references"])
        size = sum(p.numel() for module in self._adapter.trained() for p in module.parameters())
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
        given, prompts = read_options(SamplingOptions, options), check_prompts(prompt)
        rows = reference_rows(references, len(prompts))
        settings = SamplingOptions(**given.filled(self.defaults_with(references=bool(rows))))
        num_frames, size = settings.clip()
        check_output_type(output_type)
        check_step_callback(callback_on_step_end)
        if not rows and {given.reference_guidance_scale, given.first_reference_until, given.reference_fps} != {None}:
            raise ConfigError("options of references mean nothing without references: give some")
        clock = Clock(self.device)
        generators = sample_generators(seed, generator, len(prompts))
        x_T = self.base.initial_noise(generators, num_frames, size, settings.window_frames)
        positive, negative = self.base.conditions(
            prompts, image, size=size, fps=settings.fps, negative_prompt=settings.negative_prompt, num_frames=num_frames
        )
        clock.lap("text")
        context, self.reference_checks = None, []
        if rows:
            fps = settings.reference_fps or self.defaults.save_fps
            shown = min(num_frames, settings.window_frames or num_frames)  # a window is as long as a reference
            adapter = self._reading()
            features, self.reference_checks = adapter.encode(rows, prompts, shown, size, fps, clock)
            context = adapter.reference_context(
                features,
                rows,
                len(prompts),
                scale=settings.scale * self.adapter_scale,
                first_reference_until=settings.first_reference_until,
                default_until=self.first_reference_until,
            )
        bar = progress_bar("sampling with references" if rows else "sampling") if progress else None
        guidance_scale = cast(float, settings.guidance_scale)  # every model has a default
        embedded = self.base.tell_guidance(guidance_scale)
        latents = self._sampler().sample_latents(
            *branches(negative, positive, context, guidance_scale, settings.reference_guidance_scale, embedded),
            x_T,
            num_inference_steps=settings.num_inference_steps,
            sampler=settings.sampler,
            eta=settings.eta,
            step_cache=settings.step_cache,
            windows=settings.windows(),
            generators=generators,
            callback=clock.steps(step_callbacks(self, callback_on_step_end, bar)),
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
        encoded = self._reading().encode(rows, prompts, num_frames, size, fps, Clock(self.device))
        features, self.reference_checks = encoded
        return features

    def _reading(self) -> LoadedAdapter:
        """The adapter. Raises ConfigError where there is none."""
        if self._adapter is None:
            raise ConfigError(
                "there is no adapter, so references cannot be read: give one with load_adapter, with --adapter or, if "
                "a folder holds both, that folder as --model"
            )
        return self._adapter

    def _sampler(self) -> VideoPipeline:
        """The base pipeline, whose network reads R where there is an adapter."""
        return self.base if self._adapter is None else self.base.with_unet(self._adapter.integrated)

    def _use(self, adapter: LoadedAdapter | None) -> None:
        """Take an adapter or none, without any default of another's."""
        self.base.acceleration.forget()  # what was captured with another adapter, or none
        self._adapter, self.first_reference_until = adapter, 0.0
        self.guidance_scale: float | None = None
        self.num_inference_steps: int | None = None
