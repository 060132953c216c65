"""Generate videos whose action is shown by reference videos (Algorithm 2).

examples:
  aicl sample --prompt "a person in a red shirt is skiing" --references man-skiing.mp4
  aicl sample --prompt "a robot is dancing" --references a.mp4 b.mp4@0.5 --scale 0.8 --compare --out robot.gif
  aicl sample --base checkpoints/videocrafter2 --adapter runs/aicl/adapter.safetensors \\
      --prompt "a panda is skiing" --library outputs/library --num-references 2
  aicl sample --model checkpoints/puppets_i2v --image person.png \\
      --prompt "a person in a green shirt is hammering" --references hammering.mp4
  aicl sample --repeat outputs/robot.json --out again.mp4
  torchrun --nproc-per-node 4 -m aicl sample --prompts-file jobs.jsonl --out outputs/run1

Each line of a prompts file is a prompt, or a JSON object such as {"prompt": "...", "references": ["a.mp4"], "seed": 3}.
Every video gets a JSON file beside it that says how it was made. Existing files are not replaced unless asked.
"""

import argparse
import dataclasses
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicl.cli import Parser, new_parser
from aicl.options import ModelOptions, Reference
from aicl.sampling_jobs import Job, files_beside, free_name, prepare, read_jobs, record_file
from lvdm.cli import check_there, device, rank_and_world_size
from lvdm.errors import ConfigError
from lvdm.options import add_arguments, read_options

if TYPE_CHECKING:
    from aicl.pipeline import AICLPipeline

HEADINGS: dict[str, Any] = {"sampling": "sampling (defaults: the model's)", "output": "output"}
WITH_REPEAT = {"repeat", "out", "overwrite", "compare", "device"}


def parser() -> Parser:
    """The options of `aicl sample`."""
    parser = new_parser("sample", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", default=argparse.SUPPRESS, help="what the video shows")
    what.add_argument("--prompts-file", type=Path, help="one job a line, shared out over all processes of torchrun")
    what.add_argument(
        "--repeat", type=Path, metavar="JSON", help="make a video again, from the JSON that lies beside it"
    )
    add_arguments(parser, ModelOptions, {"model": "model"})
    references = parser.add_argument_group("references")
    references.add_argument(
        "--references",
        "--refs",
        nargs="+",
        metavar="VIDEO",
        help="videos, folders of frames, or motion features; @0.5 is a weight, @0.5:0-0.6 also the noise levels",
    )
    references.add_argument(
        "--reference-captions",
        "--ref-captions",
        nargs="+",
        metavar="TEXT",
        help="one for all or one each (default: the prompt)",
    )
    references.add_argument(
        "--reference-weights",
        "--ref-weights",
        nargs="+",
        type=float,
        metavar="NUMBER",
        help="one each; 0 leaves one out",
    )
    parser.add_argument("--size", metavar="WIDTHxHEIGHT", help="--width and --height in one, such as 512x320")
    add_arguments(parser, Job, {"references": references} | HEADINGS)
    return parser


def main(args: argparse.Namespace) -> None:
    """Make the videos of one job, or of a file of them, or one again."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    if "repeat" in given:
        repeat(given)
        return
    of_model = {field.name for field in dataclasses.fields(ModelOptions)}
    model = read_options(ModelOptions, {name: given.pop(name) for name in of_model & given.keys()}, "the command line")
    model.check_places()
    prompts_file = given.pop("prompts_file", None)
    jobs = read_jobs(_job_options(given), prompts_file)
    rank, processes = rank_and_world_size()
    jobs = prepare(jobs[rank::processes])  # a video depends on its own job only, so it does not matter who makes it
    if not jobs:
        print("all of these videos are there already")
        return
    pipe = _load(model)

    from aicl.sampling_guard import leave_out_needless
    from aicl.sampling_library import choose_by_model
    from aicl.sampling_records import write_record
    from aicl.sampling_run import (
        check_jobs,
        comparison_line,
        filled_options,
        generate_samples,
        job_line,
        write_sample,
    )

    check_jobs(pipe, jobs)
    jobs = leave_out_needless(choose_by_model(jobs, pipe), pipe)
    steps = sum((filled_options(pipe, job).num_inference_steps or 1) * len(job.missing()) for job in jobs)
    pipe.accelerate(model.compile, expected_steps=steps)
    for job in jobs:
        _warn_of_unknown_words(pipe, job)
        print(job_line(pipe, job))
        if job.compare:
            print(comparison_line(pipe, job))
        missing, warned = job.missing(), False
        for sample in generate_samples(pipe, job):
            if path := missing.get(sample.seed):  # others of its batch may be there
                write_sample(pipe, job, sample, path)
                write_record(path, pipe, model, job, sample)
                print(_written(path, job))
            if not warned:
                _warn_of_unusual_references(pipe)
                warned = True
    _say_costs(pipe)


def repeat(given: dict[str, Any]) -> None:
    """Make the video of a record again. Raises ConfigError for other options, CheckpointError for other files."""
    if other := sorted(given.keys() - WITH_REPEAT):
        raise ConfigError(f"--repeat makes a video again as it was: leave --{other[0].replace('_', '-')} out")
    check_there(given["repeat"], "give the JSON that lies beside a video")
    if given["repeat"] != (record := record_file(given["repeat"])) and record.is_file():
        raise ConfigError(f"{given['repeat']} says nothing of how it was made: give the JSON beside it, {record}")

    import torch

    from aicl.sampling_records import check_files, differences, read_record, write_record
    from aicl.sampling_run import generate_samples, write_sample

    found = read_record(given["repeat"])
    model = dataclasses.replace(found.model, device=given.get("device", found.model.device))
    if device(model.device).type != "cuda":  # what is for GPUs alone changes a video by rounding at most
        model = dataclasses.replace(model, offload=False, compile="auto")
    changes = {name: given.get(name, False) for name in ("overwrite", "compare")}
    job = dataclasses.replace(found.job, **changes, skip_existing=False, out=given.get("out"))
    [job] = prepare([job if job.out else dataclasses.replace(job, out=str(free_name(job)))])
    if isinstance(threads := found.environment.get("threads"), int) and threads > 0:
        torch.set_num_threads(threads)
    pipe = _load(model)
    check_files(found, pipe)
    if changed := differences(found, pipe):
        warnings.warn(f"the video may differ by rounding: it was made with {'; '.join(changed)}", stacklevel=1)
    sample = list(generate_samples(pipe, job, [found.batch]))[found.index]
    path = Path(str(job.out))
    write_sample(pipe, job, sample, path)
    write_record(path, pipe, model, job, sample)
    print(_written(path, job))
    _warn_of_unusual_references(pipe)


def _job_options(given: dict[str, Any]) -> dict[str, Any]:
    """The command line's options as fields of a Job: references with their captions and weights, a size as two."""
    videos = given.pop("references", [])
    captions, weights = given.pop("reference_captions", None), given.pop("reference_weights", None)
    if not videos and (captions or weights):
        raise ConfigError("captions and weights belong to --references: give those")
    references = [Reference.of(video) for video in videos]
    for name, values in (("caption", captions), ("weight", weights)):
        if values is None:
            continue
        values = values * len(videos) if name == "caption" and len(values) == 1 else values
        if len(values) != len(videos):
            raise ConfigError(f"got {len(values)} {name}s for {len(videos)} reference(s): give one each")
        references = [dataclasses.replace(each, **{name: value}) for each, value in zip(references, values)]
    if references:
        given["references"] = references
    if size := given.pop("size", None):
        width, _, height = size.partition("x")
        if not re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", size):
            raise ConfigError(f"size '{size}' must be written as WIDTHxHEIGHT, such as 512x320")
        given |= {"width": int(width), "height": int(height)}
    return given


def _written(path: Path, job: Job) -> str:
    return "wrote " + ", ".join(str(each) for each in files_beside(path, job.compare) if each != record_file(path))


def _load(model: ModelOptions) -> "AICLPipeline":
    """The model, named on the first line of the output."""
    from aicl.sampling_models import load_model, model_line

    pipe = load_model(model)
    print(model_line(pipe, model))
    return pipe


def _warn_of_unknown_words(pipe: "AICLPipeline", job: Job) -> None:
    from aicl.sampling_run import unknown_words

    if words := unknown_words(pipe, job):
        known = "does not know the word" + ("s " if len(words) > 1 else " ") + ", ".join(f"'{word}'" for word in words)
        shown = (
            "the references have to show what they mean"
            if job.references
            else "what it makes of them is left to chance"
        )
        told = " and of the captions of its references" if any(each.caption for each in job.references) else ""
        warnings.warn(f"this model {known} of '{job.prompt}'{told}: {shown}", stacklevel=1)


def _warn_of_unusual_references(pipe: "AICLPipeline") -> None:
    from aicl.reference_domain import unusual

    for check in unusual(pipe.reference_checks):
        if pipe.domain is not None:
            warnings.warn(pipe.domain.sentence(check), stacklevel=1)


def _say_costs(pipe: "AICLPipeline") -> None:
    import torch

    if pipe.device.type != "cpu":  # where there is something to choose
        print(pipe.base.acceleration.choice)
    if pipe.timings:
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in pipe.timings.items())
        print(f"seconds of the last video: {seconds}")
    if torch.cuda.is_available():
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
