"""Make a library of clips, or add to one, so that references can be found in it by text, motion or an example.

examples:
  aicl index data/clips --out outputs/library
  aicl index data/webvid.csv --kind webvid --root data/webvid/videos --out outputs/webvid --device cuda
  aicl index data/clips --out index.json

A folder as --out gets what `aicl search` and `aicl sample --library` ask: verbs, and with the model's own networks a
vector of each caption, of what moves (the Action Prism's R) and of what a clip looks like. Clips that it has already
are left alone, so it can be interrupted and added to. A .json file as --out gets the verbs of the captions alone, for
which no model is loaded.
"""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.cli import Parser, new_parser
from aicl.clip_options import add_model, add_source, check_source, model_options, open_model, read_source
from lvdm.cli import counted
from lvdm.errors import DataError
from lvdm.files import check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lvdm.data.clips import ClipRecord

SHOWN = 10
DEFAULT_LIBRARY = "outputs/library"


def parser() -> Parser:
    """The options of `aicl index`."""
    parser = new_parser("index", __doc__)
    add_source(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(DEFAULT_LIBRARY),
        help=f"a folder, or a .json file (default: {DEFAULT_LIBRARY})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing .json file")
    add_model(parser, "model, for a folder")
    return parser


def main(args: argparse.Namespace) -> None:
    """Index the videos and say what was found. Raises DataError."""
    verbs_only = args.out.suffix.lower() == ".json"
    if verbs_only and args.out.exists() and not args.overwrite:
        raise DataError(f"{args.out} exists already: choose another --out or add --overwrite")
    check_source(args)
    if not verbs_only:
        model_options(args).check_places()
    records = read_source(args)
    if verbs_only:
        _index_verbs(args.out, records)
    else:
        _index_clips(args, records)


def _index_verbs(out: Path, records: "Sequence[ClipRecord]") -> None:
    from tqdm.auto import tqdm

    from aicl.reference_retrieval import build_library, save_library

    library = build_library(records, lambda captions: tqdm(captions, unit="caption"))
    save_library(out, library)
    index = library.index
    _say(f"{out}", index.num_videos, index.counts())
    if index.without_action:
        print(f"never chosen, since they name no action: {counted(len(index.without_action), 'caption')}")
        for number in index.without_action[:SHOWN]:
            print(f"  {library.paths[number]}: '{index.captions[number]}'")


def _index_clips(args: argparse.Namespace, records: "Sequence[ClipRecord]") -> None:
    from tqdm.auto import tqdm

    from aicl.action_embeddings import Embedder
    from aicl.action_library import ActionLibrary, add_clips, check_library_place

    check_library_place(args.out)
    check_writable(args.out / "library.json")
    pipe = open_model(args)
    added, refused = add_clips(
        args.out,
        records,
        Embedder(pipe),
        lambda batches: tqdm(batches, unit="batch", desc="clips"),
        args.batch_size,
    )
    library = ActionLibrary.open(args.out)
    _say(f"{args.out}: {counted(added, 'clip')} added", len(library), library.actions())
    if refused:
        print(f"left out, since they cannot be read: {counted(len(refused), 'video')}")
        for sentence in refused[:SHOWN]:
            print(f"  {sentence}")
    print(f'search it with: aicl search "a person is dancing" --library {shlex.quote(str(args.out))}')


def _say(what: str, videos: int, counts: dict[str, int]) -> None:
    frequent = ", ".join(f"{verb} {count}" for verb, count in list(counts.items())[:SHOWN])
    print(f"{what}: {counted(videos, 'video')}, {counted(len(counts), 'verb')}, most often {frequent or 'none'}")
