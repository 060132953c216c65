"""What the library costs on a machine: generation at full size, and the conversion of a full-size published file.

Weights are random, since neither time nor memory depends on them. Every function returns a flat record for
`aicl benchmark`, which writes it as JSON and as a row of a Markdown table.
"""

import gzip
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvdm.checkpoints import convert_unet, load_pipeline, read_checkpoint
from lvdm.checkpoints.families import split_parts
from lvdm.diffusion import make_generators
from lvdm.errors import CheckpointError
from lvdm.files import atomic_path
from lvdm.models.components import ModelConfig, build_components
from lvdm.pipeline import VideoPipeline

Record = dict[str, Any]
GB = 1e9


def generate(config: ModelConfig, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, batch: int = 1) -> Record:
    """Build a model with random weights and generate its default video with guidance: seconds of each phase, memory.

    A model that was distilled with guidance has one branch, as when it samples. A first run of two steps, not counted,
    loads kernels and fills the allocator's cache.
    """
    clock = Clock(device)
    with clock("build_s"):
        components = build_components(config, device=device, dtype=dtype).eval()
    pipe = VideoPipeline(components, config)
    image = np.full((*config.defaults.size, 3), 127, np.uint8) if pipe.takes_image else None
    prompts = ["a corgi runs along the beach"] * batch

    def run(steps: int, clock: Clock) -> torch.Tensor:
        generators = make_generators(range(batch))
        with clock("condition_s"):
            positive, negative = pipe.conditions(prompts, image)
        x_T = pipe.initial_noise(generators)
        with clock("sample_s"):
            branches = pipe.guidance_branches(negative, positive, config.defaults.guidance_scale)
            latents = pipe.sample_latents(*branches, x_T, num_inference_steps=steps, generators=generators)
        with clock("decode_s"):
            return pipe.decode(latents)

    run(2, Clock(device))
    if clock.cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = config.defaults.num_inference_steps
    video = run(steps, clock)
    record: Record = {"frames": video.shape[1], "height": video.shape[2], "width": video.shape[3], "batch": batch}
    record |= {"steps": steps, "dtype": str(dtype).removeprefix("torch."), **clock.seconds}
    if clock.cuda:
        record["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 2)
    return record | machine(device)


def convert(layout: Mapping[str, list[int]], config: ModelConfig, folder: Path, script: list[str]) -> Record:
    """Write a published-layout file of random weights, convert it by running `script FILE OUT`, load and compare.

    `layout` maps entry names to shapes, `config` is what the file should be loaded as, `folder` takes both results
    (about 2 x 4 bytes per weight). Raises CheckpointError where the conversion fails or a weight differs.
    """
    source, converted, clock = folder / "published.ckpt", folder / "converted", Clock("cpu")
    with clock("write_s"):
        _write_published(layout, source)
    with clock("convert_s"):
        peaks = _run_measured([*script, str(source), str(converted)])
    with clock("load_s"):
        pipe = load_pipeline(converted)
    compared = _compare(pipe, source, config.family)
    sizes = {"file_gb": round(source.stat().st_size / GB, 2), "tensors_compared": compared}
    return {**sizes, **clock.seconds, **peaks, **machine("cpu")}


def read_layouts(path: Path) -> dict[str, dict[str, list[int]]]:
    """{model: {entry name: shape}} from a gzipped JSON file."""
    with gzip.open(path, "rt") as file:
        return json.load(file)


class Clock:
    """Seconds by name, the device's pending work included: `with clock("decode_s"): ...`."""

    def __init__(self, device: str) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._synchronise()
        start = time.perf_counter()
        yield
        self._synchronise()
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def _synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def machine(device: str) -> Record:
    """The hardware and versions that figures belong to."""
    cuda = torch.device(device).type == "cuda"
    name = (
        torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def append_row(path: Path, title: str, record: Mapping[str, Any]) -> None:
    """Add a record to the table of its fields under `## title` in a Markdown file; what is missing is made."""
    header, rule = _row(record), _row(["---"] * len(record))
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ["# Benchmarks"]
    heading = f"## {title}"
    if heading not in lines:
        lines += ["", heading]
    start = lines.index(heading)
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
    if header not in lines[start:end]:
        while not lines[end - 1]:  # keep the empty lines of the section's end below the new table
            end -= 1
        lines[end:end] = ["", header, rule]
    place = lines.index(header, start) + 2
    while place < len(lines) and lines[place].startswith("|"):
        place += 1
    lines.insert(place, _row(record.values()))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _write_published(layout: Mapping[str, list[int]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.empty(shape).normal_(std=0.02, generator=generator) for name, shape in layout.items()}
    with atomic_path(path) as temporary:
        torch.save({"state_dict": state, "global_step": 0}, temporary)


def _run_measured(command: list[str]) -> Record:
    """Run a command to its end and return its peak memory, in GB: all of it, and the part that no file backs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks = {"VmHWM": 0, "RssAnon": 0}
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it has just ended
            continue
        for line in status.splitlines():
            name = line.partition(":")[0]
            if name in peaks:
                peaks[name] = max(peaks[name], int(line.split()[1]) * 1024)
        time.sleep(0.02)
    _, errors = process.communicate()
    if process.returncode:
        raise CheckpointError(f"the conversion failed: {errors.strip()}")
    return {"peak_rss_gb": round(peaks["VmHWM"] / GB, 2), "peak_anonymous_gb": round(peaks["RssAnon"] / GB, 2)}


def _compare(pipe: VideoPipeline, source: Path, family: str) -> int:
    """Compare the first, middle and last entries of the parts that keep their tensors as published; their number."""
    parts = split_parts(read_checkpoint(source), str(source))
    parts["unet"] = convert_unet(family, parts["unet"])
    modules = pipe.components.modules()
    count = 0
    for part in ("unet", "autoencoder"):
        names, found = list(parts[part]), modules[part].state_dict()
        for name in (names[0], names[len(names) // 2], names[-1]):
            if not torch.equal(found[name], parts[part][name]):
                raise CheckpointError(f"{name} of {part} is not what {source} holds")
            count += 1
    return count
