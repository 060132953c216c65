"""Show what AICL does: a video of an action that the base model never saw, from two reference clips.

examples:
  aicl quickstart
  aicl quickstart --action hammer --seed 3

Uses the models in checkpoints/puppets. The folder outputs/demo is made anew each time.
"""

import argparse
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from aicl.cli import Parser, new_parser, parse, verb_module
from aicl.puppets.unseen import UNSEEN
from lvdm.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[2]  # of a checkout, which holds the models
MODEL, OUT = Path("checkpoints/puppets"), Path("outputs/demo")
PERSON: dict[str, Any] = {"shirt": "red", "trousers": "blue", "background": "green"}
REFERENCES = 2
COMMAND = ".venv/bin/aicl" if Path(sys.prefix) == ROOT / ".venv" else "aicl"


def parser() -> Parser:
    """The options of `aicl quickstart`."""
    parser = new_parser("quickstart", __doc__)
    parser.add_argument("--action", metavar="NAME", default="jacks", help="an unseen action (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the video (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the demo's files, in a checkout from wherever it is called. Raises CheckpointError, ConfigError."""
    if args.action not in UNSEEN:
        raise ConfigError(f"--action {args.action} is none that the model never saw: choose from {', '.join(UNSEEN)}")
    if (ROOT / MODEL).is_dir():
        os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    show(args.action, args.seed, MODEL, OUT)


def show(action: str, seed: int, model: Path, out: Path) -> None:
    """Make the demo's files in `out` with `model`, and say what they are."""
    from aicl.puppets.actions import ACTIONS, INDEX
    from aicl.puppets.captions import Description, caption
    from lvdm.video import probe, read_frames, write_video

    start = time.perf_counter()
    prompt = caption(Description(ACTIONS[INDEX[action]].phrase, **PERSON))
    shown = reference_clips(action, model)
    files = ["--references", *map(str, shown), "--compare", "--out", str(out / "aicl.mp4")]
    call("sample", "--model", str(model), "--prompt", prompt, *files, "--seed", str(seed))
    compared = out / "aicl-compare.mp4"
    info = probe(compared)
    write_video(compared.with_suffix(".gif"), read_frames(compared, list(range(info.num_frames))), info.fps)

    print(f"\n{time.perf_counter() - start:.0f} s. '{prompt}'")
    print(f"  {out}/aicl.mp4          the video; how it was made stands in aicl.json")
    print(f"  {out}/aicl-compare.gif  references | base model | AICL, also as .mp4 and frame by frame as .png")
    other = caption(Description(ACTIONS[INDEX[action]].phrase, "yellow", "black", "purple", height="tall"))
    print("\nWhat to try next:")
    print(f"  {command('quickstart', '--action', next(name for name in UNSEEN if name != action))}")
    print(f"  {command('sample', '--prompt', other, '--references', *map(str, shown))}")
    print(f"  {command('sample', '--prompt', other, '--references', 'YOUR_VIDEO.mp4', '--compare')}")
    print("  README.md: your own data, larger models, training")


def reference_clips(action: str, model: Path) -> list[Path]:
    """The model's example clips of an action. Raises CheckpointError where the folder is not as it was checked out."""
    from aicl.model_files import FOLDER_FILE
    from lvdm.data import read_folder

    if not (model / FOLDER_FILE).is_file():
        raise CheckpointError(f"there is no model in {model}, which is part of the repository: call this in a checkout")
    found = [Path(record.path) for record in read_folder(model / "examples") if record.label == action]
    if len(found) < REFERENCES:
        raise CheckpointError(
            f"{model}/examples has {len(found)} clips of {action}, not {REFERENCES}: check it out again"
        )
    return found[:REFERENCES]


def command(verb: str, *arguments: str) -> str:
    """What to type for a verb."""
    return f"{COMMAND} {verb} {shlex.join(arguments)}"


def call(verb: str, *arguments: str) -> None:
    """Do what that command would, without the seconds that a new process takes to start."""
    print(f"$ {command(verb, *arguments)}", flush=True)
    verb_module(verb).main(parse(verb, arguments))
