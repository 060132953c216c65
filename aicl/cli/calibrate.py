"""Measure which references are usual for an adapter, so that samples from unusual ones get a warning.

examples:
  aicl calibrate data/puppets --model checkpoints/mine
  aicl calibrate my_videos --base checkpoints/lvdm_t2v_256 --adapter runs/aicl_lvdm --clips 500 --device cuda

Give clips like those that the adapter was trained on, with their captions: 200 or more. What is measured is written
beside the adapter, as adapter.domain.json, and read with it from then on; the adapter itself does not change. A quarter
of the clips is kept apart, to count how many of them get the warning by mistake.
"""

import argparse
from pathlib import Path

from aicl.cli import Parser, new_parser
from aicl.options import ModelOptions
from lvdm.errors import CheckpointError, ConfigError, DataError
from lvdm.options import add_arguments, read_options


def parser() -> Parser:
    """The options of `aicl calibrate`."""
    parser = new_parser("calibrate", __doc__)
    parser.add_argument("source", type=Path, help="a folder of videos with captions, or a CSV or JSONL list of them")
    parser.add_argument(
        "--kind", choices=("folder", "webvid", "ucf101"), default="folder", help="layout of the data set"
    )
    parser.add_argument("--root", type=Path, help="folder of the videos of a list (default: where the list lies)")
    parser.add_argument("--clips", type=int, default=400, metavar="N", help="how many are used (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips (default: 0)")
    parser.add_argument(
        "--false-alarms", type=float, default=0.01, metavar="SHARE", help="of usual clips, aimed at (default: 0.01)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips encoded at once (default: 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was measured before")
    add_arguments(parser, ModelOptions, {"model": "model"})
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure and write. Raises ConfigError, DataError or CheckpointError for what is missing or there already."""
    if not args.source.exists():
        raise DataError(f"{args.source} does not exist: give a folder of videos, or a list of them")
    for name in ("clips", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}: it must be at least 1")
    from dataclasses import fields

    import numpy as np
    from tqdm.auto import tqdm

    from aicl.calibration import calibrate
    from aicl.reference_domain import domain_file
    from aicl.sampling_models import load_model, model_line
    from lvdm.data import Manifest, read_records

    alone = args.source.is_dir()  # or a list of videos
    place = str(args.source if alone else args.root or args.source.parent)
    captions = None if alone else str(args.source)
    records = read_records(Manifest(kind=args.kind, path=place, captions=captions))
    given = {f.name: getattr(args, f.name) for f in fields(ModelOptions) if hasattr(args, f.name)}
    options = read_options(ModelOptions, given, "the command line")
    pipe = load_model(options)
    print(model_line(pipe, options))
    if pipe.files is None or pipe.files.adapter is None:
        raise ConfigError("there is no adapter file to calibrate: give a folder that has one, or --adapter")
    out = domain_file(pipe.files.adapter)
    if out.exists() and not args.overwrite:
        raise CheckpointError(f"{out} exists already: add --overwrite to replace it")
    order = np.random.default_rng(args.seed).permutation(len(records))[: args.clips]
    domain = calibrate(
        pipe,
        [records[number] for number in order],
        share=args.false_alarms,
        batch_size=args.batch_size,
        progress=lambda batches: tqdm(batches, unit="batch", desc="clips"),
    )
    domain.save(out)
    print(
        f"{out}: from {domain.clips} clips; of {domain.held_out} kept apart, {domain.false_alarms:.1%} get the warning "
        "by mistake"
    )
