"""Read the actions of captioned videos once, so that `aicl sample --library` can choose references by the prompt.

examples:
  aicl index data/clips --out index.json
  aicl index data/webvid.csv --kind webvid --root data/webvid/videos --out webvid.json
  aicl index data/UCF-101 --kind ucf101 --out ucf101.json
"""

import argparse
from pathlib import Path

from tqdm.auto import tqdm

from aicl.cli import Parser, new_parser
from lvdm.errors import DataError

SHOWN = 10


def parser() -> Parser:
    """The options of `aicl index`."""
    parser = new_parser("index", __doc__)
    parser.add_argument("source", type=Path, help="a folder of videos with captions, or a CSV or JSONL list of them")
    parser.add_argument(
        "--kind", choices=("folder", "webvid", "ucf101"), default="folder", help="layout of the data set"
    )
    parser.add_argument("--root", type=Path, help="folder of the videos of a list (default: where the list lies)")
    parser.add_argument("--out", type=Path, required=True, help="the index file to write, .json")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing index")
    return parser


def main(args: argparse.Namespace) -> None:
    """Index the videos and say what was found. Raises DataError."""
    if args.out.exists() and not args.overwrite:
        raise DataError(f"{args.out} exists already: choose another --out or add --overwrite")
    if not args.source.exists():
        raise DataError(f"{args.source} does not exist: give a folder of videos, or a list of them")
    from aicl.reference_retrieval import build_library, save_library
    from lvdm.data import Manifest, read_records

    manifest = Manifest(kind=args.kind, path=str(args.source))
    if not args.source.is_dir():
        manifest = Manifest(kind=args.kind, path=str(args.root or args.source.parent), captions=str(args.source))
    library = build_library(read_records(manifest), lambda captions: tqdm(captions, unit="caption"))
    save_library(args.out, library)
    index = library.index
    frequent = ", ".join(f"{verb} {count}" for verb, count in list(index.counts().items())[:SHOWN])
    print(f"{args.out}: {index.num_videos} videos, {len(index.counts())} verbs, most often {frequent or 'none'}")
    if index.without_action:
        print(f"{len(index.without_action)} captions name no action and are never chosen, such as:")
        for number in index.without_action[:SHOWN]:
            print(f"  {library.paths[number]}: '{index.captions[number]}'")
