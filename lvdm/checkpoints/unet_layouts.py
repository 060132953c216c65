"""Published UNet entries -> ours: names by table, 1x1 convolutions as linear layers, flat 3-D kernels as 2-D ones."""

from collections.abc import Mapping

from torch import Tensor

from lvdm.errors import CheckpointError, ConfigError

PREFIX = "model.diffusion_model."

# Published name -> ours: dotted pieces of entry names, replaced in this order.
LVDM_BLOCK = {
    "attn1": "spatial_attn",
    "norm1": "spatial_norm",
    "attn1_tmp": "temporal_attn1",
    "norm4": "temporal_norm1",
    "attn2": "cross_attn",
    "norm2": "cross_norm",
    "attn2_tmp": "temporal_attn2",
    "norm5": "temporal_norm2",
    "norm3": "ff_norm",
}
TEMPORAL_CONV = {
    "temopral_conv.conv1.0": "temporal_conv.norms.0",
    "temopral_conv.conv1.2": "temporal_conv.convs.0",
    "temopral_conv.conv2.0": "temporal_conv.norms.1",
    "temopral_conv.conv2.3": "temporal_conv.convs.1",
    "temopral_conv.conv3.0": "temporal_conv.norms.2",
    "temopral_conv.conv3.3": "temporal_conv.convs.2",
    "temopral_conv.conv4.0": "temporal_conv.norms.3",
    "temopral_conv.conv4.3": "temporal_conv.convs.3",
}
SHARED = {
    "transformer_blocks": "blocks",
    "to_out.0": "to_out",
    "ff.net.0.proj": "ff.proj_in",
    "ff.net.2": "ff.proj_out",
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "emb",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
    "op": "conv",
}
NAMES = {
    "lvdm": LVDM_BLOCK | SHARED,
    "videocrafter": {"init_attn.0": "input_blocks.0.1"} | TEMPORAL_CONV | SHARED,
}


def convert_unet(family: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published UNet's entries as ours, for `load_state_dict(strict=True)` of `build_backbone(family, ...)`.

    family: "lvdm" or "videocrafter". state_dict: entries with or without the prefix `model.diffusion_model.`; where any
    has it, entries without it belong to other parts and are left out. Tensors are views, nothing is copied.

    Raises ConfigError for an unknown family, CheckpointError if there is no UNet or one of the other family.
    """
    if family not in NAMES:
        raise ConfigError(f"unknown UNet family '{family}': choose from {', '.join(NAMES)}")
    entries = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    entries = entries or dict(state_dict)
    first = entries.get("input_blocks.0.0.weight")
    if first is None:
        raise CheckpointError(f"the file holds no UNet: none of its {len(entries)} entries is input_blocks.0.0.weight")
    found = "lvdm" if first.ndim == 5 else "videocrafter"
    if found != family:
        raise CheckpointError(f"the file seems to hold a {found} UNet, not a {family} one")
    return {_our_name(family, key): _our_shape(value) for key, value in entries.items()}


def _our_name(family: str, key: str) -> str:
    key = f".{key}"
    for published, ours in NAMES[family].items():
        key = key.replace(f".{published}.", f".{ours}.")
    return key[1:]


def _our_shape(value: Tensor) -> Tensor:
    """Drop the kernel dimensions of size 1 that our layers do without."""
    kernel = value.shape[2:]
    if len(kernel) > 0 and all(size == 1 for size in kernel):
        return value.reshape(value.shape[:2])  # 1x1 convolution: a linear layer
    if len(kernel) == 3 and kernel[0] == 1:
        return value.squeeze(2)  # 1 x k x k: a convolution of each frame
    if len(kernel) == 3 and kernel[1:] == (1, 1):
        return value.squeeze(4)  # k x 1 x 1: a convolution along frames
    return value
