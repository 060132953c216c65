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
import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any

from aicl.cli import Parser, new_parser
from lvdm import config
from lvdm.errors import ConfigError
from lvdm.outside import is_hub_id
from lvdm.training.settings import Settings

PLACES = {
    "base.path": "a model folder (`aicl convert` makes one of a published file), or a run that trained one",
    "model.autoencoder": "a run that trained an autoencoder, or a model folder",
    "model.init_from": "a model folder, or a run that trained one",
    "init_from": "an adapter file, or a run that trained one",
    "data.path": "the folder of the videos",
    "data.captions": "the file of the captions",
    "data.cache": "a folder that `aicl cache` made",
    "data.report": "a file that `aicl check-data` wrote",
}
"""Settings that name what has to be there before a training starts, and what it is."""


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
    plain = config.load(args.config, args.overrides, schema=Settings | dict)
    Settings.read(plain)
    check_places(plain, [each.partition("=")[0] for each in args.overrides])

    import aicl.tasks  # noqa: F401 (makes the tasks known)
    from lvdm.training.run import train
    from lvdm.training.tasks import config_schema

    return train(config.load(args.config, args.overrides, schema=config_schema()), resume=args.resume)


def check_places(plain: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Say at once that a file or folder is not there: what loads it takes seconds to import, or a GPU. Names of the Hub
    pass, and the videos' folder where a cache takes its place. given: the keys of the overrides, of which a misspelt
    one is named.

    Raises ConfigError.
    """
    for name, what in PLACES.items():
        place: Any = plain
        for key in name.split("."):
            place = place.get(key) if isinstance(place, Mapping) else None
        if not isinstance(place, str) or os.path.lexists(place) or is_hub_id(place):
            continue  # of another type: the task's own sections say what it should be
        if name == "data.path" and plain["data"].get("cache"):
            continue
        near = difflib.get_close_matches(name, given, n=1, cutoff=0.8) if name not in given else []
        meant = f" ({near[0]} was given: did you mean {name}?)" if near else ""
        raise ConfigError(f"{name} is {place[:200]!r}, which does not exist: set it to {what}{meant}")
