"""Measure what the library costs on this machine, with random weights, and keep the figures.

examples:
  aicl benchmark all --out all.json             # what one model costs, in some minutes
  aicl benchmark all --clips data/puppets --devices cuda:0 cuda:1 --out all.json   # training and several GPUs, too
  aicl benchmark step                           # a denoising step of every full-size model, beside its floor
  aicl benchmark step --model videocrafter2_t2v_512 --upstream ~/VideoCrafter --out step.json
  aicl benchmark clip                           # a prompt to an mp4 file
  aicl benchmark clip --model t2v_turbo_v2 --steps 8 --sampler lcm
  aicl benchmark batches --model lvdm_t2v_256   # videos a minute and memory at several batch sizes
  aicl benchmark devices --devices cuda:0 cuda:1   # videos a minute of one GPU, and of several at once
  aicl benchmark offload                        # a video within 8 GiB of the GPU's memory
  aicl benchmark generate                       # every full-size model, in bfloat16 on the GPU
  aicl benchmark generate --model lvdm_t2v_256 --table docs/benchmarks.md
  aicl benchmark convert --model videocrafter2_t2v_512 --folder outputs/convert
  aicl benchmark train --config aicl_lvdm --clips data/puppets   # 20 steps at the paper's batch size
  aicl benchmark train --clips data/puppets --cached training.devices=2 training.strategy=ddp
  aicl benchmark strategies --config aicl_lvdm --clips data/puppets --limits 24 48 80   # auto beside the best by hand
  aicl benchmark overhead --config aicl_videocrafter2 --references 1 3
  aicl benchmark profile --config configs/puppets/base.yaml training.batch_size=128
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicl.cli import Parser, new_parser
from lvdm import cli
from lvdm import config as configs
from lvdm.errors import ConfigError
from lvdm.files import check_writable, make_folder, write_json

if TYPE_CHECKING:
    from lvdm.models.components import ModelConfig

CONFIGS = {
    "aicl_lvdm": "lvdm_t2v_256",
    "aicl_videocrafter": "videocrafter1_t2v_512",
    "aicl_videocrafter2": "videocrafter2_t2v_512",
    "aicl_videocrafter_i2v": "videocrafter1_i2v_512",
}
MODELS = tuple(CONFIGS.values())
ALL = "aicl_videocrafter2"  # what `all` measures: each takes some minutes
LIMITS = (80.0, 48.0, 24.0)  # GiB of usual cards
LAYOUTS = Path(__file__).resolve().parents[2] / "tests" / "parity" / "full_layouts.json.gz"  # of a checkout


def parser() -> Parser:
    """The options of `aicl benchmark`."""
    results = Parser(add_help=False)
    results.add_argument("--out", type=Path, help="write all records of this run to this JSON file")
    results.add_argument("--overwrite", action="store_true", help="replace what --out names, if it is there")
    results.add_argument("--table", type=Path, help="append a row for each record to this Markdown file")
    parser = new_parser("benchmark", __doc__)
    parser.takes_overrides = parser.has_parts = True
    commands = parser.add_subparsers(dest="command", required=True)

    speed = Parser(add_help=False, parents=[results])
    speed.add_argument("--model", nargs="+", default=MODELS, help="names in configs/models (default: all full-size)")
    speed.add_argument("--device", default="cuda")
    speed.add_argument("--compile", default="auto", choices=("auto", "none", "graphs", "full"))

    quantization = Parser(add_help=False)
    quantization.add_argument(
        "--quantization", default="none", choices=("none", "fp8"), help="compute wide linear layers in 8 bits"
    )
    command = commands.add_parser(
        "step", parents=[speed, quantization], help="a guided denoising step, beside its floor"
    )
    command.add_argument("--upstream", type=Path, help="a checkout of LVDM or VideoCrafter, which is timed beside it")
    command.set_defaults(run=step, title="A denoising step")

    command = commands.add_parser("clip", parents=[speed, quantization], help="a prompt to an mp4 file")
    command.add_argument("--steps", type=int, default=25)
    command.add_argument("--sampler", default="dpmpp_2m", help="default: %(default)s; lcm for t2v_turbo_v2")
    command.add_argument(
        "--step-cache", type=int, default=1, metavar="N", help="compute the whole UNet at every Nth step"
    )
    command.set_defaults(run=clip, title="A clip")

    command = commands.add_parser("batches", parents=[speed], help="videos a minute at several batch sizes")
    command.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    command.set_defaults(run=batches, title="Many clips")

    command = commands.add_parser("offload", parents=[speed], help="a video on a card of little memory")
    command.add_argument("--memory-limit", type=float, default=8.0, metavar="GIB", help="default: %(default)s")
    command.add_argument("--steps", type=int, default=25)
    command.set_defaults(run=offload, title="Small cards")

    command = commands.add_parser("devices", parents=[speed], help="videos a minute on several GPUs at once")
    command.add_argument("--devices", nargs="+", metavar="DEVICE", help="default: all GPUs")
    command.add_argument("--videos", type=int, default=1, help="at once on each (default: %(default)s)")
    command.set_defaults(run=devices, title="Several GPUs")

    command = commands.add_parser("all", parents=[results], help="all benchmarks of a model in one call")
    command.add_argument("--config", nargs="+", default=[ALL], choices=CONFIGS, help=f"a training, default: {ALL}")
    command.add_argument(
        "--devices", nargs="+", default=["cuda"], metavar="DEVICE", help="the first measures most parts"
    )
    command.add_argument(
        "--clips", type=Path, help="a folder that aicl make-puppets wrote: trainings are measured, too"
    )
    command.add_argument("--upstream", type=Path, help="a checkout of LVDM or VideoCrafter, whose step is timed, too")
    command.add_argument("--steps", type=int, default=50, help="of denoising a video (default: %(default)s)")
    command.add_argument(
        "--only", nargs="+", metavar="PART", help="some of the parts, as they are called in the records"
    )
    command.add_argument(
        "--limits", type=float, nargs="+", default=LIMITS, metavar="GIB", help="of the part strategies"
    )
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the trainings that differ")
    command.set_defaults(run=everything, title="All in one call")

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

    command = commands.add_parser("train", parents=[results], help="train AICL at full size, as the configs say")
    command.add_argument("--config", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    command.add_argument("--clips", type=Path, required=True, help="a folder that aicl make-puppets wrote")
    command.add_argument("--steps", type=int, default=20)
    command.add_argument("--memory-limit", type=float, metavar="GIB", help="let PyTorch reserve no more than this")
    command.add_argument("--cached", action="store_true", help="encode the clips first, and train from their latents")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the config")
    command.set_defaults(run=train, title="Training AICL")

    command = commands.add_parser("strategies", parents=[results], help="strategy auto beside the best by hand")
    command.add_argument("--config", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    command.add_argument("--clips", type=Path, required=True, help="a folder that aicl make-puppets wrote")
    command.add_argument("--limits", type=float, nargs="+", default=LIMITS, metavar="GIB", help="default: 80 48 24")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the config")
    command.set_defaults(run=compare, title="Strategies of training")

    command = commands.add_parser("overhead", parents=[results], help="the time that AICL adds to sampling")
    command.add_argument("--config", nargs="+", default=list(CONFIGS), choices=CONFIGS)
    command.add_argument("--references", type=int, nargs="+", default=[1, 3])
    command.add_argument("--steps", type=int, default=50)
    command.add_argument("--device", default="cuda")
    command.add_argument("--repeats", type=int, default=2, help="of each sampling, of which the fastest counts")
    command.set_defaults(run=overhead, title="What AICL adds to sampling")

    command = commands.add_parser(
        "profile", parents=[results], help="where the time of a training step goes, by phase and by kernel"
    )
    command.add_argument("--config", required=True, metavar="FILE", help="a training's YAML file, see configs/")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
    command.set_defaults(run=profile, title="A training step")

    return parser


def main(args: argparse.Namespace) -> None:
    """Run one benchmark; print each record when it is there, and keep it where asked."""
    from lvdm import benchmarks

    check_options(args)
    records = []
    for record in args.run(args):
        print(record, flush=True)
        records.append(record)
        if args.table:
            benchmarks.append_row(args.table, args.title, record)
        if args.out:
            write_json(args.out, {"benchmark": args.command, "records": records})


def check_options(args: argparse.Namespace) -> None:
    """Say at once, before anything is built, what nothing can be measured with or would be known only after minutes.

    Raises ConfigError for counts and limits, for clips, models and a checkout that are not there, and for results that
    exist; DiskError where results cannot be written.
    """
    for name in ("steps", "step_cache", "sizes", "videos", "batch", "references", "repeats"):
        found = getattr(args, name, None)
        for value in found if isinstance(found, list) else [found]:
            smallest = 5 if (name, args.command) == ("steps", "train") else 1  # the first four do not count
            if value is not None and value < smallest:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}: it must be at least {smallest}")
    for value in (*(getattr(args, "limits", None) or ()), getattr(args, "memory_limit", None)):
        if value is not None and not value > 0:
            raise ConfigError(f"a limit of {value} GiB leaves no memory: give more than 0")
    clips, upstream = getattr(args, "clips", None), getattr(args, "upstream", None)
    if clips is not None and not (clips / "captions.csv").is_file():
        raise ConfigError(f"{clips} has no captions.csv: make a folder of clips with aicl make-puppets")
    if upstream is not None and not any(upstream.glob("lvdm/**/openaimodel3d.py")):
        raise ConfigError(f"{upstream} has no lvdm/**/openaimodel3d.py: give a checkout of LVDM or VideoCrafter")
    for name in getattr(args, "model", None) or ():
        model_file(name)
    if args.out is not None and args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists already: choose another --out or add --overwrite")
    for path in (args.out, args.table):
        if path is not None:
            check_writable(path)


def model_file(name: str) -> Path:
    """The YAML file of a shipped model config by its name. Raises ConfigError, which names all that there are."""
    path = configs.find(f"models/{name}")
    if not path.is_file():
        shipped = sorted(each.stem for each in (configs.shipped_configs() / "models").glob("*.yaml"))
        raise ConfigError(f"--model {name} is no config in configs/models: choose from {', '.join(shipped)}")
    return path


def model_config(name: str) -> "ModelConfig":
    """A shipped model config by its name. Raises ConfigError."""
    from lvdm.checkpoints import read_model

    return read_model(str(model_file(name)))


def model_configs(args: argparse.Namespace) -> Iterator[tuple[str, "ModelConfig"]]:
    """The names and configs of the models that were asked for, where the device is there. Raises UserError."""
    cli.device(args.device)
    for name in args.model:
        yield name, model_config(name)


def step(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `step`: one record for each model."""
    from lvdm import speed

    for name, config in model_configs(args):
        options = {"upstream": args.upstream, "quantization": args.quantization}
        yield {"model": name, **speed.denoising_step(config, args.device, args.compile, **options)}


def clip(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `clip`: one record for each model."""
    from lvdm import speed

    for name, config in model_configs(args):
        options = {"sampler": args.sampler, "step_cache": args.step_cache, "quantization": args.quantization}
        yield {"model": name, **speed.clip(config, args.device, args.compile, args.steps, **options)}


def batches(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `batches`: one record for each model and size."""
    from lvdm import speed

    for name, config in model_configs(args):
        for record in speed.batches(config, args.device, args.compile, args.sizes):
            yield {"model": name, **record}


def offload(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `offload`: one record for each model."""
    from lvdm import speed

    for name, config in model_configs(args):
        yield {"model": name, **speed.offloaded(config, args.device, args.memory_limit, args.steps)}


def devices(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `devices`: one record for each model and number of devices."""
    import torch

    from lvdm import speed_devices

    names = args.devices or [f"cuda:{i}" for i in range(torch.cuda.device_count())] or [args.device]
    for name in names:
        cli.device(name)
    for name in args.model:
        for record in speed_devices.devices(model_config(name), names, args.compile, args.videos):
            yield {"model": name, **record}


def everything(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `all`: the records of each part, with its name. Raises ConfigError at the end if a part failed."""
    from aicl.benchmark_parts import Subject, parts, run_parts

    for name in args.devices:
        cli.device(name)
    failed = 0
    for name in args.config:
        training, model = config_paths(name)
        places = {"devices": args.devices, "clips": args.clips, "upstream": args.upstream}
        subject = Subject(
            model_config(CONFIGS[name]), training, model, **places, steps=args.steps, limits=args.limits,
            overrides=args.overrides,
        )  # fmt: skip
        chosen = parts(subject)
        unknown = [part for part in args.only or () if part not in chosen]
        if unknown:
            raise ConfigError(f"--only {unknown[0]} is no part here: choose from {', '.join(map(repr, chosen))}")
        for record in run_parts({part: chosen[part] for part in args.only or chosen}):
            failed += "failed" in record
            yield {"config": name, **record}
    if failed:
        raise ConfigError(f"{failed} of the parts failed: their records say why, and the others are complete")


def generate(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `generate`: one record for each model."""
    from lvdm import benchmarks

    for name, config in model_configs(args):
        yield {"model": name, **benchmarks.generate(config, args.device, batch=args.batch)}


def convert(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `convert`: one record for each model."""
    from lvdm import benchmarks

    if not LAYOUTS.is_file():
        raise ConfigError("the layouts of published files come with a checkout of the repository alone: run it in one")
    script = [sys.executable, "-m", "aicl", "convert"]
    if args.folder is not None:
        make_folder(args.folder)
    for name in args.model:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=args.folder))
        try:
            layout = benchmarks.read_layouts(LAYOUTS)[name]
            yield {"model": name, **benchmarks.convert(layout, model_config(name), folder, script)}
        finally:
            shutil.rmtree(folder)


def train(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `train`: one record for each config."""
    from aicl import benchmarks as aicl_benchmarks

    if args.memory_limit is not None:
        cli.device("cuda")
    for name in args.config:
        with tempfile.TemporaryDirectory(prefix="aicl-benchmark-") as folder:
            config, model = config_paths(name)
            record = aicl_benchmarks.train(
                config, model, args.clips, Path(folder), args.steps, args.overrides, args.memory_limit, args.cached
            )
            yield {"config": name, **record}


def compare(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `strategies`: one record for each config and limit."""
    from aicl.benchmark_parts import strategies

    for name in args.config:
        for record in strategies(*config_paths(name), args.clips, args.limits, args.overrides):
            yield {"config": name, **record}


def overhead(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `overhead`: one record for each config and number of references."""
    from aicl import benchmarks as aicl_benchmarks

    cli.device(args.device)
    for name in args.config:
        options = (args.references, args.steps, args.device, args.repeats)
        for record in aicl_benchmarks.overhead(*config_paths(name), *options):
            yield {"config": name, **record}


def profile(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Benchmark `profile`: one record, and its table on the screen."""
    import aicl.tasks  # noqa: F401 (makes the tasks known)
    from lvdm.training.profile import profile_training
    from lvdm.training.tasks import config_schema

    found = profile_training(configs.load(args.config, args.overrides, schema=config_schema()))
    print("\n".join(found.lines()))
    phases = {f"{name.replace(' ', '_')}_ms": round(ms, 2) for name, ms in found.phases.items()}
    yield {"config": args.config, "step_ms": round(found.step_ms, 2), **phases}


def config_paths(name: str) -> tuple[Path, Path]:
    """The training config of this name, and that of its base model."""
    return configs.find(name), configs.find(f"models/{CONFIGS[name]}")
