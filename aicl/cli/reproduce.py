"""Run a table or an experiment of the paper on the puppet world; write Markdown and LaTeX, or pictures.

  aicl reproduce --table I
  aicl reproduce --table V model.path=runs/puppets_aicl evaluators.classifier=runs/puppets_classifier
  aicl reproduce --experiment nonsense videos=64 real=600 allow_few=true
  torchrun --nproc-per-node 4 -m aicl reproduce --table I

Presets are in configs/tables; key=value changes one. What was measured before is not measured again.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path

from aicl.cli import new_parser
from lvdm import cli
from lvdm.config import shipped_configs
from lvdm.files import check_writable

TABLES = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5}


def parser() -> argparse.ArgumentParser:
    """The options of `aicl reproduce`."""
    presets = (shipped_configs() / "tables").glob("experiment_*.yaml")
    experiments = sorted(path.stem.removeprefix("experiment_") for path in presets)
    parser = new_parser("reproduce", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", choices=TABLES)
    what.add_argument("--experiment", choices=experiments)
    what.add_argument("--preset", type=Path, help="a preset of your own")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the preset")
    parser.add_argument("--out", type=Path, default=Path("outputs/tables"), help="default: %(default)s")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--save-videos", action="store_true", help="keep the videos that are measured, as mp4")
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure what a preset asks for, write its tables and draw its pictures."""
    import torch

    from aicl.evaluation.experiments import Experiment, load_preset

    name = f"table_{TABLES[args.table]}" if args.table else f"experiment_{args.experiment}"
    preset = args.preset or shipped_configs() / "tables" / f"{name}.yaml"

    check_writable(args.out / f"{preset.stem}.md")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    experiment = Experiment(load_preset(preset, args.overrides), args.out, cli.device(args.device))
    if world_size > 1:  # only to wait for each other: work is shared through files
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=2))
    experiment.run(rank, world_size, save_videos=args.save_videos)
    if world_size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank == 0:
        if experiment.preset.tables:
            print(experiment.write(preset.stem))
            print(f"written to {args.out}/{preset.stem}.md, .tex and {args.out}/results/")
        for picture in experiment.draw(preset.stem):
            print(f"drawn: {picture}")
