"""What the verbs share that read clips with a model: the options that name both."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.options import ModelOptions
from lvdm.errors import ConfigError, DataError
from lvdm.options import add_arguments, read_options

if TYPE_CHECKING:
    from aicl.pipeline import AICLPipeline
    from lvdm.data.clips import ClipRecord


def add_source(parser: argparse.ArgumentParser) -> None:
    """Take captioned videos: a folder, or a list of them. `read_source` reads what they name."""
    parser.add_argument("source", type=Path, help="a folder of videos with captions, or a CSV or JSONL list of them")
    parser.add_argument(
        "--kind", choices=("folder", "webvid", "ucf101"), default="folder", help="layout of the data set"
    )
    parser.add_argument("--root", type=Path, help="folder of the videos of a list (default: where the list lies)")
    parser.add_argument(
        "--default-caption", metavar="TEXT", help="of videos that have none (default: that is an error)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips encoded at once (default: 8)")


def check_source(args: argparse.Namespace) -> None:
    """Say what is wrong with the options of `add_source` before anything slow is imported. Raises UserError."""
    if not args.source.exists():
        raise DataError(f"{args.source} does not exist: give a folder of videos, or a list of them")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size is {args.batch_size}: it must be at least 1")


def read_source(args: argparse.Namespace) -> "list[ClipRecord]":
    """The videos that the options of `add_source` name. Raises DataError."""
    from lvdm.data import Manifest, read_records

    alone = args.source.is_dir()  # or a list of videos
    place = args.source if alone else args.root or args.source.parent
    captions = None if alone else str(args.source)
    caption = args.default_caption
    return read_records(Manifest(kind=args.kind, path=str(place), captions=captions, default_caption=caption))


def add_model(parser: argparse.ArgumentParser, heading: str) -> None:
    """Take the options that name a model, under a heading. `model_options` reads them."""
    add_arguments(parser, ModelOptions, {"model": heading})


def model_options(args: argparse.Namespace) -> ModelOptions:
    """The options of `add_model` that were given. Raises ConfigError."""
    given = {field.name: getattr(args, field.name) for field in fields(ModelOptions) if hasattr(args, field.name)}
    return read_options(ModelOptions, given, "the command line")


def open_model(args: argparse.Namespace) -> "AICLPipeline":
    """The model that the options of `add_model` name, which is said on the screen. Raises CheckpointError."""
    from aicl.sampling_models import load_model, model_line

    options = model_options(args)
    pipe = load_model(options)
    print(model_line(pipe, options))
    return pipe
