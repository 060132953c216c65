"""Convert a published LVDM or VideoCrafter checkpoint into a model folder for this library.

examples:
  python scripts/convert_checkpoint.py downloads/VideoCrafter2/model.ckpt checkpoints/videocrafter2
  python scripts/convert_checkpoint.py model.ckpt checkpoints/mine --config inference_t2v_512_v2.0.yaml
  python scripts/convert_checkpoint.py t2v.ckpt checkpoints/lvdm --family lvdm_t2v_256 --dtype float16
"""

import argparse
from pathlib import Path

import torch

from lvdm import cli
from lvdm import config as configs
from lvdm.checkpoints import FAMILIES, convert_checkpoint, family_of, is_published_config, read_published_config
from lvdm.models.components import ModelConfig

MODELS = Path(__file__).resolve().parents[1] / "configs" / "models"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the published file: .ckpt, .pt or .safetensors")
    parser.add_argument("folder", type=Path, help="the folder to make; it must not exist yet")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--config", type=Path, help="the published YAML of this checkpoint, or a model config of ours")
    choice.add_argument(
        "--family", choices=FAMILIES, help="the published model that it is (default: told from the file)"
    )
    parser.add_argument("--ema", action="store_true", help="take the moving averages of the UNet's weights")
    parser.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: as in the file)")
    args = parser.parse_args()

    config = model_config(args)
    convert_checkpoint(args.source, args.folder, config, ema=args.ema, dtype=DTYPES.get(args.dtype))
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e9:.2f} GB, load it with lvdm.checkpoints.load_pipeline('{args.folder}')")


def model_config(args: argparse.Namespace) -> ModelConfig:
    """The config of the source: given as a file, by its family's name, or told from the file itself."""
    if args.config and is_published_config(args.config):
        return read_published_config(args.config)
    if not (args.config or args.family):
        family = family_of(args.source)
        print(f"{args.source} looks like {family.title}: using configs/models/{family.config}.yaml")
        args.family = family.config
    path = args.config or MODELS / f"{args.family}.yaml"
    return configs.from_mapping(ModelConfig, configs.load(path), where=str(path))


if __name__ == "__main__":
    cli.run(main)
