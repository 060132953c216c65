"""The encoder of reference videos: each is read and encoded once, the prism is called once, and both results are kept.

What was made last is kept by the content that it was made of, so the same references cost nothing at the next prompt or
seed of a program, and give the same bits.
"""

import hashlib
from collections.abc import Hashable
from pathlib import Path

import torch
from torch import Tensor

from aicl.action_prism import ActionPrism
from aicl.adapter import Fingerprint
from aicl.clock import Clock
from aicl.motion_features import MotionFeatures
from aicl.options import Reference
from aicl.reference_videos import check_reference, read_pixels, reference_key
from lvdm.hashing import file_hash, files_hash
from lvdm.pipeline import VideoPipeline
from lvdm.recent import Recent, weights_state
from lvdm.video import to_frames

KEPT = 8  # sets of references


class ReferenceEncoder:
    """Makes R of references that are videos, with the prism and the base model that it is given.

    Kept are latents, for other captions of the same videos, and R, for other seeds of the same captions. What was kept
    is dropped where a weight has changed since, see `lvdm.recent.weights_state`.
    """

    def __init__(self, base: VideoPipeline, prism: ActionPrism) -> None:
        self.base, self.prism = base, prism
        self._encoded = Recent[tuple[Tensor, Tensor | None]](KEPT)
        self._features = Recent[tuple[Tensor, Tensor]](KEPT)
        self._fingerprint: tuple[Hashable, Fingerprint] | None = None

    @property
    def fingerprint(self) -> Fingerprint:
        """The prism's, which its motion features carry."""
        state = weights_state(self.prism)
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
        videos = content, weights_state(parts.codec, parts.image_encoder, parts.image_resampler)
        captions = tuple(str(reference.caption) for reference in everything)
        whole = videos, captions, tuple(order), len(rows), weights_state(parts.text, self.prism)
        known = whole in self._features

        def prepare() -> tuple[Tensor, Tensor]:
            latents, images = self._encoded.get(videos, lambda: self._encode(clips))
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

        features, latents = (kept.clone() for kept in self._features.get(whole, refine))  # the caller's own
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
