"""Try AICL in a browser: a prompt, clips that show the action, and the videos beside each other.

examples:
  aicl demo
  aicl demo --models checkpoints --library outputs/library --port 8000
  aicl demo --host 0.0.0.0 --devices cuda:0 cuda:1

The page offers every model of a folder, and the example clips that lie beside it. One worker for each GPU, or one on
the CPU, makes the videos in the order in which they were asked for. Videos and uploads lie in outputs/web, and are
removed after a day. For one video on the command line, see `aicl quickstart`.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.cli import Parser, new_parser
from lvdm.cli import check_there
from lvdm.errors import ConfigError

if TYPE_CHECKING:
    from aicl.reference_retrieval import Library


def parser() -> Parser:
    """The options of `aicl demo`."""
    parser = new_parser("demo", __doc__)
    option = parser.add_argument
    option("--models", type=Path, default=Path("checkpoints"), metavar="FOLDER", help="offer those in it (%(default)s)")
    option("--library", type=Path, help="clips to choose from (see `aicl index`), not those beside each model")
    option("--devices", nargs="+", metavar="DEVICE", help="one worker for each (default: all GPUs, or the CPU)")
    option(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    option("--offload", action="store_true", help="keep on the GPU only what works there at the moment: less memory")
    option("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: %(default)s)")
    option("--port", type=int, default=7860, help="0 is any that is free (default: %(default)s)")
    option("--out", type=Path, default=Path("outputs/web"), metavar="FOLDER", help="for all files (%(default)s)")
    option("--keep-hours", type=float, default=24.0, metavar="X", help="files go so long after their last use (24)")
    option("--keep-gigabytes", type=float, default=5.0, metavar="X", help="and the oldest beyond so many (5)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C. Raises ConfigError for options that cannot be, CheckpointError without a model."""
    if not (args.keep_hours > 0 and args.keep_gigabytes > 0):
        raise ConfigError("--keep-hours and --keep-gigabytes must be above 0")
    check_there(args.models, "give a folder of models, such as those that aicl convert and aicl export write")
    check_there(args.library, "make a library of clips with aicl index")

    from aicl.apps.serving import serve_app  # first: it says what is missing
    from aicl.apps.web_demo.app import build_app
    from aicl.apps.web_demo.models import list_models
    from aicl.apps.web_demo.service import Limits, Service
    from aicl.apps.web_demo.work import Worker, worker_devices
    from aicl.extensions import load_extensions
    from aicl.options import ModelOptions
    from lvdm.files import locked

    load_extensions()  # which bring templates of prompts
    cards, problems = list_models(args.models)
    for problem in problems:
        print(f"left out: {problem}")
    options = ModelOptions(dtype=args.dtype, offload=args.offload)
    workers = [Worker(options, device) for device in worker_devices(args.devices)]
    library = _library(args.library) if args.library else None
    with locked(args.out, "serves its page"):
        service = Service(cards, args.out, workers, library, Limits(args.keep_hours, args.keep_gigabytes))
        print(f"{len(cards)} model(s), {len(workers)} worker(s)")
        serve_app(lambda: build_app(service), args.host, args.port, "the page is at")


def _library(path: Path) -> "Library":
    """The clips of a library, or of an index of verbs. Raises DataError for what is neither."""
    from aicl.action_library import ActionLibrary
    from aicl.reference_retrieval import Library, load_library

    if not path.is_dir():
        return load_library(path)
    library = ActionLibrary.open(path)
    return Library(library.paths, library.index)
