"""How fast a model samples: a denoising step, a clip from prompt to file, and many clips at once.

Weights are random, since neither time nor memory depends on them. Numbers are compared with float32 before anything is
timed. Every function returns a flat record for `aicl benchmark`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lvdm.acceleration import Acceleration, Mode
from lvdm.benchmarks import GB, Clock, Record, machine
from lvdm.checkpoints import load_pipeline, save_pipeline
from lvdm.diffusion import make_generators
from lvdm.errors import ConfigError
from lvdm.models import kernels
from lvdm.models.components import ModelConfig, build_components
from lvdm.models.layers import for_branches
from lvdm.models.quantization import Quantization, quantize
from lvdm.pipeline import VideoPipeline
from lvdm.video import write_video

PEAK = 790e12  # operations a second of a Hopper GPU on large bfloat16 products, which the floor is counted with
# How far results may be from float32, as a share of the norm: in bfloat16, and with some layers in 8 bits.
CLOSE: dict[Quantization, float] = {"none": 0.05, "fp8": 0.2}
UPSTREAM = Path(__file__).with_name("speed_upstream.py")


def denoising_step(
    config: ModelConfig,
    device: str,
    mode: Mode = "auto",
    batch: int = 2,
    upstream: Path | None = None,
    calls: int = 10,
    quantization: Quantization = "none",
) -> Record:
    """A guided step of one video (a batch of 2): milliseconds as it is written and in `mode`, beside the floor.

    `error`: distance from our float32, as a share of its norm. `floor_ms`, of a GPU: operations over PEAK. `first_s`:
    the first call, in which kernels are made and graphs captured. `upstream`: a checkout of the code that the model
    descends from, which is timed on the same input. `quantization`: of `ms` and `error`, and `plain_ms` is without.
    Raises ConfigError where the numbers differ from float32 by more than CLOSE, or upstream's code fails.
    """
    inputs = _inputs(config, device, max(1, batch // 2))
    half = _dtype(device)
    with torch.no_grad():
        unet = _random_unet(config, device)
        with FlopCounterMode(display=False) as counter, kernels.only():
            x, timesteps, context, fps = inputs
            whole = (for_branches(x, batch), for_branches(timesteps, batch), context[:batch])
            expected = unet(*whole, fps=None if fps is None else for_branches(fps, batch))
        unet = unet.to(half).requires_grad_(False)
        inputs = _in_precision(inputs, half)
        with kernels.only():
            plain_ms = _milliseconds(unet, inputs, device, calls)
        count = quantize(unet, quantization, torch.device(device))
        _forget_peak(device)
        network = Acceleration(mode).network(unet, steps=50)
        start = time.perf_counter()
        found = network(*inputs[:3], fps=inputs[3])
        error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
        if not error < CLOSE[quantization]:
            allowed = f"{CLOSE[quantization]:.0%}"
            raise ConfigError(f"the fast step is {error:.1%} from float32, where {allowed} are allowed: not timed")
        first = time.perf_counter() - start
        ms = _milliseconds(network, inputs, device, calls)
    tera = counter.get_total_flops() / 1e12
    shape = inputs[0].shape
    record: Record = {"frames": shape[2], "latents": f"{shape[3]}x{shape[4]}", "batch": batch, "compile": mode}
    if count:
        record |= {"quantization": quantization, "layers": count}
    record |= {"tflop": round(tera, 2), "plain_ms": round(plain_ms, 1), "ms": round(ms, 2)}
    record |= {"faster": round(plain_ms / ms, 2), "error": f"{error:.1e}", "first_s": round(first, 1)}
    if torch.device(device).type == "cuda":
        floor = 1e15 * tera / PEAK
        record |= {"floor_ms": round(floor, 1), "of_floor": round(ms / floor, 2)}
        record["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 2)
    if upstream is not None:
        theirs = time_upstream(upstream, config, batch, calls, device)
        record |= {"upstream_ms": round(theirs["ms"], 1), "faster_than_upstream": round(theirs["ms"] / ms, 2)}
    return record | machine(device)


def time_upstream(
    checkout: Path, config: ModelConfig, batch: int, calls: int = 10, device: str = "cuda"
) -> dict[str, float]:
    """{"ms", "peak_gb"} of a step of upstream's UNet, under half precision's autocast as its scripts use it (float32 on
    a CPU).

    It runs in a process of its own, whose package `lvdm` is the checkout's. Raises ConfigError with what it said last.
    """
    checkout = checkout.absolute()
    if not checkout.is_dir():
        raise ConfigError(f"{checkout} is no folder: give a checkout of LVDM or VideoCrafter")
    height, width = (side // _factor(config) for side in config.defaults.size)
    task = {
        "params": _upstream_defaults(config) | config.unet,
        "shape": [batch, config.unet["in_channels"], config.defaults.num_frames, height, width],
        "context": [batch, _tokens(config), config.unet["context_dim"]],
        "fps": config.defaults.fps if config.family == "videocrafter" else None,
        "calls": calls,
        "device": device,
    }
    command = [sys.executable, str(UPSTREAM), str(checkout), json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise ConfigError(f"{checkout}: its UNet was not timed: {said[0][-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _upstream_defaults(config: ModelConfig) -> dict[str, int]:
    """Parameters that LVDM's own code insists on, or has a default for that changes the number of frames."""
    if config.family != "lvdm":
        return {}
    return {
        "image_size": config.defaults.size[0] // _factor(config),
        "padding_t": config.unet.get("kernel_size_t", 1) // 2,
    }


def clip(
    config: ModelConfig,
    device: str,
    mode: Mode = "auto",
    steps: int = 25,
    sampler: str = "dpmpp_2m",
    clips: int = 4,
    step_cache: int = 1,
    quantization: Quantization = "none",
) -> Record:
    """A model from its folder, and a prompt to an mp4 file: seconds of loading, of the first video and of the next.

    Of the next, the fastest, also by phase. The folder was written just before, so the system has it in its cache of
    files: `load_s` is what is left of loading where the disk is no limit. `size_gb`: of the folder. A model that was
    distilled with guidance has one branch, as when it samples. step_cache: see `lvdm.diffusion.step_cache`.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        components = build_components(config, device=device, dtype=_dtype(device)).eval()
        clock = Clock(device)
        with clock("save_s"):
            save_pipeline(components, config, model)
        del components
        _forget_peak(device)
        size = sum(path.stat().st_size for path in model.iterdir())
        with clock("load_s"):
            pipe = load_pipeline(model, device, _dtype(device)).quantize(quantization).accelerate(mode)
        image = np.full((*config.defaults.size, 3), 127, np.uint8) if pipe.takes_image else None
        options = {"num_inference_steps": steps, "sampler": sampler, "step_cache": step_cache}
        records = [_clip(pipe, image, Path(folder) / f"{n}.mp4", options, n, device) for n in range(clips)]
    record: Record = {"steps": steps, "sampler": sampler, "step_cache": step_cache, "quantization": quantization}
    record |= {"compile": mode, "size_gb": round(size / GB, 2)}
    record |= {**clock.seconds, "first_s": records[0]["all_s"]}
    record |= min(records[1:], key=lambda each: float(each["all_s"]))
    if torch.device(device).type == "cuda":
        record["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 2)
    return record | machine(device)


def _clip(
    pipe: VideoPipeline, image: Any, path: Path, options: dict[str, Any], seed: int, device: str
) -> dict[str, float]:
    """Generate a video as a call of the pipeline does, and write it: seconds of each phase, and of all."""
    clock, defaults = Clock(device), pipe.config.defaults
    start = time.perf_counter()
    generators = make_generators([seed])
    with clock("text_s"):
        positive, negative = pipe.conditions(["a corgi runs"], image)
    with clock("sample_s"):
        branches = pipe.guidance_branches(negative, positive, defaults.guidance_scale)
        noise = pipe.initial_noise(generators)
        latents = pipe.sample_latents(*branches, noise, generators=generators, **options)
    with clock("decode_s"):
        pixels = pipe.decode(latents)
    with clock("write_s"):
        write_video(path, pixels[0], defaults.save_fps)
    return clock.seconds | {"all_s": round(time.perf_counter() - start, 3)}


def offloaded(config: ModelConfig, device: str, limit: float = 8.0, steps: int = 25) -> Record:
    """A video on a small card: parts brought to the GPU one at a time, two frames at once in the autoencoder.

    limit: GiB that PyTorch may reserve. Seconds of the first and of the next video, and the most that was reserved.
    Raises torch.OutOfMemoryError where that is not enough.
    """
    cuda = torch.device(device).type == "cuda"
    if cuda:
        share = limit * 2**30 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    pipe = VideoPipeline(build_components(config, device=device, dtype=_dtype(device)).eval(), config)
    pipe.enable_model_cpu_offload(device)
    image = np.full((*config.defaults.size, 3), 127, np.uint8) if pipe.takes_image else None
    _forget_peak(device)
    record: Record = {"limit_gib": limit, "steps": steps}
    for name in ("first_s", "next_s"):
        start = time.perf_counter()
        pipe("a corgi runs", image=image, num_inference_steps=steps, progress=False)
        record[name] = round(time.perf_counter() - start, 2)
    if cuda:
        record["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        torch.cuda.set_per_process_memory_fraction(1.0)
    return record | machine(device)


def batches(
    config: ModelConfig, device: str, mode: Mode = "auto", sizes: Sequence[int] = (1, 2, 4, 8)
) -> Iterator[Record]:
    """Videos a minute of denoising alone at each number of videos in a batch, 50 guided steps each, and the memory."""
    unet = _random_unet(config, device).to(_dtype(device)).requires_grad_(False)
    for size in sizes:
        inputs = _in_precision(_inputs(config, device, size), _dtype(device))
        _forget_peak(device)
        with torch.no_grad():
            ms = _milliseconds(Acceleration(mode).network(unet, steps=50), inputs, device, 5)
        record: Record = {"videos": size, "compile": mode, "ms": round(ms, 1)}
        record["videos_per_minute"] = round(size * 60_000 / (50 * ms), 1)
        if torch.device(device).type == "cuda":
            record["peak_gb"] = round(torch.cuda.max_memory_allocated() / GB, 2)
        yield record | machine(device)


def random_step(
    config: ModelConfig, device: str, mode: Mode = "auto", videos: int = 1, steps: int = 50
) -> tuple[nn.Module, list[Any]]:
    """A UNet of random weights, ready to sample so many steps in `mode`, and its inputs: x, timesteps, context, fps."""
    unet = _random_unet(config, device).to(_dtype(device)).requires_grad_(False)
    return Acceleration(mode).network(unet, steps), _in_precision(_inputs(config, device, videos), _dtype(device))


def _in_precision(inputs: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]


def _random_unet(config: ModelConfig, device: str) -> nn.Module:
    """In float32; what starts at zero does not stay zero, since nothing could be compared then."""
    torch.manual_seed(0)
    unet = build_components(config, ["unet"], device=device, dtype=torch.float32).eval().unet
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.5 * parameter[0].numel() ** -0.5, generator=generator)
    return unet


def _inputs(config: ModelConfig, device: str, videos: int) -> list[Any]:
    """x, timesteps, context and fps of a guided step as pipelines give them, float32; the context is both branches'."""
    height, width = (side // _factor(config) for side in config.defaults.size)
    generator = torch.Generator(device).manual_seed(2)
    shape = (videos, config.unet["in_channels"], config.defaults.num_frames, height, width)
    x = torch.randn(shape, generator=generator, device=device)
    context = torch.randn(2 * videos, _tokens(config), config.unet["context_dim"], generator=generator, device=device)
    fps = None if config.defaults.fps is None else torch.full((videos,), config.defaults.fps, device=device)
    return [x, torch.full((videos,), 500, device=device), context, fps]


def _tokens(config: ModelConfig) -> int:
    """Text tokens, and those of an image."""
    return config.text.context_length + (config.image.resampler.get("num_queries", 16) if config.image else 0)


def _factor(config: ModelConfig) -> int:
    """Pixels per latent cell, along each side."""
    return config.autoencoder.factor


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def _milliseconds(network: Callable[..., Tensor], inputs: Sequence[Any], device: str, calls: int) -> float:
    """The median call, after two that are not counted."""
    cuda = torch.device(device).type == "cuda"

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    seconds = []
    for _ in range(calls + 2):
        wait()
        start = time.perf_counter()
        network(*inputs[:3], fps=inputs[3])
        wait()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def _forget_peak(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
