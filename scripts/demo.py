"""Show what AICL does: a video of an action that the base model never saw, from two reference clips.

examples:
  python scripts/demo.py
  python scripts/demo.py --action cartwheel --seed 3

Uses the models in checkpoints/puppets. The folder outputs/demo is made anew each time.
"""

import argparse
import os
import runpy
import shlex
import shutil
import sys
import time
from pathlib import Path

from aicl.pipeline import FOLDER_FILE
from aicl.puppets.actions import ACTIONS, INDEX, UNSEEN
from aicl.puppets.captions import Description, caption
from lvdm import cli
from lvdm.data import read_folder
from lvdm.errors import CheckpointError
from lvdm.video import probe, read_frames, write_video

ROOT = Path(__file__).resolve().parents[1]
MODEL, OUT = Path("checkpoints/puppets"), Path("outputs/demo")
PERSON = {"shirt": "red", "trousers": "blue", "background": "green"}
REFERENCES = 2
PYTHON = ".venv/bin/python" if Path(sys.prefix) == ROOT / ".venv" else "python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--action", choices=UNSEEN, default="jacks", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the video (default: %(default)s)")
    args = parser.parse_args()
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    show(args.action, args.seed, MODEL, OUT)


def show(action: str, seed: int, model: Path, out: Path) -> None:
    """Make the demo's files in `out` with `model`, and say what they are."""
    start = time.perf_counter()
    prompt = caption(Description(ACTIONS[INDEX[action]].phrase, **PERSON))
    shown = reference_clips(action, model)
    files = ["--refs", *map(str, shown), "--compare", "--out", str(out / "aicl.mp4")]
    call("sample.py", "--model", str(model), "--prompt", prompt, *files, "--seed", str(seed))
    compared = out / "aicl-compare.mp4"
    info = probe(compared)
    write_video(compared.with_suffix(".gif"), read_frames(compared, list(range(info.num_frames))), info.fps)

    print(f"\n{time.perf_counter() - start:.0f} s. '{prompt}'")
    print(f"  {out}/aicl.mp4          the video; how it was made stands in aicl.json")
    print(f"  {out}/aicl-compare.gif  references | base model | AICL, also as .mp4 and frame by frame as .png")
    other = caption(Description(ACTIONS[INDEX[action]].phrase, "yellow", "black", "purple", height="tall"))
    print("\nWhat to try next:")
    print(f"  {command('demo.py', '--action', next(name for name in UNSEEN if name != action))}")
    print(f"  {command('sample.py', '--prompt', other, '--refs', *map(str, shown))}")
    print(f"  {command('sample.py', '--prompt', other, '--refs', 'YOUR_VIDEO.mp4', '--compare')}")
    print("  README.md: your own data, larger models, training")


def reference_clips(action: str, model: Path) -> list[Path]:
    """The model's example clips of an action. Raises CheckpointError where the folder is not as it was checked out."""
    if not (model / FOLDER_FILE).is_file():
        raise CheckpointError(f"there is no model in {model}, which is part of the repository: check it out again")
    found = [Path(record.path) for record in read_folder(model / "examples") if record.label == action]
    if len(found) < REFERENCES:
        raise CheckpointError(
            f"{model}/examples has {len(found)} clips of {action}, not {REFERENCES}: check it out again"
        )
    return found[:REFERENCES]


def command(script: str, *arguments: str) -> str:
    return f"{PYTHON} scripts/{script} {shlex.join(arguments)}"


def call(script: str, *arguments: str) -> None:
    """Run a script as that command would, without the seconds that a new process takes to start."""
    print(f"$ {command(script, *arguments)}", flush=True)
    own = sys.argv
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = own


if __name__ == "__main__":
    cli.run(main)
