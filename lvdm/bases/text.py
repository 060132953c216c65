"""The text encoders of a diffusers pipeline as a `TextEncoder`."""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models.text import TextEncoder

_POOLED = ("HunyuanVideoPipeline",)  # whose `encode_prompt` gives tokens, a pooled feature and a mask
_REMEMBERED = 2000  # captions, of some hundred kilobytes each


class AnyWords:
    """A tokenizer that knows every word, since it cuts words into pieces."""

    def unknown_words(self, text: str) -> list[str]:
        """None."""
        return []


class DiffusersText(TextEncoder):
    """Prompts to context (b, tokens, width), by the pipeline's own `encode_prompt`.

    Rows of padding are zero where the network is told to ignore them, so a context says by itself what it holds. A
    pipeline without text (Stable Video Diffusion) gives no tokens; its context is the image's alone.
    HunyuanVideo's network is also told the pooled feature of a second encoder: the first row, filled up with zeros.
    Contexts of the last captions are remembered, so that a training encodes each caption once.
    """

    def __init__(self, pipe: Any) -> None:
        nn.Module.__init__(self)
        self._pipe = (pipe,)  # in a tuple: a pipeline is no module
        self.model = getattr(pipe, "text_encoder", None) or getattr(pipe, "image_encoder", None) or nn.Identity()
        if type(pipe).__name__ in _POOLED:
            self.model = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2])
        self._apart: nn.Module | None = None
        self._known: OrderedDict[str, tuple[Tensor, int]] = OrderedDict()
        self.width = _width(pipe)

    def keep_on_cpu(self) -> None:
        """Leave the encoder in the CPU's memory from now on, whatever is done to this module: it is the largest part
        of some models, and hardly used where captions are few."""
        object.__setattr__(self, "_apart", self.model.to("cpu"))
        self.model = nn.Identity()

    @property
    def tokenizer(self) -> Any:
        return AnyWords()

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> (b, tokens, width). Raises ConfigError for a pipeline whose text encoder was not loaded."""
        pipe = self._pipe[0]
        weight = next((self._apart or self.model).parameters(), torch.empty(0))
        if not hasattr(pipe, "encode_prompt"):
            return weight.new_zeros(len(texts), 0, self.width)
        if pipe.text_encoder is None:
            raise ConfigError("the text encoder of this pipeline is not loaded")
        for text in dict.fromkeys(texts):
            if text not in self._known:
                context = self._encode(pipe, text, weight.device)
                rows = context.any(dim=-1).nonzero()  # that are no padding; Mochi can be told that none is
                used = int(rows.max()) + 1 if len(rows) else 0
                self._known[text] = context[:used].clone(), len(context)
        found = [self._known[text] for text in texts]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        padded = [F.pad(context, (0, 0, 0, length - len(context))) for context, length in found]
        return torch.stack(padded).to(weight)

    def ends(self, texts: Sequence[str], context: Tensor) -> Tensor:
        """The place (b,) of each prompt's last row that is no padding, in its context (b, tokens, width)."""
        return (context.any(dim=-1) * torch.arange(context.shape[1], device=context.device)).amax(dim=1)

    def _encode(self, pipe: Any, text: str, device: torch.device) -> Tensor:
        """One prompt -> (tokens, width)."""
        takes = inspect.signature(pipe.encode_prompt).parameters
        options: dict[str, Any] = {"device": device}
        if "do_classifier_free_guidance" in takes:
            options["do_classifier_free_guidance"] = False
        if "num_images_per_prompt" in takes:
            options["num_images_per_prompt"] = 1
        if "max_sequence_length" in takes:
            options["max_sequence_length"] = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
        found = pipe.encode_prompt([text], **options)
        context: Tensor = found[0]
        if type(pipe).__name__ in _POOLED:
            tokens, pooled, mask = (each[0] for each in found)
            first = F.pad(pooled, (0, tokens.shape[1] - len(pooled)))[None]
            return torch.cat([first.to(tokens), tokens * mask[:, None].to(tokens)])
        if isinstance(found[1], Tensor) and found[1].shape == context.shape[:2]:  # a mask
            context = context * found[1][..., None].to(context)
        return context[0]

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
