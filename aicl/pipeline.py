"""Generating with reference videos (Algorithm 2): lvdm's pipeline, with R in its conditional branch."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Generator, nn

from aicl.action_prism import ActionPrism
from aicl.adapter import AdapterInfo, at_adapter_rate, load_adapter, save_adapter
from aicl.clock import Clock
from aicl.guidance import branches
from aicl.integrated_backbone import IntegratedBackbone, integrate
from aicl.model_files import FOLDER_FILE, FolderConfig, ModelFiles, find_model_files
from aicl.motion_features import MotionFeatures
from aicl.options import Reference, SamplingOptions
from aicl.reference_context import ReferenceContext
from aicl.reference_domain import ReferenceCheck, ReferenceDomain, domain_file, find_domain
from aicl.reference_encoder import ReferenceEncoder
from aicl.reference_encoding import encode_rows, is_features, weights_and_spans
from aicl.reference_videos import reference_rows
from lvdm import config as configs
from lvdm.acceleration import Mode
from lvdm.arguments import check_device, check_dtype, check_number, check_path
from lvdm.bases.loading import save_base
from lvdm.checkpoints import load_pipeline
from lvdm.checkpoints.folder import new_folder
from lvdm.checkpoints.hub import download, upload
from lvdm.errors import ConfigError, UserError
from lvdm.models.components import GenerationDefaults
from lvdm.options import read_options, takes_options
from lvdm.outside import is_hub_id
from lvdm.pipeline import (
    ImageLike,
    StepCallback,
    VideoPipeline,
    check_call,
    check_prompts,
    progress_bar,
    sample_generators,
    step_callbacks,
)
from lvdm.video import OutputType, convert_pixels


class AICLPipeline:
    """A frozen base model and what lets it read references. Without an adapter it is the base model alone.

    `base` is lvdm's pipeline and stays usable: called directly, it reads no references.
    `files`: where the model was loaded from, None if it was put together from parts.
    `first_reference_until`: the default of that option, which belongs to an adapter: a folder may bring one.
    `timings`: seconds of the last call's phases, in order: text, references (reading and encoding the videos), prism,
    first_step (of sampling; it makes the keys and values of R), sampling (all other steps), decode.
    domain: what references are usual for the adapter, where a statistic lies beside its file; `reference_checks`: how
    far those of the last call were from them, for each prompt's row of references (one row if all share them).
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
        self.adapter_scale = 1.0
        self.domain: ReferenceDomain | None = None
        self.reference_checks: list[list[ReferenceCheck]] = []
        self._use(prism, integrated)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        adapter: str | os.PathLike[str] | None = None,
        device: torch.device | str | None = None,
        torch_dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> "AICLPipeline":
        """Load a folder of `save_pretrained`, a plain model folder, the folder of a run that trained a base model, a
        folder of a diffusers pipeline, or the name of one on the Hugging Face Hub.

        `path` may also be OWNER/NAME of the Hugging Face Hub, with `hub` options revision, cache_dir, token and
        local_files_only. `adapter`, a file or the run that trained it, replaces the folder's own. `torch_dtype` None:
        as stored, but float32 on the CPU, where half precision is several times slower.
        Raises CheckpointError for what is missing or does not fit together, ConfigError for wrong types.
        """
        if unknown := sorted(hub.keys() - {"revision", "cache_dir", "token", "local_files_only"}):
            raise ConfigError(
                f"from_pretrained takes no '{unknown[0]}': it takes adapter, device, torch_dtype and the "
                "Hub's revision, cache_dir, token and local_files_only"
            )
        check_path(path, "the model")
        if adapter is not None:
            check_path(adapter, "the adapter")
        check_dtype(torch_dtype)
        device = None if device is None else check_device(device)
        if is_hub_id(path):
            path = download(str(path), **hub)
        if torch_dtype is None and torch.device(device or "cpu").type == "cpu":
            torch_dtype = torch.float32
        files = find_model_files(path, adapter)
        pipeline = cls(load_pipeline(files.base, device=device, dtype=torch_dtype))
        if files.adapter is not None:
            pipeline.load_adapter(files.adapter)
        pipeline.files, pipeline.first_reference_until = files, files.first_reference_until
        return pipeline

    def load_adapter(self, path: str | os.PathLike[str]) -> AdapterInfo:
        """Put an adapter file on, in place of the present one, which stays where the file cannot be used.

        Errors and warnings: see `aicl.adapter.load_adapter`.
        """
        check_path(path, "the adapter")
        before = self.prism, self.integrated, self.info, self.files, self.first_reference_until, self.domain
        domain = find_domain(Path(path))
        self.remove_adapter()
        unet = self.base.components.unet
        try:
            prism, integrated, self.info = load_adapter(path, unet)
        except UserError:
            old_prism, old, self.info, self.files, self.first_reference_until, self.domain = before
            if old is not None:  # put it on again
                again = integrate(unet, old.config)
                again.blocks.load_state_dict(old.blocks.state_dict())
                self._use(old_prism, again)
            raise
        if self.files is not None:
            self.files = ModelFiles(self.files.base, Path(path))
        self._use(prism, integrated)
        self.domain = None if domain is None else domain.for_prism(prism)
        return self.info

    def remove_adapter(self) -> None:
        """Give the base model back as it was."""
        if self.integrated is not None:
            self.integrated.unpatch()
        if self.files is not None:
            self.files = ModelFiles(self.files.base)
        self.info, self.first_reference_until, self.domain = None, 0.0, None
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
                save_base(self.base, temporary / pointer.base)
            save_adapter(temporary / pointer.adapter, prism, integrated, meta)
            if self.domain is not None:
                self.domain.save(domain_file(temporary / pointer.adapter))
            configs.save(temporary / FOLDER_FILE, configs.to_mapping(pointer))

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
        check_dtype(dtype)
        device = None if device is None else check_device(device)
        self.base.to(device, dtype)
        self._patched.offload = self.base.offload
        for module in self._trained():
            module.to(device=device, dtype=dtype)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep all parts in the CPU's memory and bring each to `device` only while it works: less memory there."""
        device = check_device(device)
        self.to("cpu")
        self.base.enable_model_cpu_offload(device)
        self._patched.offload = self.base.offload

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """See `VideoPipeline.enable_vae_slicing`."""
        self.base.enable_vae_slicing(frames)

    def disable_vae_slicing(self) -> None:
        """Encode and decode as many frames at once as at first."""
        self.base.disable_vae_slicing()

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
        check_call(output_type, callback_on_step_end)
        rows = reference_rows(references, len(prompts))
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
            features = self._encoded(rows, prompts, shown, size, fps, clock)
            context = self._reference_context(features, rows, len(prompts), settings)
        guidance_scale = cast(float, settings.guidance_scale)  # every model has a default
        embedded = self.base.tell_guidance(guidance_scale)
        latents = self._patched.sample_latents(
            *branches(negative, positive, context, guidance_scale, settings.reference_guidance_scale, embedded),
            x_T,
            num_inference_steps=settings.num_inference_steps,
            sampler=settings.sampler,
            eta=settings.eta,
            step_cache=settings.step_cache,
            windows=settings.windows(),
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
        return self._encoded(rows, prompts, num_frames, size, fps, Clock(self.device))

    def _encoded(self, rows: list[list[Reference]], *how: Any) -> MotionFeatures:
        """R of rows of references, see `aicl.reference_encoding.encode_rows`, which are compared with the domain."""
        self._adapter()  # or there is nothing to encode with
        features, latents = encode_rows(self._encoder, rows, *how)
        if self.domain is not None:
            names = [each.name for each in rows[0] for _ in (each.video.frames if is_features(each) else [0])]
            parts = [part.features for part in features.split()]
            self.reference_checks = [
                self.domain.check(
                    names, [None if z is None else z[min(i, len(z) - 1)] for z in latents], [r[i] for r in parts]
                )
                for i in range(len(features.features))
            ]
        return features

    def _reference_context(
        self, features: MotionFeatures, rows: list[list[Reference]], samples: int, settings: SamplingOptions
    ) -> ReferenceContext | None:
        """What the UNet reads: R with the references' weights and strength, and when each of them is read."""
        _, integrated = self._adapter()
        if len(features.features) not in (1, samples):
            raise ConfigError(f"these references were encoded for {len(features.features)} prompts, not for {samples}")
        told, schedule = weights_and_spans(rows), self.base.components.schedule
        until, spans = settings.first_reference_until, None
        if any((start, end) != (0, 1) for _, start, end in told):
            if until:
                raise ConfigError("first_reference_until and references with a start or an end both say when: give one")
            spans = [schedule.told_between(start, end) for _, start, end in told]
        else:
            until = self.first_reference_until if until is None else until
        timestep = schedule.told_at(until) if until else None
        return integrated.reference_context(
            features.features.to(self.device),
            features.frames,
            [weight for weight, _, _ in told],
            settings.scale * self.adapter_scale,
            timestep,
            spans,
        )

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
        if prism is not None and integrated is not None:
            self._encoder = ReferenceEncoder(self.base, prism)
            unet = self.base.components.unet
            for module in self._trained():
                module.to(device=next(unet.parameters()).device, dtype=unet.dtype).eval().requires_grad_(False)
            self._patched = self.base.with_unet(integrated)
