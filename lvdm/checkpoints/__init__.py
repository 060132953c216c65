"""Published checkpoints -> ours: reading, telling families apart, converting, and model folders of our own."""

from lvdm.checkpoints.convert import convert_checkpoint, family_of
from lvdm.checkpoints.families import FAMILIES, Family, detect_family
from lvdm.checkpoints.folder import load_pipeline, save_pipeline
from lvdm.checkpoints.published import is_published_config, read_published_config
from lvdm.checkpoints.reader import read_checkpoint
from lvdm.checkpoints.resolve import find_export, find_file, find_model, list_checkpoints, read_model
from lvdm.checkpoints.strict import check_entries, load_strict
from lvdm.checkpoints.text_layouts import (
    convert_autoencoder,
    convert_image_encoder,
    convert_image_resampler,
    convert_text,
)
from lvdm.checkpoints.unet_layouts import convert_unet

__all__ = [
    "FAMILIES",
    "Family",
    "check_entries",
    "convert_autoencoder",
    "convert_checkpoint",
    "convert_image_encoder",
    "convert_image_resampler",
    "convert_text",
    "convert_unet",
    "detect_family",
    "family_of",
    "find_export",
    "find_file",
    "find_model",
    "is_published_config",
    "list_checkpoints",
    "load_pipeline",
    "load_strict",
    "read_checkpoint",
    "read_model",
    "read_published_config",
    "save_pipeline",
]
