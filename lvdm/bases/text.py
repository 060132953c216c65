"""The text encoders of a diffusers pipeline as a `TextEncoder`."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models.text import TextEncoder


class AnyWords:
    """A tokenizer that knows every word, since it cuts words into pieces."""

    def unknown_words(self, text: str) -> list[str]:
        """None."""
        return []


class DiffusersText(TextEncoder):
    """Prompts to context (b, tokens, width), by the pipeline's own `encode_prompt`.

    Rows of padding are zero where the network is told to ignore them, so a context says by itself what it holds. A
    pipeline without text (Stable Video Diffusion) gives no tokens; its context is the image's alone.
    """

    def __init__(self, pipe: Any) -> None:
        nn.Module.__init__(self)
        self._pipe = (pipe,)  # in a tuple: a pipeline is no module
        self.model = getattr(pipe, "text_encoder", None) or getattr(pipe, "image_encoder", None) or nn.Identity()
        self.width = _width(pipe)

    @property
    def tokenizer(self) -> Any:
        return AnyWords()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> (b, tokens, width). Raises ConfigError for a pipeline whose text encoder was not loaded."""
        pipe = self._pipe[0]
        weight = next(self.model.parameters(), torch.empty(0))
        if not hasattr(pipe, "encode_prompt"):
            return weight.new_zeros(len(texts), 0, self.width)
        if pipe.text_encoder is None:
            raise ConfigError("the text encoder of this pipeline is not loaded")
        takes = inspect.signature(pipe.encode_prompt).parameters
        options: dict[str, Any] = {"device": weight.device, "do_classifier_free_guidance": False}
        if "num_images_per_prompt" in takes:
            options["num_images_per_prompt"] = 1
        if "max_sequence_length" in takes:
            options["max_sequence_length"] = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
        found = pipe.encode_prompt(list(texts), **options)
        context: Tensor = found[0]
        if isinstance(found[1], Tensor) and found[1].shape == context.shape[:2]:  # a mask
            context = context * found[1][..., None].to(context)
        return context

    def forward(self, tokens: Tensor) -> Tensor:
        raise ConfigError("the text encoder of a diffusers pipeline is not trained along")


def _width(pipe: Any) -> int:
    """Channels of a context."""
    text = getattr(pipe, "text_encoder", None)
    if text is not None:
        return int(getattr(text.config, "d_model", None) or text.config.hidden_size)
    if getattr(pipe, "image_encoder", None) is not None and not hasattr(pipe, "encode_prompt"):
        return int(pipe.image_encoder.config.projection_dim)
    network = getattr(pipe, "transformer", None) or pipe.unet
    for name in ("text_dim", "text_embed_dim", "caption_channels", "cross_attention_dim"):
        if isinstance(width := getattr(network.config, name, None), int):
            return width
    raise ConfigError("this pipeline does not say how wide its text features are")
