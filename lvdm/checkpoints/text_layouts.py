"""Published layouts of the autoencoder, the text encoders and the image condition -> ours.

Every function takes a part with or without its published prefix, or a whole checkpoint of which it picks its part, and
returns what `load_state_dict(strict=True)` accepts. Entries that carry no information for us are dropped by name; any
other entry stays, so that strict loading reports it.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from lvdm.errors import CheckpointError

# Left from training: perceptual loss and discriminator, and the projection of segmentation maps to colours.
AUTOENCODER_UNUSED = re.compile(r"loss\..*|colorize")

# CLIP's joint space, its logit scale and the causal mask play no part in per-token features; nor does the other tower.
OPENCLIP_TEXT_UNUSED = re.compile(r"text_projection|logit_scale|attn_mask|visual\..*")
OPENCLIP_IMAGE_UNUSED = re.compile(
    r"(positional_embedding|text_projection|logit_scale|attn_mask|token_embedding\.weight|ln_final\.(weight|bias))"
    r"|transformer\..*|visual\.(proj|ln_post\.(weight|bias))"
)

# Hugging Face's CLIP text model -> open_clip's. Queries, keys and values are joined apart from this table.
HUGGING_FACE_TEXT = {
    r"embeddings\.token_embedding\.weight": "token_embedding.weight",
    r"embeddings\.position_embedding\.weight": "positional_embedding",
    r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.": r"transformer.resblocks.\1.attn.out_proj.",
    r"encoder\.layers\.(\d+)\.layer_norm(\d)\.": r"transformer.resblocks.\1.ln_\2.",
    r"encoder\.layers\.(\d+)\.mlp\.fc1\.": r"transformer.resblocks.\1.mlp.c_fc.",
    r"encoder\.layers\.(\d+)\.mlp\.fc2\.": r"transformer.resblocks.\1.mlp.c_proj.",
    r"final_layer_norm\.": "ln_final.",
}
HUGGING_FACE_QKV = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
HUGGING_FACE_UNUSED = re.compile(r"embeddings\.position_ids")


def convert_autoencoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`first_stage_model.*` -> the entries of `AutoencoderKL`, whose names are the published ones."""
    entries = _without_prefix(state_dict, "first_stage_model.")
    _require(entries, "decoder.conv_in.weight", "autoencoder")
    return {key: value for key, value in entries.items() if not AUTOENCODER_UNUSED.fullmatch(key)}


def convert_text(
    state_dict: Mapping[str, Tensor], output: Literal["last", "penultimate"] | None = None
) -> dict[str, Tensor]:
    """`cond_stage_model.*`, in OpenCLIP's or in Hugging Face's layout -> the entries of `TextEncoder`.

    `output` must be that of the encoder's `TextConfig`, since the last block is dropped for penultimate features. None
    stands for what the published models use: "penultimate" in OpenCLIP's layout (VideoCrafter), "last" in Hugging
    Face's (LVDM).
    """
    entries = _without_prefix(state_dict, "cond_stage_model.")
    if any(".self_attn." in key for key in entries):
        for prefix in ("transformer.", "text_model."):
            entries = _without_prefix(entries, prefix)
        entries = _from_hugging_face(entries)
        output = output or "last"
    else:
        entries = _without_prefix(entries, "model.")
        entries = {key: value for key, value in entries.items() if not OPENCLIP_TEXT_UNUSED.fullmatch(key)}
        output = output or "penultimate"
    _require(entries, "token_embedding.weight", "text encoder")
    if output == "penultimate":
        blocks = [int(match[1]) for key in entries if (match := re.match(r"transformer\.resblocks\.(\d+)\.", key))]
        last = f"transformer.resblocks.{max(blocks, default=0)}."
        entries = {key: value for key, value in entries.items() if not key.startswith(last)}
    return {f"model.{key}": value for key, value in entries.items()}


def convert_image_encoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`embedder.model.visual.*` -> the entries of `ImageEncoder`; `ln_post` and `proj` are not used and dropped."""
    entries = _without_prefix(_without_prefix(state_dict, "embedder."), "model.")
    _require(entries, "visual.conv1.weight", "image encoder")
    return {key: value for key, value in entries.items() if not OPENCLIP_IMAGE_UNUSED.fullmatch(key)}


def convert_image_resampler(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`image_proj_model.*` -> the entries of `ImageResampler`, whose names are the published ones."""
    entries = _without_prefix(state_dict, "image_proj_model.")
    _require(entries, "latents", "image resampler")
    return entries


def _without_prefix(entries: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries that have `prefix`, without it; all of them if none has it."""
    chosen = {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}
    return chosen or dict(entries)


def _require(entries: Mapping[str, Tensor], name: str, what: str) -> None:
    if name not in entries:
        first = next(iter(entries), "none")
        raise CheckpointError(
            f"these are not the weights of a published {what}: no '{name}' among them (first: {first})"
        )


def _from_hugging_face(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for key, value in entries.items():
        if HUGGING_FACE_UNUSED.fullmatch(key):
            continue
        if match := HUGGING_FACE_QKV.fullmatch(key):
            block, letter, kind = match.groups()
            joined.setdefault(f"transformer.resblocks.{block}.attn.in_proj_{kind}", {})[letter] = value
            continue
        name = key
        for pattern, replacement in HUGGING_FACE_TEXT.items():
            name, count = re.subn(f"^{pattern}", replacement, key)
            if count:
                break
        converted[name] = value
    for name, parts in joined.items():
        if absent := [letter for letter in "qkv" if letter not in parts]:
            raise CheckpointError(f"the text encoder's '{name}' cannot be joined without its {', '.join(absent)}")
        converted[name] = torch.cat([parts[letter] for letter in "qkv"])
    return converted
