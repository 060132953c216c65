"""Train an autoencoder, a base model or AICL from a config.

Examples:
  aicl train --config configs/aicl_lvdm.yaml base.path=checkpoints/lvdm_t2v_256
  aicl train --config configs/aicl_lvdm.yaml training.steps=1000 run.name=short
  aicl train --config configs/aicl_lvdm.yaml --resume auto
  aicl train --config configs/tiny/autoencoder.yaml

Files go to run.out/run.name: the resolved config, metrics, previews and checkpoints, each of which holds what it takes
to resume and a file to use (an adapter, a model folder). Ctrl-C writes a checkpoint first.
"""

import argparse

from aicl.cli import Parser, new_parser
from lvdm import config
from lvdm.training.settings import Settings


def parser() -> Parser:
    """The options of `aicl train`."""
    parser = new_parser("train", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument(
        "--resume",
        default="none",
        metavar="none|auto|FOLDER",
        help="auto: continue the run of that name, or start it; FOLDER: continue from this checkpoint (default: none)",
    )
    parser.add_overrides("settings that differ from the file")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run a training; its exit status says whether a signal ended it."""
    # The sections of every task are checked at once; the task's own take seconds to import.
    Settings.read(config.load(args.config, args.overrides, schema=Settings | dict))

    import aicl.tasks  # noqa: F401 (makes the tasks known)
    from lvdm.training.run import train
    from lvdm.training.tasks import config_schema

    return train(config.load(args.config, args.overrides, schema=config_schema()), resume=args.resume)
