"""Score generated videos: CC, FC, FVD, ACC, dynamics, and motion and looks against the references.

  aicl evaluate score out/aicl --row AICL --real data/ucf101/unseen --fvd checkpoints/i3d_torchscript.pt \\
      --clip ViT-L-14 checkpoints/clip_vit_l_14.pt --result results/aicl.json
  aicl evaluate score out/base --row base --real data/ucf101/unseen --fvd checkpoints/i3d_torchscript.pt \\
      --clip ViT-L-14 checkpoints/clip_vit_l_14.pt --result results/base.json
  aicl evaluate score outputs/tables/videos/ours-1a2b3c4d --puppets checkpoints/puppets --real real
  aicl evaluate table results/base.json results/aicl.json --latex

A folder is one of aicl sample, or has a manifest.jsonl of lines {"file", "caption", "label", "reference"} (the
last two optional), or a .txt beside each video. A measure whose network is not given is left out; none is ever fetched.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.cli import new_parser
from lvdm import cli
from lvdm.errors import ConfigError
from lvdm.files import check_writable

if TYPE_CHECKING:
    from aicl.evaluation import folders


def parser() -> argparse.ArgumentParser:
    """The options of `aicl evaluate`."""
    parser = new_parser("evaluate", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="measure a folder")
    score.add_argument("videos", type=Path)
    score.add_argument("--manifest", type=Path, help="default: manifest.jsonl in the folder, if there")
    score.add_argument("--row", help="what the row is called (default: the folder's name)")
    score.add_argument("--real", type=Path, help="a folder of real videos")
    score.add_argument("--fvd", metavar="NETWORK", help="I3D's TorchScript file, or a folder of a VideoMAE model")
    score.add_argument("--clip", nargs=2, metavar=("MODEL", "WEIGHTS"), help="an open_clip model and its local weights")
    score.add_argument("--fc-pairs", choices=("consecutive", "all"), default="consecutive")
    score.add_argument("--classifier", type=Path, help="a video classification model of transformers, in a folder")
    score.add_argument("--puppets", type=Path, help="folder of the puppet world's networks, for all of these")
    score.add_argument("--flow", nargs=2, metavar=("RAFT", "WEIGHTS"), help="raft_small or raft_large (torchvision)")
    score.add_argument("--frames", type=int, help="of each video (default: all)")
    score.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: that of the first video)")
    step = score.add_mutually_exclusive_group()
    step.add_argument("--stride", type=float, help="frames from one to the next (default: 1)")
    step.add_argument("--fps", type=float, help="frames a second instead of a stride")
    score.add_argument("--allow-short", action="store_true", help="slow down videos that are too short")
    score.add_argument("--allow-few", action="store_true", help="compute FVD of fewer videos than features")
    score.add_argument("--batch-size", type=int, default=16)
    score.add_argument("--cache", type=Path, default=Path("outputs/features"), help="default: %(default)s")
    score.add_argument("--device", help="default: a GPU if there is one")
    score.add_argument("--result", type=Path, help="the JSON to write (default: outputs/results/ROW.json)")
    score.add_argument("--overwrite", action="store_true", help="replace that file")
    table = commands.add_parser("table", help="set results side by side; different protocols are refused")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--title", default="Results")
    table.add_argument("--latex", action="store_true", help="LaTeX instead of Markdown")
    return parser


def main(args: argparse.Namespace) -> None:
    """Score a folder or set results side by side, as the options say."""
    from aicl.evaluation.protocol import read_result
    from aicl.evaluation.tables import COLUMNS, Table, latex, markdown

    results = [score(args)] if args.command == "score" else [read_result(path) for path in args.results]
    metrics = [name for name in COLUMNS if any(name in result.metrics for result in results)]
    title = args.title if args.command == "table" else f"Result of {args.videos}"
    table = Table(title, [(result.row, result) for result in results], metrics)
    print(latex(table) if args.command == "table" and args.latex else markdown(table))


def score(args: argparse.Namespace) -> "folders.Result":
    """Measure, and write the result."""
    from aicl.evaluation import folders
    from aicl.evaluation.protocol import write_result

    args.device = cli.device(args.device)
    row = args.row or args.videos.name
    place = args.result or Path("outputs/results") / f"{row}.json"
    if place.exists() and not args.overwrite:
        raise ConfigError(f"{place} exists already: choose another place with --result, or ask to --overwrite it")
    check_writable(place)
    videos = folders.read_generated(args.videos, args.manifest)
    reading = folders.default_reading(
        videos,
        frames=args.frames,
        size=_size(args.size),
        stride=args.stride,
        fps=args.fps,
        allow_short=args.allow_short,
    )
    real = folders.list_videos(args.real) if args.real else []
    result = folders.score(
        row,
        videos,
        real,
        reading,
        networks(args),
        pairs=args.fc_pairs,
        cache=args.cache,
        batch_size=args.batch_size,
        allow_few=args.allow_few,
        device=args.device,
    )
    write_result(place, result)
    print(f"written to {place}\n")
    return result


def networks(args: argparse.Namespace) -> "folders.Networks":
    """The networks that the arguments name."""
    from aicl.evaluation import clip_scores, features, folders, motion
    from aicl.evaluation.accuracy import TransformersClassifier
    from aicl.puppets.evaluators import load_evaluator
    from lvdm.hashing import file_hash

    found, device = folders.Networks(), args.device
    if args.puppets:
        if args.fvd or args.clip or args.classifier:
            raise ConfigError("--puppets brings its own networks: leave --fvd, --clip and --classifier out")
        found.puppet_hash = file_hash(args.puppets / "classifier.safetensors")
        found.puppet_classifier = load_evaluator(args.puppets, "classifier", device)
        found.fvd = features.PuppetBackbone(found.puppet_classifier, found.puppet_hash)
        found.clip = clip_scores.PuppetCLIPScorer(
            load_evaluator(args.puppets, "clip", device), file_hash(args.puppets / "clip.safetensors")
        )
    if args.fvd:
        backbone = features.VideoMAEBackbone if (Path(args.fvd) / "config.json").is_file() else features.I3DBackbone
        found.fvd = backbone(args.fvd, device)
    if args.clip:
        found.clip = clip_scores.OpenCLIPScorer(*args.clip, device)
    if args.classifier:
        found.classifier = TransformersClassifier(args.classifier, device)
    if args.flow:
        found.flow, found.flow_name = motion.raft(*args.flow, device), f"{args.flow[0]} {file_hash(args.flow[1])}"
    return found


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--size {text}: write WIDTHxHEIGHT, such as 512x320")
    return int(height), int(width)
