"""Generate videos whose action is shown by reference videos (Algorithm 2).

examples:
  aicl sample --prompt "a panda is skiing" --refs man-skiing.mp4
  aicl sample --prompt "a robot is dancing" --refs a.mp4 b.mp4 --scale 0.8 --compare --out robot.gif
  aicl sample --base checkpoints/videocrafter2 --adapter runs/aicl/adapter.safetensors \\
      --prompt "a panda is skiing" --library index.json --num-refs 2
  torchrun --nproc-per-node 4 -m aicl sample --prompts-file jobs.jsonl --out samples/run1

Each line of a prompts file is a prompt, or a JSON object such as {"prompt": "...", "refs": ["a.mp4"], "seed": 3}.
Every video gets a JSON file beside it that says how it was made. Existing files are not replaced unless asked.
"""

import argparse
import os
from pathlib import Path

from aicl.cli import new_parser


def parser() -> argparse.ArgumentParser:
    """The options of `aicl sample`."""
    p = new_parser("sample", __doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what the video shows")
    what.add_argument("--prompts-file", type=Path, help="one job a line, shared out over all processes of torchrun")
    model = p.add_argument_group("model")
    model.add_argument("--model", help="a folder with base model and adapter (default: checkpoints/puppets)")
    model.add_argument("--base", help="a folder of a base model alone, or a training run that wrote one")
    model.add_argument("--config", help="a training config: its base model, and untrained layers without --adapter")
    model.add_argument("--adapter", help="an adapter file, or a training run that wrote one")
    model.add_argument("--device", help="default: a GPU if there is one")
    model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")
    model.add_argument("--attention", default="sdpa", choices=("sdpa", "xformers", "reference"))
    refs = p.add_argument_group("references")
    refs.add_argument("--refs", nargs="+", help="videos, or files of encoded references")
    refs.add_argument("--ref-captions", nargs="+", help="one for all or one each (default: the prompt)")
    refs.add_argument("--ref-weights", nargs="+", type=float, help="one each; 0 leaves a reference out")
    refs.add_argument("--ref-fps", type=float, help="rate at which videos are sampled (default: the model's own)")
    refs.add_argument("--library", help="take references from this index (see `aicl index`)")
    refs.add_argument("--num-refs", type=int, help="how many to take from the library (default: 1)")
    refs.add_argument("--scale", type=float, help="strength of the references; 0 is the base model (default: 1)")
    refs.add_argument(
        "--lead", type=float, help="share of the noise levels, the noisiest, at which the first reference is read alone"
    )
    refs.add_argument("--ref-guidance", type=float, help="guidance strength of R apart from the text's")
    how = p.add_argument_group("sampling (defaults: the model's)")
    how.add_argument("--image", help="first frame, for image-to-video models")
    how.add_argument("--negative-prompt")
    how.add_argument("--num-frames", type=int)
    how.add_argument("--size", help="WIDTHxHEIGHT in pixels, such as 512x320")
    how.add_argument("--fps", type=int, help="frame rate to condition on, for models that take one")
    how.add_argument("--steps", type=int)
    how.add_argument("--sampler", choices=("ddim", "ddpm", "dpmpp_2m"))
    how.add_argument("--eta", type=float, help="noise of DDIM, 0 to 1")
    how.add_argument("--guidance", type=float)
    how.add_argument("--seed", type=int, help="of the first sample (default: 0)")
    how.add_argument("--num-samples", type=int, help="videos of each prompt, with consecutive seeds (default: 1)")
    how.add_argument("--batch", type=int, help="samples of a prompt to make at once (default: 1)")
    out = p.add_argument_group("output")
    out.add_argument("--out", help=".mp4, .gif or a frame folder by its ending; with --prompts-file the videos' folder")
    out.add_argument(
        "--compare", action="store_true", default=None, help="also reference | base | AICL, as a video and a PNG"
    )
    out.add_argument("--overwrite", action="store_true", default=None, help="replace existing files")
    out.add_argument("--skip-existing", action="store_true", default=None, help="go on with an interrupted run")
    return p


def main(args: argparse.Namespace) -> None:
    """Make the videos of one job, or of a file of them."""
    import torch

    from aicl.sampling_jobs import prepare, read_jobs, run_job
    from aicl.sampling_models import load_model
    from lvdm.models import set_backend

    options = {name: value for name, value in vars(args).items() if value is not None}
    set_backend(options.pop("attention"))
    model = {name: options.pop(name, None) for name in ("model", "base", "config", "adapter", "device", "dtype")}
    jobs = read_jobs({k: v for k, v in options.items() if k != "prompts_file"}, options.get("prompts_file"))
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    jobs = prepare(jobs[rank::processes])  # a video depends on its own job only, so it does not matter who makes it
    pipe = load_model(**model)
    print(f"{pipe.base.config.family} on {pipe.base.device}, {'no adapter' if pipe.prism is None else 'with AICL'}")
    for job in jobs:
        for path in run_job(pipe, job):
            print(f"wrote {path}")
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in pipe.timings.items())
    print(f"seconds of the last video: {seconds}")
    if torch.cuda.is_available():
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
