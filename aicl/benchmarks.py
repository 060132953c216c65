"""What AICL costs at full size: training through `aicl train`, and sampling beside the base model.

Weights are random, since neither time nor memory depends on them. Every function returns a flat record for
`aicl benchmark`, as those of `lvdm.benchmarks` do.
"""

import csv
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from aicl.action_integration import IntegrationConfig
from aicl.action_prism import build_prism
from aicl.integrated_backbone import integrate
from aicl.pipeline import AICLPipeline
from aicl.training_task import AICLSections, build_base_pipeline, prism_config
from lvdm import config as configs
from lvdm.benchmarks import GB, Record, machine
from lvdm.checkpoints import read_model, save_pipeline
from lvdm.errors import ConfigError
from lvdm.models.components import build_components
from lvdm.training.settings import TrainingSettings

FEW_STEPS = 9  # for a first sampling, enough for a graph to be captured
WARM_UP_STEPS = 4  # kernels are chosen and the optimiser's operators compiled in the first ones


def train(
    config: Path,
    model: Path,
    clips: Path,
    folder: Path,
    steps: int,
    overrides: list[str],
    memory_limit: float | None = None,
    cached: bool = False,
) -> Record:
    """Train `config` for some steps on a folder of captioned clips, with `model` of random weights as the base.

    Steps are reported one by one, and the speed is that of the median step after the warm-up; the peak is of all
    memory that PyTorch reserved. `memory_limit`: GiB that PyTorch may reserve, to show that a smaller card is enough.
    `cached`: the clips and captions are encoded first (`cache_s`), and training reads those latents, not the videos.
    Raises ConfigError with the end of the run's output if it fails.
    """
    data = ["data.kind=folder", f"data.path={clips}", f"data.captions={clips / 'captions.csv'}", "data.workers=4"]
    own = [change for change in overrides if change.startswith("data.")]
    base = ["base.path=null", f"base.config={model}"]
    record: Record = {"source": "files"}
    if cached:
        saved, latents = folder / "base", folder / "latents"
        loaded = read_model(str(model))
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        save_pipeline(build_components(loaded, device=device, dtype=dtype).eval(), loaded, saved)
        start = time.perf_counter()
        data = [*data, "data.clip.augmentation.cached_crops=1"]
        caching = ["cache", "--config", str(config), "--base", str(saved), "--out", str(latents), *data, *own]
        _run_aicl(caching, f"caching the clips of {config}")
        record = {"source": "cache", "cache_s": round(time.perf_counter() - start, 1)}
        base, data = [f"base.path={saved}", "base.config=null"], [*data, f"data.cache={latents}"]
    command = ["train", "--config", str(config), *base, *data]
    command += [f"run.out={folder}", f"training.steps={steps}", "training.preview_every=null", "logging.every=1"]
    environment = {}
    if memory_limit is not None:
        share = memory_limit * 2**30 / torch.cuda.get_device_properties(0).total_memory
        environment["PYTORCH_CUDA_ALLOC_CONF"] = f"expandable_segments:True,per_process_memory_fraction:{share:.5f}"
    command += ["logging.tensorboard=false", *overrides]
    said = _run_aicl(command, f"training {config}", environment)
    metrics = next(folder.glob("*/metrics.csv"))
    with metrics.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    settings = configs.from_mapping(TrainingSettings, configs.load(metrics.with_name("config.yaml"))["training"])
    record |= {"strategy": settings.strategy, "precision": settings.precision, "devices": settings.devices}
    choice = re.search(r"strategy auto: (.*)", said)
    if choice:
        record["choice"] = choice[1].strip()
    record |= {"batch": settings.batch_size, "steps": len(rows)}
    speeds = [row["samples_per_s"] for row in rows[WARM_UP_STEPS:]]
    record["samples_per_s"] = round(statistics.median(speeds), 3)
    record |= {"first_loss": round(rows[0]["loss"], 4), "last_loss": round(rows[-1]["loss"], 4)}
    if "peak_gb" in rows[-1]:
        record["peak_reserved_gb"] = round(rows[-1]["peak_gb"], 2)
        record["limit_gib"] = memory_limit or "none"
    return record | machine("cuda" if torch.cuda.is_available() else "cpu")


def _run_aicl(arguments: list[str], what: str, environment: dict[str, str] | None = None) -> str:
    """Run a verb of `aicl` in a process of its own; what it said. Raises ConfigError with its error or its end."""
    command = [sys.executable, "-m", "aicl", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (environment or {}))
    if done.returncode:
        errors = re.findall(r"error: (.+)", done.stderr)
        raise ConfigError(f"{what} failed: {errors[-1] if errors else '...' + (done.stdout + done.stderr)[-2000:]}")
    return done.stdout + done.stderr


def overhead(
    config: Path, model: Path, references: Sequence[int], steps: int, device: str = "cuda", repeats: int = 2
) -> Iterator[Record]:
    """Sample with and without references: the share of time that AICL adds, and that of the prism in it.

    A record for each number of references. The paper gives 0.5% for the prism. `added` compares the sampling with
    references, the prism's and the reading of the references included, with the base model's; decoding the video is the
    same in both and left out. `added_other_prompt`: for a second prompt with the same videos, whose latents are kept;
    `added_other_seed`: for another seed of the same prompt, whose R is kept, too. Each time is the least of `repeats`.
    """
    settings = TrainingSettings(steps=1, batch_size=1, precision="bfloat16")
    sections = configs.load(config)
    pipeline = build_base_pipeline(AICLSections.Base(config=str(model)), settings)
    prism = build_prism(prism_config(sections["prism"], pipeline, settings))
    integration = configs.from_mapping(IntegrationConfig, sections["integration"], where="integration")
    pipe = AICLPipeline(pipeline, prism, integrate(pipeline.components.unet, integration)).to(device)
    defaults = pipeline.config.defaults
    generator = torch.Generator().manual_seed(0)

    def clips(count: int) -> list[torch.Tensor]:
        shape = (count, defaults.num_frames, *defaults.size, 3)
        return list(torch.randint(256, shape, dtype=torch.uint8, generator=generator))

    image = clips(1)[0][0].numpy() if pipeline.takes_image else None

    def run(steps: int, videos: list[torch.Tensor], prompt: str = "a corgi is running") -> dict[str, float]:
        pipe(prompt, references=videos, image=image, num_inference_steps=steps, progress=False)
        laps = pipe.timings
        sampling = laps["first_step"] + laps["sampling"]
        encode, prism = laps.get("references", 0.0), laps.get("prism", 0.0)
        return {"sampling": sampling, "encode": encode, "prism": prism, "all": sampling + encode + prism}

    def least(runs: list[dict[str, float]]) -> dict[str, float]:
        return {name: min(run[name] for run in runs) for name in runs[0]}

    run(FEW_STEPS, [])  # loads kernels, captures graphs
    base = least([run(steps, []) for _ in range(repeats)])
    for count in references:
        run(FEW_STEPS, clips(count))
        shown = [clips(count) for _ in range(repeats)]  # which nobody has seen before
        ours = least([run(steps, videos) for videos in shown])
        prompt = least([run(steps, videos, "a corgi jumps") for videos in shown])
        seed = least([run(steps, videos) for videos in shown])
        record: Record = {"references": count, "steps": steps, "base_s": round(base["sampling"], 3)}
        record |= {"aicl_s": round(ours["sampling"], 3), "encode_s": round(ours["encode"], 3)}
        record |= {"prism_s": round(ours["prism"], 3), "prism_share": f"{ours['prism'] / base['sampling']:.2%}"}
        for name, times in (("added", ours), ("added_other_prompt", prompt), ("added_other_seed", seed)):
            record[name] = f"{times['all'] / base['all'] - 1:.2%}"
        if torch.device(device).type == "cuda":
            record["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 2)
        yield record | machine(device)
