"""Published UNet entries -> ours: names by table, 1x1 convolutions as linear layers, flat 3-D kernels as 2-D ones."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from lvdm.checkpoints.families import LAYOUTS, PREFIXES
from lvdm.errors import CheckpointError

PREFIX = PREFIXES["unet"]

# Published name -> ours, where the families agree: see UNetLayout.
SHARED_NAMES = {
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


def convert_unet(family: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published UNet's entries as ours, for `load_state_dict(strict=True)` of `build_backbone(family, ...)`.

    family: a name in LAYOUTS. state_dict: entries with or without the prefix `model.diffusion_model.`; where any
    has it, entries without it belong to other parts and are left out. Tensors are views, nothing is copied.

    Raises ConfigError for an unknown family, CheckpointError if there is no UNet or one of another family.
    """
    layout = LAYOUTS[family]
    entries = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    entries = entries or dict(state_dict)
    if "input_blocks.0.0.weight" not in entries:
        raise CheckpointError(f"the file holds no UNet: none of its {len(entries)} entries is input_blocks.0.0.weight")
    if not layout.holds(entries):
        found = next((name for name in LAYOUTS if LAYOUTS[name].holds(entries)), "unknown")
        raise CheckpointError(f"the file seems to hold a {found} UNet, not a {family} one")
    return {_our_name(layout.names, key): _our_shape(value) for key, value in entries.items()}


def published_names(family: str, ours: Iterable[str]) -> list[str]:
    """The published names, with their prefix, of a UNet's entries that have the names `ours`."""
    names, found = LAYOUTS[family].names, []
    for own in ours:
        candidates = {f".{own}"}
        for published, name in reversed(list(names.items())):
            candidates |= {key.replace(f".{name}.", f".{published}.") for key in candidates}
        found += [PREFIX + key[1:] for key in candidates if _our_name(names, key[1:]) == own]
    return found


def _our_name(names: Mapping[str, str], key: str) -> str:
    key = f".{key}"
    for published, ours in names.items():
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
