"""The encoder of reference videos: each is read and encoded once, the prism is called once, and both results are kept.

What was made last is kept by the content that it was made of, so the same references cost nothing at the next prompt or
seed of a program, and give the same bits.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aicl.action_prism import ActionPrism
from aicl.adapter import Fingerprint
from aicl.clock import Clock
from aicl.motion_features import MotionFeatures
from aicl.options import Reference
from aicl.reference_videos import check_reference, read_pixels, reference_key
from lvdm.hashing import file_hash, files_hash
from lvdm.pipeline import VideoPipeline
from lvdm.video import to_frames

KEPT = 8  # sets of references
T = TypeVar("T")


class ReferenceEncoder:
    """Makes R of references that are videos, with the prism and the base model that it is given.

    Kept are latents, for other captions of the same videos, and R, for other seeds of the same captions. What was kept
    is dropped where a weight has changed since, in place or by another; only what is written to `parameter.data` behind
    PyTorch's back is not noticed.
    """

    def __init__(self, base: VideoPipeline, prism: ActionPrism) -> None:
        self.base, self.prism = base, prism
        self._encoded: OrderedDict[Hashable, tuple[Tensor, Tensor | None]] = OrderedDict()
        self._features: OrderedDict[Hashable, tuple[Tensor, Tensor]] = OrderedDict()
        self._fingerprint: tuple[Hashable, Fingerprint] | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """The prism's, which its motion features carry."""
        state = _state(self.prism)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, Fingerprint.of(self.prism)
        return self._fingerprint[1]

    @torch.no_grad()
    def __call__(
        self, rows: list[list[Reference]], num_frames: int, size: tuple[int, int], fps: float, clock: Clock
    ) -> tuple[MotionFeatures, Tensor]:
        """R of b rows of k captioned videos, features (b, k * t, channels, h/f, w/f), and the videos' latents
        (b, k, c, t, h/f, w/f): t is num_frames, less where the autoencoder compresses time.

        size: (h, w) in pixels. fps: the rate (1/s) at which files are sampled. Ends the phases "references" and "prism"
        of `clock`. Raises VideoError or ConfigError for what is no reference.
        """
        parts = self.base.components
        everything = [reference for row in rows for reference in row]
        different = {reference_key(reference)[0]: reference for reference in everything}
        clips = [_Clip(reference, num_frames, size, fps) for reference in different.values()]
        order = [list(different).index(reference_key(reference)[0]) for reference in everything]
        content = tuple(clip.content for clip in clips), num_frames, size, fps, self.base.device
        videos = content, _state(parts.codec, parts.image_encoder, parts.image_resampler)
        captions = tuple(str(reference.caption) for reference in everything)
        whole = videos, captions, tuple(order), len(rows), _state(parts.text, self.prism)
        known = whole in self._features

        def prepare() -> tuple[Tensor, Tensor]:
            latents, images = _kept(self._encoded, videos, lambda: self._encode(clips))
            context = self.base.encode_prompt(list(captions))  # (b * k, tokens, d)
            if images is not None:  # AP gets the condition of the base model: text and first frame
                context = torch.cat([context, images[order].to(context.dtype)], dim=1)
            return latents[order].unflatten(0, (len(rows), len(rows[0]))), context

        latents, context = (None, None) if known else prepare()
        clock.lap("references")

        def refine() -> tuple[Tensor, Tensor]:
            assert latents is not None and context is not None
            self.base.bring(self.prism)
            return self.prism(latents, context.unflatten(0, latents.shape[:2])), latents

        features, latents = (kept.clone() for kept in _kept(self._features, whole, refine))  # the caller's own
        clock.lap("prism")
        sources = [str(each.video) if isinstance(each.video, Path) else "pixels" for each in rows[0]]
        return MotionFeatures(features, (latents.shape[3],) * len(rows[0]), self.fingerprint, sources), latents

    def _encode(self, clips: "list[_Clip]") -> tuple[Tensor, Tensor | None]:
        """Latents (videos, c, t, h/f, w/f) and, for image-to-video, tokens of first frames (videos, 16, d)."""
        pixels = torch.stack([clip.pixels() for clip in clips])  # uint8: a quarter of what frames are, for the copy
        frames = to_frames(pixels.to(self.base.device))  # (videos, 3, t, h, w)
        codec = self.base.components.codec
        self.base.bring(codec)
        latents = codec.posterior(frames).mode()
        return latents, self.base.encode_image(frames[:, :, 0]) if self.base.takes_image else None


class _Clip:
    """What the prism sees of one reference, read when it is needed, and a hash of what that depends on."""

    def __init__(self, reference: Reference, num_frames: int, size: tuple[int, int], fps: float) -> None:
        self._options = reference, num_frames, size, fps
        self._pixels: Tensor | None = None
        if isinstance(reference.video, Path):
            check_reference(reference)
            folder = reference.video.is_dir()
            self.content = files_hash(reference.video) if folder else file_hash(reference.video)
        else:
            self._pixels = read_pixels(*self._options)
            self.content = hashlib.sha256(self._pixels.cpu().numpy().tobytes()).hexdigest()

    def pixels(self) -> Tensor:
        """uint8 (t, h, w, 3)."""
        return read_pixels(*self._options) if self._pixels is None else self._pixels


def _state(*modules: nn.Module | None) -> Hashable:
    """Equal for the same modules while their weights, and how many images they take at once, are unchanged."""
    known: list[Any] = []
    for module in (module for module in modules if module is not None):
        parameters = list(module.parameters())
        known += [id(module), tuple((id(p), p.dtype, 0 if p.is_inference() else p._version) for p in parameters)]
        known += [getattr(module, "slice_size", None), getattr(module, "tile", None)]
    return tuple(known)


def _kept(kept: "OrderedDict[Hashable, T]", key: Hashable, make: Callable[[], T]) -> T:
    """The value of a key, made where it is not there; the oldest are dropped."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return kept[key]
