"""Measure a table or an experiment of the paper, on its data sets or another; write Markdown and LaTeX, or pictures.

  aicl reproduce --table I --benchmark ucf101 webvid model.lvdm=checkpoints/lvdm_t2v_256 adapter.lvdm=runs/aicl_lvdm
  aicl reproduce --table IV --benchmark ucf101 benchmark.path=data/UCF-101 evaluators.classifier=checkpoints/videomae
  aicl reproduce --table V --benchmark folder benchmark.path=my_videos videos=50
  aicl reproduce --table I III IV V     # on the puppet world, with the shipped models
  aicl reproduce --experiment pseudo_words videos=64 real=600 allow_few=true
  torchrun --nproc-per-node 4 -m aicl reproduce --table I --benchmark ucf101

Presets are in configs/benchmarks and configs/tables; key=value changes one. A row whose weights are missing says so in
the table. A row that could not be made, since numbers were no longer finite for example, says so too; the others are
measured, and the command ends with an error. So it does where no row of a table could be run. What was generated or
measured before is not done again.
"""

import argparse
from datetime import timedelta
from pathlib import Path

from aicl.cli import Parser, new_parser
from aicl.evaluation.preset_files import check_data, check_names, preset_files
from aicl.evaluation.presets import load_preset, read_preset
from lvdm import cli
from lvdm.config import shipped_configs
from lvdm.errors import ConfigError, UserError
from lvdm.files import check_writable

TABLES = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5}
DEFAULT = "puppets"


def parser() -> Parser:
    """The options of `aicl reproduce`."""
    presets = (shipped_configs() / "tables").rglob("experiment_*.yaml")
    experiments = sorted({path.stem.removeprefix("experiment_") for path in presets})
    parser = new_parser("reproduce", __doc__)
    parser.add_argument("--table", nargs="+", choices=TABLES, default=[], help="of the paper")
    parser.add_argument("--experiment", nargs="+", choices=experiments, default=[], help="one or several")
    parser.add_argument(
        "--preset", nargs="+", type=Path, default=[], help="tables of your own, written like those in configs/tables"
    )
    parser.add_argument(
        "--benchmark",
        nargs="+",
        default=[DEFAULT],
        metavar="NAME",
        help="ucf101, webvid, folder, puppets, or a file like those in configs/benchmarks (default: puppets)",
    )
    parser.add_overrides("changes to the preset")
    parser.add_argument("--out", type=Path, default=Path("outputs/tables"), help="default: %(default)s")
    parser.add_argument("--device", help="default: the GPU if there is one")
    parser.add_argument("--save-videos", action="store_true", help="also write the videos as mp4, with a manifest")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure what a preset asks for, write its tables and draw its pictures.

    Raises UserError, after all tables are written, where rows could not be made though all they need is there, and
    where no row of a table was run; of several processes the first does, and the others return its exit status.
    """
    tables = [f"table_{TABLES[name]}" for name in args.table] + [f"experiment_{name}" for name in args.experiment]
    tables += map(str, args.preset)
    if not tables:
        raise ConfigError("say what to measure, with --table, --experiment or --preset")
    asked = [preset_files(table, benchmark) for benchmark in args.benchmark for table in tables]
    check_names(asked, args.overrides)
    for files in asked:
        check_data(read_preset(files, args.overrides))
    import torch

    from aicl.evaluation.engine import Experiment

    rank, world_size = cli.rank_and_world_size()
    device = cli.device(args.device)
    if world_size > 1:  # only to wait for each other: work is shared through files
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=2))

    def wait() -> None:
        if world_size > 1:
            torch.distributed.barrier()

    failed: list[str] = []
    empty: list[str] = []
    for files in asked:
        name = f"{files[-1].stem}_{files[0].stem}"
        check_writable(args.out / f"{name}.md")
        experiment = Experiment(load_preset(files, args.overrides), args.out, device)
        if experiment.preset.rows:
            experiment.run(rank, world_size, wait, name if args.save_videos else None)
            if (why := experiment.why_nothing) is not None:
                empty.append(f"{name} (row {why})")
            else:
                failed += [f"'{label}' of {name}" for label in experiment.failed]
        if rank == 0 and experiment.preset.rows:
            print(experiment.write(name))
            results = f" and {args.out}/results/" if (args.out / "results").is_dir() else ""  # of rows that were run
            print(f"written to {args.out}/{name}.md, .tex{results}")
        for picture in experiment.draw(name) if rank == 0 else []:
            print(f"drawn: {picture}")
    if world_size > 1:
        torch.distributed.destroy_process_group()
    errors = []
    if empty:
        errors.append(f"nothing was measured for {', '.join(empty)}; the tables say what each row lacks")
    if failed:
        errors.append(
            f"{', '.join(failed)} could not be made: why stands beneath the tables, which have the other rows"
        )
    if errors and rank == 0:
        raise UserError("; ".join(errors))
    return 2 if errors else 0
