"""Let people compare our videos with a baseline's, blind, in a browser; then count.

Examples:
  aicl user-study serve runs/study --manifest pairs.jsonl --host 0.0.0.0
  aicl user-study serve runs/study --ours out/aicl --baseline out/base --captions captions.csv --ties
  aicl user-study serve runs/study --ours out/lvdm_aicl out/vc_aicl --baseline out/lvdm out/vc --group lvdm vc
  aicl user-study serve runs/study
  aicl user-study report runs/study --out results/user_study

A line of pairs.jsonl (or row of a .csv): {"prompt": "a dog runs", "ours": "a/1.mp4", "baseline": "b/1.mp4"}, and
optionally "group", whose values get rows of their own in the report. The study's folder keeps everything: serve it
again without pairs to go on after a stop. The report can be written while the study runs.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from aicl.cli import Parser, new_parser
from lvdm.cli import check_there
from lvdm.errors import ConfigError
from lvdm.files import atomic_path, write_json

if TYPE_CHECKING:
    from aicl.apps import user_study


def parser() -> Parser:
    """The options of `aicl user-study`."""
    parser = new_parser("user-study", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="start a study, or go on with it")
    serve.add_argument("study", type=Path, metavar="FOLDER", help="where the study is kept")
    serve.add_argument("--manifest", type=Path, help="the pairs, .jsonl or .csv")
    serve.add_argument("--ours", type=Path, nargs="+", help="instead: a folder of our videos, or several")
    serve.add_argument("--baseline", type=Path, nargs="+", help="and one of the baseline's each, with the same names")
    serve.add_argument(
        "--group",
        nargs="+",
        metavar="NAME",
        help="and a name each, for the report (default: the videos' labels)",
    )
    serve.add_argument("--pairs", type=int, metavar="N", help="the first of each folder (default: all)")
    serve.add_argument("--captions", type=Path, help="their prompts, .csv or .jsonl (default: as aicl evaluate)")
    serve.add_argument("--seed", type=int, help="of the order and the sides (default: 0)")
    serve.add_argument("--ties", action="store_true", default=None, help='offer "no difference", too')
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: %(default)s)")
    serve.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    report = commands.add_parser("report", help="what the answers say so far")
    report.add_argument("study", type=Path, metavar="FOLDER", help="where the study is kept")
    report.add_argument("--out", type=Path, help="also write OUT.json and OUT.md")
    report.add_argument("--level", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    report.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def check_pairs(args: argparse.Namespace) -> None:
    """Say what is wrong with the options that name pairs before anything slow is imported. Raises UserError."""
    if args.manifest and (args.ours or args.baseline or args.captions or args.group or args.pairs):
        raise ConfigError("give either --manifest, or --ours and --baseline")
    if bool(args.ours) != bool(args.baseline) or (args.captions and not args.ours):
        raise ConfigError("give both --ours and --baseline")
    ours, baseline = args.ours or [], args.baseline or []
    if len(ours) != len(baseline) or (args.group and len(args.group) != len(ours)):
        raise ConfigError("give as many folders with --baseline, and names with --group, as with --ours")
    if args.pairs is not None and args.pairs < 1:
        raise ConfigError(f"--pairs is {args.pairs}: ask for one or more of each folder")
    if args.captions and len(ours) > 1:
        raise ConfigError("--captions belong to one folder: write those of several beside their videos")
    for place in (args.manifest, *ours, *baseline, args.captions):
        check_there(place, "give the videos of both sides, or a list of the pairs")


def given_pairs(args: argparse.Namespace) -> "list[user_study.Pair] | None":
    """The pairs that the options name, None for a study that goes on. Raises UserError."""
    check_pairs(args)
    from aicl.apps import user_study

    if args.manifest:
        return user_study.read_manifest(args.manifest)
    if not args.ours:
        return None
    pairs = []
    for number, (ours, baseline) in enumerate(zip(args.ours, args.baseline)):
        found = user_study.read_folders(ours, baseline, args.captions)[: args.pairs]
        pairs += [dataclasses.replace(pair, group=args.group[number]) for pair in found] if args.group else found
    return pairs


def study_of(args: argparse.Namespace) -> "user_study.Study":
    """The study in the folder, started with the given pairs if there are any. Raises ConfigError."""
    pairs = given_pairs(args)
    from aicl.apps import user_study

    if pairs is None:
        if args.seed is not None or args.ties:
            raise ConfigError("--seed and --ties are chosen when a study starts: give its pairs with them")
        return user_study.open_study(args.study)
    with tqdm(total=len(pairs), unit="pair", desc="copying videos") as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done - bar.n)

        study, unlike = user_study.prepare(args.study, pairs, seed=args.seed, ties=args.ties, progress=progress)
    if unlike:
        print(
            f"note: in {unlike} of {len(pairs)} pairs the videos differ in size, length or frame rate, which may show"
        )
    return study


def write_report(args: argparse.Namespace) -> None:
    """Print what the answers say, and write it where asked. Raises ConfigError."""
    if not 0 < args.level < 1:
        raise ConfigError(f"--level is between 0 and 1, as 0.95, not {args.level}")
    files = [Path(f"{args.out}{ending}") for ending in (".json", ".md")] if args.out else []
    for file in files:
        if file.exists() and not args.overwrite:
            raise ConfigError(f"{file}: is there already; choose another --out, or give --overwrite")
    check_there(args.study, "start a study with aicl user-study serve")
    from aicl.apps import user_study

    report = user_study.summarise(user_study.Store(user_study.database_path(args.study)), args.level)
    if files:
        write_json(files[0], report)
        with atomic_path(files[1]) as temporary:
            temporary.write_text(user_study.markdown(report), encoding="utf-8")
    print(user_study.markdown(report), end="")


def main(args: argparse.Namespace) -> None:
    """Serve a study, or report on one."""
    if args.command == "report":
        write_report(args)
    else:
        check_pairs(args)
        from aicl.apps.serving import serve_app  # first: it says what is missing
        from aicl.apps.user_study.app import build_app

        study = study_of(args)
        serve_app(lambda: build_app(study), args.host, args.port, "every answer is kept; the study is at")
