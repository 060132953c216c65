"""Put what training runs made into one folder that can be kept and shared.

examples:
  aicl export --base runs/puppets_base --adapter runs/puppets_self_pairs --out checkpoints/mine
  aicl export --base runs/puppets_base --adapter runs/puppets_self_pairs --out checkpoints/small \\
      --dtype float16 --evaluators runs/puppets_classifier runs/puppets_clip

The folder is what `AICLPipeline.from_pretrained` and `aicl sample --model` load, with a file SHA256SUMS that
`sha256sum --check` reads. A run means its newest checkpoint. Without --adapter only the base model is written.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.cli import Parser, new_parser
from aicl.options import OF_ADAPTER, ModelOptions, SamplingOptions
from lvdm.cli import check_there
from lvdm.errors import CheckpointError, ConfigError
from lvdm.files import atomic_path

if TYPE_CHECKING:
    import torch

EVALUATORS = ("classifier", "clip")  # what trainings of evaluators write: NAME.safetensors and NAME.yaml


def parser() -> Parser:
    """The options of `aicl export`."""
    parser = new_parser("export", __doc__)
    parser.add_argument("--base", required=True, help="a model folder, or the run that trained the base model")
    parser.add_argument("--adapter", help="an adapter file, or the run that trained it")
    parser.add_argument(
        "--first-reference-until",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="the model's default of this option of `aicl sample` (default: 0)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="NUMBER",
        help="the model's default of this option for videos with references (default: the base model's)",
    )
    parser.add_argument(
        "--num-inference-steps",
        type=int,
        metavar="NUMBER",
        help="the model's default of this option for videos with references (default: the base model's)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="captioned videos like those of the training: say of each reference how unlike it is (see aicl calibrate)",
    )
    parser.add_argument(
        "--default-caption", metavar="TEXT", help="of videos of --calibrate that have none (default: that is an error)"
    )
    parser.add_argument("--evaluators", nargs="+", default=[], help="runs of the puppet world's classifier and CLIP")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of all weights")
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the folder. Raises CheckpointError where a part is missing or the folder exists already."""
    options = ModelOptions(base=args.base, adapter=args.adapter, device="cpu", dtype=args.dtype)
    options.check_places()
    for place in (args.calibrate, *args.evaluators):
        check_there(place, "give a folder that is there, or leave it out")
    import torch

    from aicl.sampling_models import load_model
    from lvdm.checkpoints.folder import new_folder
    from lvdm.hashing import SUMS, write_sums

    own = {name: getattr(args, name) for name in OF_ADAPTER}
    SamplingOptions(**own)  # checks them
    dtype = getattr(torch, args.dtype)
    evaluators = {name: folder for run in args.evaluators for name, folder in find_evaluators(run).items()}

    if args.default_caption is not None and not args.calibrate:
        raise ConfigError("--default-caption is for the videos of --calibrate, and none are given: leave it out")
    if args.calibrate and not args.adapter:
        raise ConfigError("--calibrate measures which references are usual for an adapter: give one with --adapter")
    if args.calibrate:
        options.dtype = "float32"  # until it is written: CPUs compute slowly in half precision
    pipeline = load_model(options)
    if args.calibrate:
        from tqdm.auto import tqdm

        from aicl.calibration import calibrate
        from lvdm.data import Manifest, read_records

        records = read_records(Manifest(kind="folder", path=args.calibrate, default_caption=args.default_caption))
        pipeline.domain = calibrate(
            pipeline, records, progress=lambda batches: tqdm(batches, unit="batch", desc="clips")
        )
        alarms = f"{pipeline.domain.false_alarms:.1%} of {pipeline.domain.held_out}"
        pipeline.to(dtype=dtype)
        print(f"usual references: from {pipeline.domain.clips} clips; {alarms} kept apart get the warning by mistake")
    with new_folder(args.out) as whole:
        model = whole / "model"  # a folder of its own while it is written
        if args.adapter:
            for name, value in own.items():
                setattr(pipeline, name, value)
            pipeline.save_pretrained(model)
        else:
            pipeline.base.save(model)
        for path in list(model.iterdir()):
            path.rename(whole / path.name)
        model.rmdir()
        for name, folder in evaluators.items():
            copy_evaluator(folder, whole, name, dtype)
        write_sums(whole, "*.safetensors")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB in {args.dtype}; verify with: cd {args.out} && sha256sum --check {SUMS}")


def find_evaluators(run: str) -> dict[str, Path]:
    """The evaluators that a run trained, or that lie in a folder: name -> folder. Raises CheckpointError for none."""
    from lvdm.checkpoints import find_export

    found = {}
    for name in EVALUATORS:
        try:
            found[name] = find_export(run, f"{name}.safetensors")
        except CheckpointError:
            continue
    if not found:
        raise CheckpointError(f"{run} holds no evaluator: it has neither of {', '.join(EVALUATORS)}.safetensors")
    return found


def copy_evaluator(source: Path, target: Path, name: str, dtype: "torch.dtype") -> None:
    """Copy NAME.safetensors, in another precision, and the NAME.yaml that describes it.

    Raises CheckpointError where one of them is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    try:
        weights = load_file(source / f"{name}.safetensors")
        description = (source / f"{name}.yaml").read_bytes()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{source}: {name}.safetensors and {name}.yaml cannot both be read") from error
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    with atomic_path(target / f"{name}.safetensors") as temporary:
        save_file(cast, temporary)
    (target / f"{name}.yaml").write_bytes(description)
