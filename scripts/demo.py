"""Show what AICL does: a video of an action that the base model never saw, from two reference clips.

examples:
  python scripts/demo.py
  python scripts/demo.py --action cartwheel --seed 3

Uses the models in checkpoints/puppets. Where they are not there, tiny ones are trained for a few steps: that shows that
every part works on this machine, not what AICL can do. The folder outputs/demo is made anew each time.
"""

import argparse
import os
import runpy
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from aicl.puppets.actions import ACTIONS, INDEX, UNSEEN
from aicl.puppets.captions import Description, caption
from aicl.puppets.data import FPS, PuppetConfig, PuppetDataModule, draw_batch
from aicl.puppets.performance import BACKGROUNDS, COLOURS, looks
from lvdm import cli
from lvdm.data import read_folder
from lvdm.video import probe, read_frames, to_pixels, write_video

ROOT = Path(__file__).resolve().parents[1]
MODEL, OUT = Path("checkpoints/puppets"), Path("outputs/demo")
PERSON = {"shirt": "red", "trousers": "blue", "background": "green"}
REFERENCES = 2
PYTHON = ".venv/bin/python" if Path(sys.prefix) == ROOT / ".venv" else "python"
UNTRAINED = "The weights are untrained: the video is noise, and only shows that everything works."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--action", choices=UNSEEN, default="jacks", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the video (default: %(default)s)")
    args = parser.parse_args()
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    show(args.action, args.seed, MODEL, OUT)


def show(action: str, seed: int, model: Path, out: Path) -> None:
    """Make the demo's files in `out`, with `model` if it is there, and say what they are."""
    start, trained = time.perf_counter(), (model / "aicl.yaml").is_file()
    if trained:
        options = ["--model", str(model)]
    else:
        print(f"There are no trained models in {model}: training tiny ones for a few steps instead. {UNTRAINED}\n")
        options = train_tiny(out)
    prompt = caption(Description(ACTIONS[INDEX[action]].phrase, **PERSON))
    shown = reference_clips(action, model / "examples", out)
    files = ["--refs", *map(str, shown), "--compare", "--out", str(out / "aicl.mp4")]
    call("sample.py", *options, "--prompt", prompt, *files, "--seed", str(seed))
    compared = out / "aicl-compare.mp4"
    info = probe(compared)
    write_video(compared.with_suffix(".gif"), read_frames(compared, list(range(info.num_frames))), info.fps)

    print(f"\n{time.perf_counter() - start:.0f} s. '{prompt}'")
    print(f"  {out}/aicl.mp4          the video; how it was made stands in aicl.json")
    print(f"  {out}/aicl-compare.gif  references | base model | AICL, also as .mp4 and frame by frame as .png")
    if not trained:
        print(UNTRAINED)
    other = caption(Description(ACTIONS[INDEX[action]].phrase, "yellow", "black", "purple", height="tall"))
    print("\nWhat to try next:")
    print(f"  {command('demo.py', '--action', next(name for name in UNSEEN if name != action))}")
    print(f"  {command('sample.py', *options, '--prompt', other, '--refs', *map(str, shown))}")
    print(f"  {command('sample.py', *options, '--prompt', other, '--refs', 'YOUR_VIDEO.mp4', '--compare')}")
    print("  README.md: your own data, larger models, training")


def train_tiny(out: Path) -> list[str]:
    """Train autoencoder, base model and AICL at tiny size; returns the options that make sample.py use them."""
    runs, clips = out / "runs", out / "clips"
    call("make_puppets.py", str(clips), "--clips", "24", "--size", "32", "--actions", "seen")
    for name, setting in (
        ("autoencoder", None),
        ("base", f"model.autoencoder={runs / 'tiny_autoencoder'}"),
        ("aicl", f"base.path={runs / 'tiny_base'}"),
    ):
        settings = [f"run.out={runs}", f"data.path={clips}", "logging.tensorboard=false", *filter(None, [setting])]
        call("train.py", "--config", f"configs/tiny/{name}.yaml", *settings)
    return ["--base", str(runs / "tiny_base"), "--adapter", str(runs / "tiny_aicl")]


def reference_clips(action: str, examples: Path, out: Path) -> list[Path]:
    """Clips of an action: those in `examples`, a folder of make_puppets.py, or else drawn now, of unlike people."""
    if examples.is_dir():
        found = [Path(record.path) for record in read_folder(examples) if record.label == action]
        if len(found) >= REFERENCES:
            return found[:REFERENCES]
    config = PuppetConfig(actions="unseen", in_turn=True, program_share=0.0, free_captions=0.0, bare_captions=0.0)
    batch = draw_batch(config, 0, UNSEEN.index(action) + len(UNSEEN) * np.arange(20))
    clothes, walls = list(COLOURS), list(BACKGROUNDS)
    person = [clothes.index(PERSON["shirt"]), clothes.index(PERSON["trousers"]), walls.index(PERSON["background"])]
    unlike = (looks(batch["performances"]).numpy() != person).all(axis=1)
    batch["performances"] = batch["performances"][unlike][:REFERENCES]
    frames = PuppetDataModule(config, REFERENCES, seed=0).prepare(batch)["frames"]
    return [
        write_video(out / f"reference-{number}.mp4", pixels, FPS) for number, pixels in enumerate(to_pixels(frames), 1)
    ]


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
