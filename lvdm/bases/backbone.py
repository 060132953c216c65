"""A network of diffusers as a `VideoBackbone`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lvdm.bases.kinds import Call, extensible, integration_sizes, kind_of
from lvdm.diffusion.schedule import Prediction
from lvdm.errors import ConfigError
from lvdm.models.backbone import Compression, ExtensibleBlock, Grid, VideoBackbone

UNGUIDED = 1.0  # the scale of guidance that changes nothing

Conditions = Tensor | Sequence[tuple[slice, Tensor]] | None
"""A condition of all rows of a batch, or of slices that make up the batch, as a denoiser passes its extras."""


class DiffusersBackbone(VideoBackbone):
    """One of the classes in `lvdm.bases.kinds.KINDS`, called as every backbone is. `family` is the class's name.

    model: the network; its names and weights stay as they are. compression: its autoencoder's.
    prediction: what it predicts, which its scheduler says. A network that was distilled with guidance is told a
    scale of 1, as real clips are not guided ones, until `embed_guidance` says another.
    """

    def __init__(self, model: Any, compression: Compression, prediction: Prediction) -> None:
        super().__init__()
        self.family = type(model).__name__
        self.kind = kind_of(self.family)
        self.model, self.prediction = model, prediction
        self.compression: Compression = compression
        self.image_channels = self.kind.image_channels(model.config)
        self.guidance = UNGUIDED
        self.latent_channels = model.config.in_channels - self.image_channels
        self.repeated_blocks = tuple({type(block) for _, block, _ in extensible(model, self.kind)})
        self._blocks = [
            ExtensibleBlock(
                f"model.{name}",
                block,
                self.kind.width(model.config, block),
                self.kind.stride(model.config, name),
                layout,
            )
            for name, block, layout in extensible(model, self.kind)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """That of the largest parameter: some small ones are kept in float32 beside half precision."""
        return max(self.parameters(), key=lambda parameter: parameter.numel()).dtype

    def adapter_sizes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings of a prism for this network, and of what reads its features in the blocks.

        R has 4 channels, as in the paper, for every pixel frame that a latent frame holds.
        """
        channels, widths = 4 * self.compression.time, [block.width for block in self._blocks]
        prism = {"out_channels": channels, **self.kind.prism}
        return prism, {"feature_channels": channels, **integration_sizes(widths)}

    @property
    def config(self) -> dict[str, Any]:
        """The network's config, without what diffusers keeps there for itself."""
        return {name: value for name, value in dict(self.model.config).items() if not name.startswith("_")}

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        fps: Tensor | float | None = None,
        image_latents: Conditions = None,
        image_tokens: Conditions = None,
    ) -> Tensor:
        """See `VideoBackbone.forward`; timesteps as the network is told them.

        image_latents: (b, channels, t, h, w) of an image-to-video network, added to the channels of x. image_tokens:
        (b, tokens, d) beside the context. Raises ConfigError where what the network needs is not given.
        """
        if self.image_channels and image_latents is None:
            raise ConfigError("this is an image-to-video model: give it an image")
        if isinstance(fps, int | float):
            fps = torch.full((len(x),), float(fps), device=x.device)
        images = (_rows(image_latents), _rows(image_tokens))
        output = self.kind.call(self.model, Call(x, timesteps, context, fps, *images, self.compression, self.guidance))
        return output

    @property
    def embeds_guidance(self) -> bool:
        return self.kind.embeds_guidance(self.model.config)

    def embed_guidance(self, scale: float | None) -> None:
        if not self.embeds_guidance:
            super().embed_guidance(scale)
        self.guidance = UNGUIDED if scale is None else scale

    def extensible_blocks(self) -> Sequence[ExtensibleBlock]:
        return self._blocks

    def check_input(self, shape: Sequence[int]) -> None:
        """Raise ConfigError for latents (b, c, t, h, w) that do not consist of whole patches, or of other channels."""
        if shape[1] != self.latent_channels:
            raise ConfigError(
                f"latents of {shape[1]} channels are of no use to a {self.family}: {self.latent_channels}"
            )
        for name, cells, patch in zip(("frames", "height", "width"), shape[2:], self.patch, strict=True):
            if cells % patch:
                pixels = self.compression.time if name == "frames" else self.compression.space
                raise ConfigError(
                    f"latents of {name} {cells} do not consist of this model's patches of {patch}: "
                    f"change the video's {name} by {pixels} or more"
                )

    def enable_gradient_checkpointing(self) -> None:
        if not self.model._supports_gradient_checkpointing:
            raise ConfigError(
                f"diffusers cannot recompute a {self.family}: set training.gradient_checkpointing to false"
            )
        self.model.enable_gradient_checkpointing()

    @property
    def patch(self) -> Grid:
        """What the frames, height and width of latents must be multiples of."""
        return self.kind.stride(self.model.config, "")


def _rows(condition: Conditions) -> Tensor | None:
    """The condition of the whole batch."""
    if condition is None or isinstance(condition, Tensor):
        return condition
    return torch.cat([value for _, value in sorted(condition, key=lambda part: part[0].start or 0)])
