"""Measure what the library costs on this machine, with random weights, and keep the figures.

examples:
  python scripts/benchmark.py generate                       # every full-size model, in bfloat16 on the GPU
  python scripts/benchmark.py generate --model lvdm_t2v_256 --table docs/benchmarks.md
  python scripts/benchmark.py convert --model videocrafter2_t2v_512 --folder /tmp/convert
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from lvdm import benchmarks, cli
from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.files import write_json
from lvdm.models.components import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("lvdm_t2v_256", "videocrafter1_t2v_512", "videocrafter2_t2v_512", "videocrafter1_i2v_512")
LAYOUTS = ROOT / "tests" / "parity" / "full_layouts.json.gz"


def main() -> None:
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument("--out", type=Path, help="write all records of this run to this JSON file")
    results.add_argument("--table", type=Path, help="append a row for each record to this Markdown file")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("generate", parents=[results], help="generate a 16-frame video at full size")
    command.add_argument("--model", nargs="+", default=MODELS, help="names in configs/models (default: all full-size)")
    command.add_argument("--device", default="cuda")
    command.add_argument("--batch", type=int, default=1)
    command.set_defaults(run=generate, title="Generation")

    command = commands.add_parser(
        "convert", parents=[results], help="write, convert and load a full-size published file"
    )
    command.add_argument("--model", nargs="+", default=["videocrafter2_t2v_512"], choices=MODELS)
    command.add_argument(
        "--folder", type=Path, help="where the files go, twice their size (default: a temporary folder)"
    )
    command.set_defaults(run=convert, title="Conversion of a published checkpoint")

    args = parser.parse_args()
    records = []
    for record in args.run(args):
        print(record, flush=True)
        records.append(record)
        if args.table:
            benchmarks.append_row(args.table, args.title, record)
        if args.out:
            write_json(args.out, {"benchmark": args.command, "records": records})


def model_config(name: str) -> ModelConfig:
    path = ROOT / "configs" / "models" / f"{name}.yaml"
    return configs.from_mapping(ModelConfig, configs.load(path), where=str(path))


def generate(args: argparse.Namespace) -> Iterator[dict]:
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device: choose another with --device")
    for name in args.model:
        yield {"model": name, **benchmarks.generate(model_config(name), args.device, batch=args.batch)}


def convert(args: argparse.Namespace) -> Iterator[dict]:
    script = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py")]
    for name in args.model:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=args.folder))
        try:
            layout = benchmarks.read_layouts(LAYOUTS)[name]
            yield {"model": name, **benchmarks.convert(layout, model_config(name), folder, script)}
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    cli.run(main)
