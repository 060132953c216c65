"""Find clips of a library by what they show: by a text, or by an example of the motion or the looks.

examples:
  aicl search "a person swings a hammer"
  aicl search "somebody waves" --by text --library outputs/library --sheet outputs/waving.png
  aicl search --clip dance.mp4 --by motion -k 12

The library is a folder of `aicl index`. Clips that are nearly the same as a better one are left out, and every one is
printed with the reason why it was chosen. --sheet draws them all, with their captions, as a picture.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.cli import Parser, new_parser
from aicl.cli.index import DEFAULT_LIBRARY
from aicl.clip_options import add_model, model_options
from lvdm.cli import check_there
from lvdm.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aicl.action_library import Found


def parser() -> Parser:
    """The options of `aicl search`."""
    parser = new_parser("search", __doc__)
    parser.add_argument("text", nargs="?", help="what the clips should show")
    parser.add_argument("--clip", type=Path, metavar="VIDEO", help="an example: a video or a folder of frames")
    parser.add_argument(
        "--by",
        choices=("verbs", "text", "motion", "appearance"),
        help="what is compared (default: motion with --clip, else verbs, else the text)",
    )
    parser.add_argument("-k", type=int, default=8, metavar="N", help="how many (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of clips that share a verb (default: 0)")
    parser.add_argument(
        "--library", default=DEFAULT_LIBRARY, metavar="FOLDER", help=f"of aicl index (default: {DEFAULT_LIBRARY})"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="also draw the clips as a picture")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    add_model(parser, "model that made the library (none is loaded for verbs)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Search and print. Raises ConfigError for a search that lacks something, DataError where nothing fits."""
    if args.text is None and args.clip is None:
        raise ConfigError("a search needs a text, or an example with --clip")
    if args.clip is not None and not args.clip.exists():
        raise VideoError(f"{args.clip} does not exist: give a video or a folder of frames")
    if args.sheet is not None and args.sheet.suffix.lower() != ".png":
        raise ConfigError(f"--sheet {args.sheet} must end in .png")
    if args.sheet is not None and args.sheet.exists() and not args.overwrite:
        raise VideoError(f"{args.sheet} exists already: choose another --sheet or add --overwrite")
    check_there(args.library, f"make a library of clips with aicl index DATA --out {args.library}")
    if args.by != "verbs":
        model_options(args).check_places()

    from aicl.action_library import ActionLibrary

    library = ActionLibrary.open(args.library)
    by = args.by or library.way(args.text, args.clip)
    embedder = None
    if by != "verbs":
        from aicl.action_embeddings import Embedder
        from aicl.sampling_models import load_model

        embedder = Embedder(load_model(model_options(args)))
    without = [] if args.clip is None else [args.clip]
    found = library.search(
        args.text, clip=args.clip, by=by, k=args.k, embedder=embedder, seed=args.seed, exclude=without
    )
    for number, each in enumerate(found, start=1):
        print(f"{number}. {each.path} ('{each.caption}'): {each.reason}")
    if args.sheet is not None:
        draw_sheet(args.sheet, found)
        print(f"wrote {args.sheet}")


def draw_sheet(path: Path, found: "Sequence[Found]", height: int = 96) -> None:
    """A picture of clips: eight frames of each, under its caption. height: of a frame, in pixels."""
    from lvdm.files import atomic_path
    from lvdm.video import contact_sheet, load_pixels, probe

    shown = []
    for each in found:
        info = probe(each.path)
        size = height, max(1, round(info.width * height / info.height))
        shown.append(load_pixels(each.path, 16, size, fps=min(8.0, info.fps)))
    labels = [f"{number}. {each.caption}" for number, each in enumerate(found, start=1)]
    with atomic_path(path) as temporary:
        contact_sheet(shown, labels).save(temporary)
