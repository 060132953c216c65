"""Generating with reference videos (Algorithm 2): lvdm's pipeline, with R in its conditional branch."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aicl.action_prism import ActionPrism
from aicl.adapter import AdapterInfo, Fingerprint, load_adapter, save_adapter
from aicl.clock import Clock
from aicl.integrated_backbone import IntegratedBackbone
from aicl.model_files import FOLDER_FILE, FolderConfig, check_lead, find_model_files
from aicl.motion_features import ENDING, MotionFeatures, concatenate
from aicl.reference_context import ReferenceContext
from lvdm import config as configs
from lvdm.acceleration import Mode
from lvdm.checkpoints import load_pipeline, save_pipeline
from lvdm.checkpoints.folder import new_folder
from lvdm.diffusion import Condition, make_generators
from lvdm.errors import CheckpointError, ConfigError, VideoError
from lvdm.pipeline import ImageLike, VideoPipeline, progress_bar, sample_seeds
from lvdm.video import frame_indices, load_clip, probe, resize_crop, to_frames

Video = str | os.PathLike | Tensor
"""A video file, or pixels uint8 (t, h, w, 3)."""
Reference = Video | MotionFeatures
"""A video, encoded references, or their file (.safetensors)."""


class AICLPipeline:
    """A frozen base model and what lets it read references. Without an adapter it is the base model alone.

    `base` is lvdm's pipeline and stays usable: called directly, it reads no references.
    `lead`: the default of a call's `lead`, which belongs to an adapter: a folder may bring one.
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
        self.timings: dict[str, float] = {}
        self.lead = 0.0
        self._use(prism, integrated)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        adapter: str | os.PathLike | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "AICLPipeline":
        """Load a folder of `save_pretrained`, a plain model folder, or the folder of a run that trained a base model.

        `adapter`, a file or the run that trained it, replaces the folder's own. `dtype` None: as stored, but float32 on
        the CPU, where half precision is several times slower.
        Raises CheckpointError for what is missing or does not fit together.
        """
        if dtype is None and torch.device(device or "cpu").type == "cpu":
            dtype = torch.float32
        files = find_model_files(path, adapter)
        pipeline = cls(load_pipeline(files.base, device=device, dtype=dtype))
        if files.adapter is not None:
            pipeline.load_adapter(files.adapter)
        pipeline.lead = files.lead
        return pipeline

    def load_adapter(self, path: str | os.PathLike) -> AdapterInfo:
        """Put an adapter file on, in place of the present one. Errors and warnings: see `aicl.adapter.load_adapter`."""
        self.remove_adapter()
        prism, integrated, self.info = load_adapter(path, self.base.components.unet)
        self._use(prism, integrated)
        return self.info

    def remove_adapter(self) -> None:
        """Give the base model back as it was."""
        if self.integrated is not None:
            self.integrated.unpatch()
        self.info, self.lead = None, 0.0
        self._use(None, None)

    def save_pretrained(self, folder: str | os.PathLike, base: str | os.PathLike | None = None) -> None:
        """Write a folder for `from_pretrained`: the base model (or only a pointer to `base`) and the adapter.

        Raises CheckpointError if `folder` has content already, ConfigError if there is no adapter to save.
        """
        prism, integrated = self._adapter()
        pointer = FolderConfig(lead=self.lead)
        if base is not None:
            pointer.base = str(Path(base).resolve())
        meta = {} if self.info is None else {"step": self.info.step, **self.info.notes}
        with new_folder(folder) as temporary:
            if base is None:
                save_pipeline(self.base.components, self.base.config, temporary / pointer.base)
            save_adapter(temporary / pointer.adapter, prism, integrated, meta)
            configs.save(temporary / FOLDER_FILE, configs.to_mapping(pointer))

    def accelerate(self, mode: Mode = "auto", expected_steps: int | None = None) -> "AICLPipeline":
        """Choose how the UNet runs from now on, see `lvdm.acceleration`: auto, none, graphs or full."""
        self._patched.acceleration = self.base.accelerate(mode, expected_steps).acceleration
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "AICLPipeline":
        """Move and cast every part in place."""
        self.base.to(device, dtype)
        if self.prism is not None:
            self.prism.to(device=device, dtype=dtype)
            self.integrated.blocks.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        references: Reference | Sequence[Reference] | Sequence[Sequence[Video]] = (),
        reference_captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
        reference_fps: float | None = None,
        weights: Sequence[float] | None = None,
        scale: float = 1.0,
        lead: float | None = None,
        image: ImageLike | Sequence[ImageLike] | None = None,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        reference_guidance: float | None = None,
        fps: int | None = None,
        seed: int | Sequence[int] = 0,
        sampler: str = "ddim",
        eta: float | None = None,
        negative_prompt: str | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Generate one video for each prompt, with its action shown by references: uint8 (b, t, h, w, 3).

        references: one or several for all prompts, or one list for each. reference_captions: likewise; by default the
        prompt.
        reference_fps: the rate (1/s) at which reference videos are sampled, by default that of the model's videos.
        weights: w_i >= 0 for each reference, 0 leaves it out. scale: strength of R, 0 gives the base model's video.
        lead: share of the noise levels, from the noisiest on, at which the first of several references is read alone.
        There the course of a motion is decided, and a mixture of two courses is neither. 0, the paper's way, reads all
        references always, whose order then does not matter.
        guidance: strength of the text, and of R where `reference_guidance` is None: R belongs to the conditional branch
        only. A number adds a third branch: e = e(none) + guidance * (e(text) - e(none)) + reference_guidance *
        (e(text, R) - e(text)). The others are those of `lvdm.pipeline.VideoPipeline`.

        Raises UserError for arguments that the model cannot take, and files that cannot be read.
        """
        clock = Clock(self.base.device)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        size = tuple(size or self.base.config.defaults.size)
        guidance = self.base.config.defaults.guidance if guidance is None else guidance
        generators = make_generators(sample_seeds(seed, len(prompts)))
        x_T = self.base.initial_noise(generators, num_frames=num_frames, size=size)
        positive, negative = self.base.conditions(prompts, image, size=size, fps=fps, negative_prompt=negative_prompt)
        clock.lap("text")
        memory = None
        references = _listed(references)
        if references:
            encoded = self._encoded(references, reference_captions, prompts, x_T.shape[2], size, reference_fps, clock)
            memory = self._memory(encoded, len(prompts), weights, scale, self.lead if lead is None else lead)
        elif reference_guidance is not None or reference_captions or weights is not None or lead is not None:
            raise ConfigError(
                "reference captions, weights, guidance and lead mean nothing without references: give some"
            )
        branches, branch_weights = _branches(negative, positive, memory, guidance, reference_guidance)
        latents = self._patched.sample_latents(
            branches,
            branch_weights,
            x_T,
            steps=steps,
            sampler=sampler,
            eta=eta,
            generators=generators,
            callback=clock.steps(progress_bar() if progress else None),
        )
        clock.lap("sampling")
        pixels = self.base.decode(latents)
        clock.lap("decode")
        self.timings = clock.laps
        return pixels

    @torch.no_grad()
    def encode_references(
        self,
        references: Video | Sequence[Video] | Sequence[Sequence[Video]],
        captions: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
    ) -> MotionFeatures:
        """R of one list of videos for all samples, or of one list for each, in one call of the prism (eq. 4-6).

        captions: one for all, one for each video, or in lists like the videos. A video becomes a clip of `num_frames`
        frames of `size` (h, w), sampled at `fps`; the defaults are those of the base model's own videos.
        The result can be saved, and given as a reference, or its file can.
        """
        defaults = self.base.config.defaults
        frames = defaults.num_frames if num_frames is None else num_frames
        fps = defaults.save_fps if fps is None else fps
        clock = Clock(self.base.device)
        return self._encode(*_rows(_listed(references), captions), frames, tuple(size or defaults.size), fps, clock)

    def read_clip(self, video: Video, num_frames: int, size: tuple[int, int], fps: float) -> Tensor:
        """What the prism sees of a reference video: frames (3, t, h, w) in [-1, 1], from its middle.

        Raises VideoError or ConfigError for what is no reference, see `check_reference`.
        """
        check_reference(video)
        if isinstance(video, Tensor):
            return to_frames(resize_crop(video[frame_indices(len(video), num_frames, source_fps=fps)], size))
        return load_clip(video, num_frames, size, fps=fps)

    def _encoded(
        self,
        references: Sequence[Reference] | Sequence[Sequence[Video]],
        captions: Sequence[str] | Sequence[Sequence[str]] | None,
        prompts: list[str],
        num_frames: int,
        size: tuple[int, int],
        fps: float | None,
        clock: Clock,
    ) -> MotionFeatures:
        """R of whatever kind of references a call was given."""
        self._adapter()
        kinds = [isinstance(item, MotionFeatures) or is_encoded_file(item) for item in references]
        if any(kinds):
            if not all(kinds):
                raise ConfigError("give either videos or encoded references: encode the videos with encode_references")
            parts = [item if isinstance(item, MotionFeatures) else MotionFeatures.load(item) for item in references]
            if not all(part.prism.matches(Fingerprint.of(self.prism)) for part in parts):
                raise CheckpointError("these references were encoded with another adapter: encode their videos again")
            return concatenate(parts)
        rows, texts = _rows(references, captions if captions else [[prompt] for prompt in prompts])
        if len(rows) not in (1, len(prompts)):
            raise ConfigError(f"{len(prompts)} prompts need one list of references or {len(prompts)}, got {len(rows)}")
        fps = self.base.config.defaults.save_fps if fps is None else fps
        return self._encode(rows, texts, num_frames, size, fps, clock)

    def _encode(
        self,
        rows: list[list[Video]],
        texts: list[list[str]],
        num_frames: int,
        size: tuple[int, int],
        fps: float,
        clock: Clock,
    ) -> MotionFeatures:
        prism, _ = self._adapter()
        clips, numbers = [], {}  # each different video is read and encoded once
        for video in (video for row in rows for video in row):
            if _key(video) not in numbers:
                numbers[_key(video)] = len(clips)
                clips.append(self.read_clip(video, num_frames, size, fps))
        pixels = torch.stack(clips).to(self.base.device)  # (videos, 3, t, h, w)
        latents = self.base.components.codec.posterior(pixels).mode()  # (videos, c, t, h/f, w/f)
        context = self.base.encode_prompt([text for row in texts for text in row])  # (b * k, tokens, d)
        order = [numbers[_key(video)] for row in rows for video in row]
        if self.base.takes_image:  # AP gets the condition of the base model: text and first frame
            image = self.base.encode_image(pixels[:, :, 0])
            context = torch.cat([context, image[order].to(context.dtype)], dim=1)
        clock.lap("references")
        shape = (len(rows), len(rows[0]))
        features = prism(latents[order].unflatten(0, shape), context.unflatten(0, shape))
        clock.lap("prism")
        sources = ["pixels" if isinstance(video, Tensor) else str(video) for video in rows[0]]
        return MotionFeatures(features, (num_frames,) * shape[1], Fingerprint.of(prism), sources)

    def _memory(
        self, encoded: MotionFeatures, samples: int, weights: Sequence[float] | None, scale: float, lead: float
    ) -> ReferenceContext | None:
        _, integrated = self._adapter()
        until = round((1 - check_lead(lead)) * len(self.base.components.schedule)) if lead else None
        if len(encoded.features) not in (1, samples):
            raise ConfigError(f"these references were encoded for {len(encoded.features)} prompts, not for {samples}")
        features = encoded.features.to(self.base.device)
        return integrated.reference_context(features, encoded.frames, weights, scale, until)

    def _adapter(self) -> tuple[ActionPrism, IntegratedBackbone]:
        if self.prism is None:
            raise ConfigError(
                "there is no adapter, so references cannot be read: give one with load_adapter, or --adapter"
            )
        return self.prism, self.integrated

    def _use(self, prism: ActionPrism | None, integrated: IntegratedBackbone | None) -> None:
        """Take prism and integration, in the base model's dtype and without gradients, or none."""
        self.base.acceleration.forget()  # what was captured with another adapter, or none
        self.prism, self.integrated, self._patched = prism, integrated, self.base
        if prism is not None:
            unet = self.base.components.unet
            for module in (prism, integrated.blocks):
                module.to(device=self.base.device, dtype=unet.dtype).eval().requires_grad_(False)
            components = replace(self.base.components, unet=integrated)
            self._patched = VideoPipeline(components, self.base.config, self.base.acceleration)


def check_reference(video: Video) -> None:
    """Raise VideoError for a file that cannot be read, or a still image, however it is called: it shows no action.

    Raises ConfigError for pixels that are not uint8 (t, h, w, 3).
    """
    if isinstance(video, Tensor):
        if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[-1] != 3:
            raise ConfigError(f"reference pixels must be uint8 (t, h, w, 3), got {video.dtype} {tuple(video.shape)}")
        name, frames = "reference pixels", len(video)
    else:
        name, frames = str(video), probe(video).num_frames
    if frames < 2:
        raise VideoError(f"{name}: a single frame shows no action; give a video of it as reference")


def _branches(
    negative: Condition,
    positive: Condition,
    memory: ReferenceContext | None,
    guidance: float,
    reference_guidance: float | None,
) -> tuple[list[Condition], list[float]]:
    """Guidance branches and their weights: e(none), e(text) where it has a strength of its own, e(text, R)."""
    if memory is None:
        return [negative, positive], [1 - guidance, guidance]
    full = replace(positive, extras={"references": memory})
    if reference_guidance is None:
        return [negative, full], [1 - guidance, guidance]
    return [negative, positive, full], [1 - guidance, guidance - reference_guidance, reference_guidance]


def _listed(references: Reference | Sequence[Any]) -> Sequence[Any]:
    """A single reference as a list of one."""
    return [references] if isinstance(references, str | os.PathLike | Tensor | MotionFeatures) else references


def _rows(
    references: Sequence[Video] | Sequence[Sequence[Video]], captions: str | Sequence[str] | Sequence[Sequence[str]]
) -> tuple[list[list[Video]], list[list[str]]]:
    """References and captions as lists of equal length for each sample; one list if all samples share everything.

    A list of one caption serves all references of its sample.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    rows = [list(row) for row in references] if isinstance(references[0], list | tuple) else [list(references)]
    texts = [captions] if isinstance(captions[0], str) else [list(row) for row in captions]
    count = max(len(rows), len(texts))
    rows, texts = (x * count if len(x) == 1 else x for x in (rows, texts))
    texts = [text * len(row) if len(text) == 1 else text for row, text in zip(rows, texts)]
    lengths = {len(row) for row in rows}
    if len(rows) != len(texts) or len(lengths) != 1 or lengths == {0}:
        raise ConfigError(f"every prompt needs the same number of references, got {[len(row) for row in rows]}")
    if [len(text) for text in texts] != [len(row) for row in rows]:
        raise ConfigError(
            f"got {len(texts[0])} captions for {len(rows[0])} reference(s): give one for all of them, or one for each"
        )
    if all(list(map(_key, row)) == list(map(_key, rows[0])) for row in rows) and all(
        text == texts[0] for text in texts
    ):
        return rows[:1], texts[:1]
    return rows, texts


def _key(video: Video) -> str | int:
    return id(video) if isinstance(video, Tensor) else str(video)


def is_encoded_file(item: object) -> bool:
    """Whether a reference is given as a file of `MotionFeatures`."""
    return isinstance(item, str | os.PathLike) and Path(item).suffix == ENDING
