"""Find the broken videos of a data set before training does.

    python scripts/check_data.py --config configs/aicl_lvdm.yaml data.path=/data/webvid
    python scripts/check_data.py --kind ucf101 --path /data/UCF-101 --report ucf101.json
    python scripts/check_data.py --kind folder --path my_videos --quick

Decodes every frame of every video (--quick: only the first). Interrupt it and run it again: it goes on. Give the
report to a training as data.report, and the broken videos are not even tried. Exit status 1 if there are any.
"""

import argparse
import os

from tqdm import tqdm

from lvdm import cli
from lvdm.config import from_mapping, load
from lvdm.data import DataConfig, Manifest, read_records
from lvdm.data.checking import check_records
from lvdm.data.manifest import DataSchema
from lvdm.errors import ConfigError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--config", help="a config file with a data section")
    parser.add_argument("--kind", choices=("ucf101", "webvid", "folder"), help="without a config: the kind of data set")
    parser.add_argument("--path", help="without a config: its folder")
    parser.add_argument("--captions", help="without a config: its captions file")
    parser.add_argument("--report", default="check_data.json", help="where to write the report (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="decode only the first frame of each video")
    return parser.parse_intermixed_args()


def manifest(args: argparse.Namespace) -> Manifest:
    if args.config:
        return from_mapping(DataConfig, load(args.config, args.overrides, DataSchema).get("data", {}), "data")
    if not (args.kind and args.path):
        raise ConfigError("say what to check: --config FILE, or --kind and --path")
    return Manifest(kind=args.kind, path=args.path, captions=args.captions)


def main() -> int:
    args = parse()
    records = read_records(manifest(args))
    with tqdm(total=len(records), unit="video") as bar:

        def progress(done: int, total: int, broken: int) -> None:
            bar.set_postfix(broken=broken, refresh=False)
            bar.update(done - bar.n)

        report = check_records(records, args.report, args.workers, args.quick, progress)
    for reason in report["broken"].values():
        print(reason)
    print(f"{report['checked']} videos checked, {len(report['broken'])} broken: see {args.report}")
    return 1 if report["broken"] else 0


if __name__ == "__main__":
    cli.run(main)
