"""Write clips of the puppet world as mp4 files with captions, a data set like any other.

Examples:
  aicl make-puppets data/puppets --clips 500
  aicl make-puppets data/unseen --clips 100 --actions unseen --in-turn --preview unseen.png
  aicl make-puppets data/motions --clips 200 --programs 1.0 --free-captions 0.5 --size 128 --seed 3

The folder gets clip_00000.mp4, ... and captions.csv (file, caption, label). The same arguments give the same clips.
"""

import argparse
from pathlib import Path

from aicl.cli import Parser, new_parser
from lvdm import cli
from lvdm.errors import ConfigError


def parser() -> Parser:
    """The options of `aicl make-puppets`."""
    parser = new_parser("make-puppets", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--clips", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames in two seconds (default: %(default)s)")
    parser.add_argument("--actions", choices=["seen", "unseen", "all"], default="all", help="default: %(default)s")
    parser.add_argument("--in-turn", action="store_true", help="every action equally often, instead of at random")
    parser.add_argument("--programs", type=float, default=0.0, help="share of random motions with made-up names")
    parser.add_argument("--free-captions", type=float, default=0.0, help="share of captions in free wording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preview", type=Path, metavar="PNG", help="also draw a picture of the first 40 clips")
    parser.add_argument("--device", default="cpu", help="where to draw: cpu or cuda (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Draw the clips and write them. Raises ConfigError for numbers that cannot work."""
    if args.clips < 1:
        raise ConfigError(f"--clips is {args.clips}: ask for at least one")
    if args.preview is not None and args.preview.suffix.lower() != ".png":
        raise ConfigError(f"--preview {args.preview} must end in .png")
    from aicl.puppets.data import PuppetConfig
    from aicl.puppets.export import write_clips

    config = PuppetConfig(
        size=args.size,
        frames=args.frames,
        actions=args.actions,
        in_turn=args.in_turn,
        program_share=args.programs,
        free_captions=args.free_captions,
        bare_captions=0.0,
    )
    manifest = write_clips(args.out, config, args.clips, args.seed, args.preview, cli.device(args.device))
    print(f"{args.clips} clips, captions in {manifest}")
