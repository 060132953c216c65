"""Convert a published LVDM or VideoCrafter checkpoint into a model folder for this library.

examples:
  aicl convert downloads/VideoCrafter2/model.ckpt checkpoints/videocrafter2
  aicl convert model.ckpt checkpoints/mine --config inference_t2v_512_v2.0.yaml
  aicl convert t2v.ckpt checkpoints/lvdm --family lvdm_t2v_256 --dtype float16
  aicl convert videocrafter2_unet/ checkpoints/other --rest checkpoints/videocrafter2   # diffusers' layout
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.cli import Parser, new_parser
from lvdm.cli import check_there
from lvdm.errors import ConfigError

if TYPE_CHECKING:
    from lvdm.models.components import ModelConfig


def parser() -> Parser:
    """The options of `aicl convert`."""
    parser = new_parser("convert", __doc__)
    parser.add_argument(
        "source",
        type=Path,
        help="the published file (.ckpt, .pt, .safetensors), or a folder of DeepSpeed or diffusers",
    )
    parser.add_argument("folder", type=Path, help="the folder to make; it must not exist yet")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--config", type=Path, help="the published YAML of this checkpoint, or a model config of ours")
    choice.add_argument(
        "--family",
        metavar="NAME",
        help="the published model that it is, such as lvdm_t2v_256 (default: told by the file)",
    )
    parser.add_argument("--ema", action="store_true", help="take the moving averages of the UNet's weights")
    parser.add_argument(
        "--rest", type=Path, metavar="FOLDER", help="a model folder for the parts that the source lacks (a UNet alone)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="cast the weights (default: as in the file)"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Convert the file. Raises CheckpointError or ConfigError for what does not fit, before anything is written."""
    check_there(args.source, "give the published file, or a folder of DeepSpeed or diffusers")
    if (Path(args.source) / "config.yaml").is_file() and list(Path(args.source).glob("unet*.safetensors*")):
        raise ConfigError(f"{args.source} is a model folder already: name it as it is, such as with --base")
    check_there(args.config, "give the published YAML of this checkpoint, or a model config")
    check_there(args.rest, "give a model folder for the parts that the source lacks")
    import torch

    from lvdm.checkpoints import convert_checkpoint

    dtype = getattr(torch, args.dtype) if args.dtype else None
    convert_checkpoint(args.source, args.folder, model_config(args), ema=args.ema, dtype=dtype, rest=args.rest)
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e9:.2f} GB, load it with lvdm.checkpoints.load_pipeline('{args.folder}')")


def model_config(args: argparse.Namespace) -> "ModelConfig":
    """The config of the source: given as a file, by its family's name, or told from the file itself."""
    from lvdm.checkpoints import FAMILIES, family_of, is_published_config, read_model, read_published_config

    if args.family and args.family not in FAMILIES:
        raise ConfigError(f"--family {args.family} is not known: choose one of {', '.join(FAMILIES)}")
    if args.config and is_published_config(args.config):
        return read_published_config(args.config)
    if not (args.config or args.family):
        family = family_of(args.source)
        print(f"{args.source} looks like {family.title}: using the config models/{family.config}")
        args.family = family.config
    return read_model(str(args.config or f"models/{args.family}"))
