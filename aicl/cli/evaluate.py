"""Score generated videos by every metric that the given networks allow, and set results side by side.

  aicl evaluate score out/aicl --row AICL --real data/ucf101/unseen --i3d checkpoints/i3d_torchscript.pt \\
      --clip-model ViT-L-14 checkpoints/clip_vit_l_14.pt --result results/aicl.json
  aicl evaluate score out/base --row base --real data/ucf101/unseen --fps 8 --classifier checkpoints/videomae_ucf101
  aicl evaluate score outputs/tables/exported/Table-I-LVDM --benchmark puppets --real real
  aicl evaluate table results/base.json results/aicl.json --latex

A folder is one of `aicl sample` or of `aicl reproduce --save-videos`, or has a manifest.jsonl of lines {"file",
"caption", "label", "reference", "seed"} (the last three optional), or a .txt beside each video. A metric whose
network is not given is left out; none is ever fetched. Videos of different frame rates are compared at the one that
--fps names.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicl.cli import Parser, new_parser
from aicl.evaluation.preset_files import evaluator_section
from lvdm import cli
from lvdm.errors import ConfigError
from lvdm.files import check_writable

if TYPE_CHECKING:
    from aicl.evaluation.results import Result


def parser() -> Parser:
    """The options of `aicl evaluate`."""
    parser = new_parser("evaluate", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="measure a folder")
    score.add_argument("videos", type=Path)
    score.add_argument("--manifest", type=Path, help="default: manifest.jsonl in the folder, if there")
    score.add_argument("--row", help="what the row is called (default: the folder's name)")
    score.add_argument("--real", type=Path, help="a folder of real videos")
    score.add_argument("--i3d", "--fvd", metavar="FILE", help="I3D's TorchScript file, for FVD and KVD")
    score.add_argument("--videomae", metavar="FOLDER", help="a VideoMAE encoder of transformers")
    score.add_argument(
        "--clip-model", "--clip", nargs="+", metavar="MODEL", help="an open_clip model and its weights, or a folder"
    )
    score.add_argument("--classifier", metavar="FOLDER", help="a video classification model of transformers")
    score.add_argument("--flow", nargs=2, metavar=("RAFT", "WEIGHTS"), help="raft_small or raft_large (torchvision)")
    score.add_argument("--benchmark", metavar="NAME", help="take evaluators and metrics from configs/benchmarks")
    score.add_argument("--metrics", nargs="+", help="default: all that the networks allow")
    score.add_argument("--frames", type=int, help="of each video (default: all)")
    score.add_argument("--size", help="WIDTHxHEIGHT in pixels (default: that of the first video)")
    step = score.add_mutually_exclusive_group()
    step.add_argument("--stride", type=float, help="frames from one to the next (default: 1)")
    step.add_argument("--fps", type=float, help="the rate at which all videos are compared")
    score.add_argument("--allow-short", action="store_true", help="slow down videos that are too short")
    score.add_argument("--allow-few", action="store_true", help="measure sets of too few videos, such as by FVD")
    score.add_argument("--batch-size", type=int, default=16)
    score.add_argument("--cache", type=Path, default=Path("outputs/observations"), help="default: %(default)s")
    score.add_argument("--device", help="default: a GPU if there is one")
    score.add_argument("--result", type=Path, help="the JSON to write (default: outputs/results/ROW.json)")
    score.add_argument("--overwrite", action="store_true", help="replace that file")
    vbench = commands.add_parser("vbench", help="copy a folder, named as VBench's custom input reads it")
    vbench.add_argument("videos", type=Path)
    vbench.add_argument("out", type=Path, help="a new folder for the copies and their prompts.json")
    vbench.add_argument("--manifest", type=Path, help="default: manifest.jsonl in the folder, if there")
    table = commands.add_parser("table", help="set results side by side; different protocols are refused")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--title", default="Results")
    table.add_argument("--latex", action="store_true", help="LaTeX instead of Markdown")
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure a folder, copy it for VBench, or set results side by side."""
    check_places(args)
    if args.command == "vbench":
        copy_for_vbench(args)
        return
    from aicl.evaluation.metric import all_metrics
    from aicl.evaluation.results import read_result
    from aicl.evaluation.tables import Table, latex, markdown

    results = [score(args)] if args.command == "score" else [read_result(path) for path in args.results]
    known = {name for result in results for name in result.metrics}
    title = args.title if args.command == "table" else f"Result of {args.videos}"
    table = Table(title, [(result.row, result) for result in results], [n for n in all_metrics() if n in known])
    print(latex(table) if args.command == "table" and args.latex else markdown(table))


def check_places(args: argparse.Namespace) -> None:
    """Say what is not there before anything slow is imported. Raises DataError, and ConfigError for a benchmark."""
    if args.command == "table":
        for path in args.results:
            cli.check_there(path, "measure again, or correct the name")
        return
    cli.check_there(args.videos, "give a folder of videos")
    cli.check_there(args.manifest, "give the .jsonl that lists the videos")
    if args.command == "score":
        cli.check_there(args.real, "give a folder of real videos")
        weights = [args.i3d, args.videomae, args.classifier, *(args.clip_model or [])[-1:], *(args.flow or [])[-1:]]
        for path in weights:
            cli.check_there(path, "give the file or folder of the network's weights; none is ever fetched")
        if args.benchmark:
            evaluator_section(args.benchmark)


def score(args: argparse.Namespace) -> "Result":
    """Measure, and write the result."""
    from aicl.evaluation.generated import list_videos, read_generated
    from aicl.evaluation.metric import build_evaluators, get_metrics
    from aicl.evaluation.results import write_result
    from aicl.evaluation.score import choose_reading, score

    row = args.row or args.videos.name
    place = args.result or Path("outputs/results") / f"{row}.json"
    if place.exists() and not args.overwrite:
        raise ConfigError(f"{place} exists already: choose another place with --result, or ask to --overwrite it")
    check_writable(place)
    videos = read_generated(args.videos, args.manifest)
    real = list_videos(args.real) if args.real else []
    changes = {name: getattr(args, name) for name in ("frames", "stride", "fps", "allow_short")}
    reading = choose_reading(videos, real, size=_size(args.size), **changes)
    specs, names = wanted(args)
    evaluators = build_evaluators(specs, cli.device(args.device))
    metrics = get_metrics(names, "--metrics")
    if not args.metrics:  # those that are asked for by name say what they lack, others do not
        metrics = [m for m in metrics if m.roles() <= evaluators.keys() and (real or "real" not in m.needs)]
    options = {"cache": args.cache, "batch_size": args.batch_size, "allow_few": args.allow_few}
    result = score(row, videos, real, reading, evaluators, metrics, **options)
    write_result(place, result)
    print(f"written to {place}\n")
    return result


def copy_for_vbench(args: argparse.Namespace) -> None:
    """Copy a folder in VBench's naming, and say how its measures are run on it."""
    from aicl.evaluation.generated import read_generated
    from aicl.evaluation.vbench import DIMENSIONS, PROMPTS_FILE, export_vbench

    videos = read_generated(args.videos, args.manifest)
    export_vbench([(video.path, video.prompt) for video in videos], args.out)
    print(
        f"{len(videos)} videos copied. Measure them with VBench:\n"
        f"  vbench evaluate --mode=custom_input --videos_path {args.out} --prompt_file {args.out / PROMPTS_FILE} "
        f"--dimension {' '.join(DIMENSIONS)}"
    )


def wanted(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The evaluators, as a preset's section describes them, and the names of the metrics that are asked for."""
    from aicl.evaluation.metric import all_metrics

    specs, names = evaluator_section(args.benchmark) if args.benchmark else ({}, [])
    specs = {"flow": {}, "tracks": {}} | specs
    specs |= {role: path for role in ("i3d", "videomae", "classifier") if (path := getattr(args, role))}
    if args.clip_model:
        if len(args.clip_model) > 2:
            raise ConfigError(
                "--clip-model takes an open_clip model and its weights, or the folder of a transformers CLIP"
            )
        *name, path = args.clip_model
        specs["clip"] = {"path": path} | ({"model": name[0]} if name else {})
    if args.flow:
        specs["flow"] = {"network": args.flow[0], "path": args.flow[1]}
    return specs, args.metrics or names or list(all_metrics())


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--size {text}: write WIDTHxHEIGHT, such as 512x320")
    return int(height), int(width)
