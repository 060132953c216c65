#!/usr/bin/env python
"""Train an autoencoder, a base model or AICL from a config.

Examples:
  python scripts/train.py --config configs/aicl_lvdm.yaml base.path=checkpoints/lvdm_t2v_256
  python scripts/train.py --config configs/aicl_lvdm.yaml training.steps=1000 run.name=short
  python scripts/train.py --config configs/aicl_lvdm.yaml --resume auto
  python scripts/train.py --config configs/tiny/autoencoder.yaml

Files go to run.out/run.name: the resolved config, metrics, previews and checkpoints, each of which holds what it takes
to resume and a file to use (an adapter, a model folder). Ctrl-C writes a checkpoint first.
"""

import argparse

import aicl.tasks  # noqa: F401 (makes the tasks known)
from lvdm import cli, config
from lvdm.training import config_schema, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument(
        "--resume",
        default="none",
        metavar="none|auto|FOLDER",
        help="auto: continue the run of that name, or start it; FOLDER: continue from this checkpoint (default: none)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
    args = parser.parse_intermixed_args()
    return train(config.load(args.config, args.overrides, schema=config_schema()), resume=args.resume)


if __name__ == "__main__":
    cli.run(main)
