"""Run a table or an experiment of the paper on the puppet world; write Markdown and LaTeX, or pictures.

  python scripts/reproduce.py --table I
  python scripts/reproduce.py --table V model.path=runs/puppets_aicl evaluators.classifier=runs/puppets_classifier
  python scripts/reproduce.py --experiment nonsense videos=64 real=600 allow_few=true
  torchrun --nproc-per-node 4 scripts/reproduce.py --table I

Presets are in configs/tables; key=value changes one. What was measured before is not measured again.
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch

from aicl.evaluation.experiments import Experiment, load_preset
from lvdm import cli
from lvdm.files import check_writable

PRESETS = Path(__file__).resolve().parent.parent / "configs" / "tables"
TABLES = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5}


def main() -> None:
    experiments = sorted(path.stem.removeprefix("experiment_") for path in PRESETS.glob("experiment_*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", choices=TABLES)
    what.add_argument("--experiment", choices=experiments)
    what.add_argument("--preset", type=Path, help="a preset of your own")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the preset")
    parser.add_argument("--out", type=Path, default=Path("outputs/tables"), help="default: %(default)s")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--save-videos", action="store_true", help="keep the videos that are measured, as mp4")
    args = parser.parse_args()
    if args.preset:
        preset = args.preset
    else:
        preset = PRESETS / (f"table_{TABLES[args.table]}.yaml" if args.table else f"experiment_{args.experiment}.yaml")

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


if __name__ == "__main__":
    cli.run(main)
