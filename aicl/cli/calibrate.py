"""Measure which references are usual for an adapter, so that samples from unusual ones get a warning.

examples:
  aicl calibrate data/puppets --model checkpoints/mine
  aicl calibrate my_videos --base checkpoints/lvdm_t2v_256 --adapter runs/aicl_lvdm --clips 500 --device cuda

Give clips like those that the adapter was trained on, with their captions: 200 or more. What is measured is written
beside the adapter, as adapter.domain.json, and read with it from then on; the adapter itself does not change. A quarter
of the clips is kept apart, to count how many of them get the warning by mistake.
"""

import argparse

from aicl.cli import Parser, new_parser
from aicl.clip_options import add_model, add_source, check_source, model_options, open_model, read_source
from lvdm.errors import CheckpointError, ConfigError


def parser() -> Parser:
    """The options of `aicl calibrate`."""
    parser = new_parser("calibrate", __doc__)
    add_source(parser)
    parser.add_argument("--clips", type=int, default=400, metavar="N", help="how many are used (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of clips (default: 0)")
    parser.add_argument(
        "--false-alarms", type=float, default=0.01, metavar="SHARE", help="of usual clips, aimed at (default: 0.01)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what was measured before")
    add_model(parser, "model")
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure and write. Raises ConfigError, DataError or CheckpointError for what is missing or there already."""
    check_source(args)
    model_options(args).check_places()
    if args.clips < 1:
        raise ConfigError(f"--clips is {args.clips}: it must be at least 1")
    import numpy as np
    from tqdm.auto import tqdm

    from aicl.calibration import calibrate
    from aicl.reference_domain import domain_file

    records = read_source(args)
    pipe = open_model(args)
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
