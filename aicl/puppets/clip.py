"""A small CLIP of the puppet world, open_clip's class with a word tokenizer: a measuring evaluator for CC and FC."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicl.puppets.captions import all_words
from lvdm.errors import ConfigError
from lvdm.models.tokenizer import WordTokenizer


@dataclass(frozen=True)
class CLIPConfig:
    """`size` pixels in patches of `patch`; both towers are `width` wide, with heads of 32, and meet in `embed_dim`."""

    size: int = 64
    patch: int = 8
    width: int = 192
    vision_layers: int = 6
    text_layers: int = 4
    embed_dim: int = 128
    context_length: int = 48
    words: list[str] = field(default_factory=lambda: list(all_words()))

    def __post_init__(self) -> None:
        if self.size % self.patch or self.width % 32:
            raise ConfigError("clip_model.size must be a multiple of clip_model.patch, and clip_model.width of 32")


class PuppetCLIP(nn.Module):
    """Captions and frames to unit vectors in one space; their cosine says how well they match."""

    def __init__(self, config: CLIPConfig | None = None) -> None:
        from open_clip.model import CLIP  # slow to import

        super().__init__()
        self.config = config = config or CLIPConfig()
        vision = {
            "layers": config.vision_layers,
            "width": config.width,
            "head_width": 32,
            "patch_size": config.patch,
            "image_size": config.size,
        }
        text = {
            "context_length": config.context_length,
            "vocab_size": self.tokenizer.vocab_size,  # the end token has the highest id, where open_clip looks for it
            "width": config.width,
            "heads": config.width // 32,
            "layers": config.text_layers,
        }
        self.model = CLIP(config.embed_dim, vision, text)

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer(self.config.words, self.config.context_length)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> (b, embed_dim), of length 1."""
        tokens = self.tokenizer(captions).to(self.model.positional_embedding.device, non_blocking=True)
        return self.model.encode_text(tokens, normalize=True)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1], (b, 3, t, size, size) -> (b, t, embed_dim), of length 1.

        Raises ConfigError for another size.
        """
        if frames.shape[-2:] != (self.config.size,) * 2:
            raise ConfigError(
                f"the puppet world's CLIP takes frames of {self.config.size}x{self.config.size} pixels, not "
                f"{frames.shape[-1]}x{frames.shape[-2]}: choose that size"
            )
        images = frames.transpose(1, 2).flatten(0, 1)
        return self.model.encode_image(images, normalize=True).unflatten(0, (len(frames), -1))


def contrastive_losses(text: Tensor, frames: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric loss of each sample, (b,), between captions (b, d) and the frames (b, t, d) of their clips.

    A clip scores as CC does: by the mean cosine of its frames. One frame alone says little about an action.
    """
    cosine = text.float() @ frames.float().mean(1).T  # (captions, clips)
    logits = logit_scale.float().exp().clamp(max=100.0) * cosine
    truth = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, truth, reduction="none") + F.cross_entropy(logits.T, truth, reduction="none"))
