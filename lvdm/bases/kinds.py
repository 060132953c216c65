"""The table of diffusers' network classes: which of their blocks are extended, and how each class is called.

A row is all that the library knows of a class. `tests/lvdm/test_bases.py` holds every row against the network itself:
that a change of one token in a block's output moves the prediction at that token's place first, and no other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from lvdm.errors import ConfigError
from lvdm.models.backbone import Compression, Grid, TokenLayout

FRAME_MAJOR = "b (t h w) c"  # one sequence, frame after frame: what every video transformer here has
IMAGES = "(b t) c h w"  # what blocks of UNets return


@dataclass(frozen=True)
class Call:
    """One call of a network, in the words of `VideoBackbone.forward`, beside what the network's class needs to know.

    x: (b, c, t, h, w). times: (b,), as the network's scheduler gives them. context: (b, tokens, d), whose empty rows
    are padding. fps: (b,) frames per second. image_latents: (b, c', t, h, w) or None; image_tokens: (b, tokens, d').
    compression: what a latent cell stands for. guidance: the scale that a network distilled with guidance is told.
    """

    x: Tensor
    times: Tensor
    context: Tensor
    fps: Tensor | None
    image_latents: Tensor | None
    image_tokens: Tensor | None
    compression: Compression
    guidance: float = 1.0

    def with_image(self) -> Tensor:
        """x with the image's latents as further channels, where there are any."""
        if self.image_latents is None:
            return self.x
        return torch.cat([self.x, self.image_latents.to(self.x)], dim=1)

    def mask(self) -> Tensor:
        """Which tokens of the context are no padding, bool (b, tokens)."""
        return self.context.any(dim=-1)


@dataclass(frozen=True)
class Kind:
    """What there is to know of one class of networks.

    blocks: class of a block -> where its tokens are. call: runs the network. width: the width of a block's tokens.
    stride: latent cells (t, h, w) that a token of the block of this name stands for. image_channels: input channels
    that are an image's. embeds_guidance: whether a network of this config is told the guidance scale. prism: sizes of
    AICL's prism for it, see also `integration_sizes`.
    """

    blocks: Mapping[str, TokenLayout]
    call: Callable[[Any, Call], Tensor]
    width: Callable[[Any, Any], int]
    stride: Callable[[Any, str], Grid]
    image_channels: Callable[[Any], int] = lambda config: 0
    embeds_guidance: Callable[[Any], bool] = lambda config: False
    prism: Mapping[str, Any] = field(default_factory=dict)


def _unet_stride(config: Any, name: str) -> Grid:
    """That of a block of a UNet: each level halves height and width."""
    levels = len(config.block_out_channels)
    parts = name.split(".")
    if parts[0] == "down_blocks":
        level = int(parts[1])
    elif parts[0] == "up_blocks":
        level = levels - 1 - int(parts[1])
    else:
        level = levels - 1 if parts[0] == "mid_block" else 0
    return 1, 2**level, 2**level


def _patches(config: Any, name: str) -> Grid:
    """The patch of a transformer, in latent cells."""
    size, time = config.patch_size, getattr(config, "patch_size_t", None) or 1
    if isinstance(size, int):
        return time, size, size
    t, h, w = size
    return t, h, w


def _heads(config: Any, block: Any) -> int:
    width: int = config.num_attention_heads * config.attention_head_dim
    return width


def _channels(config: Any, block: Any) -> int:
    width: int = block.in_channels
    return width


def _wan(model: Any, call: Call) -> Tensor:
    [output] = model(
        hidden_states=call.with_image(),
        timestep=call.times,
        encoder_hidden_states=call.context,
        encoder_hidden_states_image=None if call.image_tokens is None else call.image_tokens.to(call.x),
        return_dict=False,
    )
    return output


def _cogvideox(model: Any, call: Call) -> Tensor:
    config = model.config
    x = call.with_image().transpose(1, 2)  # (b, t, c, h, w)
    rotary = _cogvideox_rotary(config, x) if config.use_rotary_positional_embeddings else None
    [output] = model(
        hidden_states=x,
        encoder_hidden_states=call.context,
        timestep=call.times,
        ofs=None if config.ofs_embed_dim is None else x.new_full((1,), 2.0),
        image_rotary_emb=rotary,
        return_dict=False,
    )
    return output.transpose(1, 2)


def _cogvideox_rotary(config: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions of CogVideoX-5b (and 1.5, with patches in time), as its pipeline makes them."""
    from diffusers.models import embeddings
    from diffusers.pipelines.cogvideo import pipeline_cogvideox

    rotary: Any = embeddings.get_3d_rotary_pos_embed
    region: Any = pipeline_cogvideox.get_resize_crop_region_for_grid
    p, p_t = config.patch_size, config.patch_size_t
    grid = (x.shape[3] // p, x.shape[4] // p)
    base = (config.sample_height // p, config.sample_width // p)
    options: dict[str, Any] = {"embed_dim": config.attention_head_dim, "grid_size": grid, "device": x.device}
    if p_t is None:
        options |= {"crops_coords": region(grid, base[1], base[0]), "temporal_size": x.shape[1]}
    else:
        options |= {
            "crops_coords": None,
            "temporal_size": -(-x.shape[1] // p_t),
            "grid_type": "slice",
            "max_size": base,
        }
    cos, sin = rotary(**options)
    return cos, sin


def _ltx(model: Any, call: Call) -> Tensor:
    _, _, t, h, w = call.x.shape
    if call.fps is None:
        raise ConfigError("LTX-Video is told the frame rate of its videos: give fps")
    seconds = (call.compression.time / call.fps.float())[:, None, None, None, None]  # from one latent frame to the next
    [output] = model(
        hidden_states=rearrange(call.x, "b c t h w -> b (t h w) c"),
        encoder_hidden_states=call.context,
        timestep=call.times,
        encoder_attention_mask=call.mask(),
        num_frames=t,
        height=h,
        width=w,
        rope_interpolation_scale=(seconds, call.compression.space, call.compression.space),
        return_dict=False,
    )
    return rearrange(output, "b (t h w) c -> b c t h w", t=t, h=h, w=w)


def _mochi(model: Any, call: Call) -> Tensor:
    # It counts from noise at 0 to data at 1000, and predicts x0 - noise, the velocity from noise to data.
    [output] = model(
        hidden_states=call.x,
        encoder_hidden_states=call.context,
        timestep=1000.0 - call.times,
        encoder_attention_mask=call.mask(),
        return_dict=False,
    )
    return -output


def _hunyuan(model: Any, call: Call) -> Tensor:
    # The first row of the context is the pooled feature of its second text encoder, see `DiffusersText`.
    config = model.config
    if config.image_condition_type is not None:
        raise ConfigError("HunyuanVideo from an image is not supported: its text-to-video network is")
    pooled, context = call.context[:, 0, : config.pooled_projection_dim], call.context[:, 1:]
    guidance = call.x.new_full((len(call.x),), 1000.0 * call.guidance) if config.guidance_embeds else None
    [output] = model(
        hidden_states=call.x,
        timestep=call.times,
        encoder_hidden_states=context,
        encoder_attention_mask=context.any(dim=-1),
        pooled_projections=pooled,
        guidance=guidance,
        return_dict=False,
    )
    return output


def _motion(model: Any, call: Call) -> Tensor:
    context = call.context.repeat_interleave(call.x.shape[2], dim=0)
    [output] = model(call.x, call.times, encoder_hidden_states=context, return_dict=False)
    return output


def _unet3d(model: Any, call: Call) -> Tensor:
    [output] = model(call.x, call.times, encoder_hidden_states=call.context, return_dict=False)
    return output


def _svd(model: Any, call: Call) -> Tensor:
    if call.fps is None or call.image_latents is None:
        raise ConfigError("Stable Video Diffusion needs an image and a frame rate: give image and fps")
    fps = call.fps.to(call.x) - 1  # it was trained with one less
    ids = torch.stack([fps, torch.full_like(fps, SVD_MOTION), torch.full_like(fps, SVD_IMAGE_NOISE)], dim=1)
    x = call.with_image().transpose(1, 2)  # (b, t, c, h, w)
    [output] = model(x, call.times, encoder_hidden_states=call.context, added_time_ids=ids, return_dict=False)
    return output.transpose(1, 2)


SVD_MOTION = 127  # "motion_bucket_id", how much moves
SVD_IMAGE_NOISE = 0.02  # standard deviation of the noise that its pipeline puts on the image

_PRISM = {"width": 448, "depth": 12, "heads": 7, "head_dim": 64, "max_relative_frames": 32}  # 57 M parameters
_INTEGRATION = {"max_relative_frames": 32}
_WIDEST, _MOST = 256, 40e6  # of a bottleneck, and parameters of all blocks' projections


def _transformer(call: Callable[[Any, Call], Tensor], *blocks: str, item: int | None = None, **rest: Any) -> Kind:
    layouts = {block: TokenLayout(FRAME_MAJOR, item) for block in blocks}
    return Kind(layouts, call, _heads, _patches, prism={**_PRISM, "mask_padding": True}, **rest)


def _unet(call: Callable[[Any, Call], Tensor], block: str, item: int | None = None, **rest: Any) -> Kind:
    layouts = {block: TokenLayout(IMAGES, item)}
    return Kind(layouts, call, _channels, _unet_stride, prism=_PRISM, **rest)


def _wan_image(config: Any) -> int:
    return max(0, config.in_channels - config.out_channels)


def _half(config: Any) -> int:
    """CogVideoX's image-to-video networks take as many channels again; its text-to-video ones none."""
    return config.in_channels // 2 if config.in_channels == 2 * config.out_channels else 0


KINDS: dict[str, Kind] = {
    "WanTransformer3DModel": _transformer(_wan, "WanTransformerBlock", image_channels=_wan_image),
    "CogVideoXTransformer3DModel": _transformer(_cogvideox, "CogVideoXBlock", item=0, image_channels=_half),
    "LTXVideoTransformer3DModel": _transformer(_ltx, "LTXVideoTransformerBlock"),
    "MochiTransformer3DModel": _transformer(_mochi, "MochiTransformerBlock", item=0),
    "HunyuanVideoTransformer3DModel": _transformer(
        _hunyuan,
        "HunyuanVideoTransformerBlock",
        "HunyuanVideoSingleTransformerBlock",
        item=0,
        embeds_guidance=lambda config: config.guidance_embeds,
    ),
    "UNetMotionModel": _unet(_motion, "AnimateDiffTransformer3D"),
    "UNet3DConditionModel": _unet(_unet3d, "TransformerTemporalModel", item=0),
    "UNetSpatioTemporalConditionModel": _unet(
        _svd, "TransformerSpatioTemporalModel", item=0, image_channels=lambda config: config.in_channels // 2
    ),
}


def kind_of(name: str) -> Kind:
    """The row of a class. Raises ConfigError for a class that has none."""
    if name not in KINDS:
        raise ConfigError(f"a diffusers network of class {name} is not known here: known are {', '.join(KINDS)}")
    return KINDS[name]


def extensible(model: nn.Module, kind: Kind) -> list[tuple[str, nn.Module, TokenLayout]]:
    """Names, modules and layouts of the blocks of a network that its row names, in order of computation."""
    found = [
        (name, module, kind.blocks[type(module).__name__])
        for name, module in model.named_modules()
        if type(module).__name__ in kind.blocks
    ]
    order = {"transformer_in": 0, "down_blocks": 1, "mid_block": 2, "up_blocks": 3}  # modules are named in another
    return sorted(found, key=lambda block: order.get(block[0].split(".")[0], 0))


def integration_sizes(widths: Sequence[int]) -> dict[str, Any]:
    """AICL's sizes of what reads references in blocks of these widths: with a prism of the table's sizes, an adapter
    has at most 100 M parameters. The bottleneck is a multiple of 64 channels."""
    channels = int(_MOST / (2 * sum(widths))) // 64 * 64  # a block projects to the bottleneck and back
    return {**_INTEGRATION, "inner_width": max(64, min(_WIDEST, channels))}
