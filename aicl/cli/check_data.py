"""Find the broken videos of a data set before training does.

    aicl check-data --config configs/aicl_lvdm.yaml data.path=/data/webvid
    aicl check-data --kind ucf101 --path /data/UCF-101 --report ucf101.json
    aicl check-data --kind folder --path my_videos --quick

Decodes every frame of every video (--quick: only the first). Interrupt it and run it again: it goes on. Give the
report to a training as data.report, and the broken videos are not even tried. Exit status 1 if there are any.
"""

import argparse
import os
from typing import TYPE_CHECKING

from tqdm import tqdm

from aicl.cli import Parser, data_schema, new_parser
from lvdm import cli
from lvdm.config import from_mapping, load
from lvdm.errors import ConfigError, DataError
from lvdm.files import check_writable

if TYPE_CHECKING:
    from lvdm.data import Manifest


_SHORT = {
    "stretch": "are played more slowly",
    "hold": "hold their last frame",
    "loop": "start again at their end",
    "error": "are left out",
}


def parser() -> Parser:
    """The options of `aicl check-data`."""
    parser = new_parser("check-data", __doc__)
    parser.add_overrides("changes to the config")
    parser.add_argument("--config", help="a config file with a data section")
    parser.add_argument("--kind", choices=("ucf101", "webvid", "folder"), help="without a config: the kind of data set")
    parser.add_argument("--path", help="without a config: its folder")
    parser.add_argument("--captions", help="without a config: its captions file")
    parser.add_argument(
        "--default-caption",
        metavar="TEXT",
        help="without a config: caption of the videos of a folder that have none (default: that is an error)",
    )
    parser.add_argument("--report", default="check_data.json", help="where to write the report (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="decode only the first frame of each video")
    return parser


def manifest(args: argparse.Namespace) -> "Manifest":
    """The data set that the options name. Raises ConfigError where they name none."""
    for place in (args.path, args.captions):
        cli.check_there(place, "give the folder of the videos, and the file of their captions if there is one")
    from lvdm.data import DataConfig, Manifest

    if args.config:
        for name in ("kind", "path", "captions", "default_caption"):
            if (value := getattr(args, name)) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} is for a check without a config: give data.{name}={value} with --config")
        return from_mapping(DataConfig, load(args.config, args.overrides, data_schema()).get("data", {}), "data")
    if args.overrides:
        raise ConfigError(f"{args.overrides[0]} changes a config, and none is given: name one with --config")
    if not (args.kind and args.path):
        raise ConfigError("say what to check: --config FILE, or --kind and --path")
    return Manifest(kind=args.kind, path=args.path, captions=args.captions, default_caption=args.default_caption)


def main(args: argparse.Namespace) -> int:
    """Check the data set and write its report; status 1 if a video is broken."""
    data = manifest(args)
    _check_report(args.report)

    from lvdm.data import DataConfig, read_records
    from lvdm.data.checking import check_records

    records = read_records(data)
    with tqdm(total=len(records), unit="video") as bar:

        def progress(done: int, total: int, broken: int) -> None:
            bar.set_postfix(broken=broken, refresh=False)
            bar.update(done - bar.n)

        clip = data.clip if isinstance(data, DataConfig) else None
        report = check_records(records, args.report, args.workers, args.quick, progress, clip)
    for reason in report["broken"].values():
        print(reason)
    for key, message in report["damaged"].items():
        print(f"{key}: {message}; the file is damaged, fetch it again")
    for key in report["single_frame"]:
        print(f"{key}: a single frame shows no motion, so trainings on clips leave it out; give a video in its place")
    if clip is not None and report["short"]:
        rate = f"at {clip.fps:g} a second" if clip.fps is not None else f"with a stride of {clip.stride or 1:g}"
        print(
            f"{len(report['short'])} of {report['checked']} videos are shorter than a clip of {clip.num_frames} frames "
            f"{rate}: they {_SHORT[clip.short]} (data.clip.short = {clip.short}), see 'short' in {args.report}"
        )
    counts = f"{len(report['broken'])} broken, {len(report['damaged'])} damaged"
    if report["single_frame"]:
        counts += f", {len(report['single_frame'])} of a single frame"
    print(f"{report['checked']} videos checked, {counts}: see {args.report}")
    return 1 if report["broken"] else 0


def _check_report(path: str) -> None:
    """Raise ConfigError where something else than an earlier report lies at the report's place: it is not replaced."""
    from lvdm.data import read_report

    check_writable(path)
    if os.path.lexists(path):
        try:
            read_report(path)
        except DataError as error:
            raise ConfigError(
                f"{path} exists already and is no report of aicl check-data: choose another --report"
            ) from error
