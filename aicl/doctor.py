"""What this machine can do with the library, and what will not work and why: `aicl doctor`."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "problem"]
GIB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the report. A note is a thing that some commands lack; a problem stops the main ones."""

    topic: str
    status: Status
    text: str


REQUIRED = (
    "torch",
    "pytorch-lightning",
    "open_clip_torch",
    "omegaconf",
    "safetensors",
    "einops",
    "numpy",
    "pillow",
    "av",
)
# what it is for, by the name of the distribution
OPTIONAL = {
    "deepspeed": "training with ZeRO, the paper's way (training.strategy=deepspeed_zero2_offload)",
    "xformers": "--attention xformers",
    "gradio": "aicl demo and aicl user-study",
    "faiss-cpu": "searching an action library by text, motion or looks",
    "tensorboard": "TensorBoard files of a training",
    "transformers": "the video classifier of Table IV",
    "diffusers": "base models of diffusers",
    "wandb": "logging.wandb",
}
# Malicious uploads, and releases that compute wrong ZeRO-2 gradients: never to be used.
REFUSED = {
    "pytorch-lightning": (("2.6.2", "2.6.3"), "was a malicious upload"),
    "lightning": (("2.6.2", "2.6.3"), "was a malicious upload"),
    "deepspeed": (("0.17.6", "0.18.0", "0.18.1", "0.18.2"), "computes wrong ZeRO-2 gradients"),
}


def examine(checkpoints: Path = Path("checkpoints")) -> Iterator[Finding]:
    """All findings, in the order of the report. `checkpoints`: the folder whose models are listed."""
    yield from _versions()
    yield from _shadowed()
    if importlib.util.find_spec("torch") is None:
        return
    yield from _devices()
    yield from _attention()
    yield from _compiler()
    yield from _video()
    yield from _disk()
    yield from _models(checkpoints)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    place = f"Python {platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    yield Finding("python", "ok" if good else "problem", place + ("" if good else ": 3.11 or newer is needed"))
    for name in REQUIRED:
        version = _installed(name)
        missing = f"{name} is missing: pip install {name}"
        yield _judged(name, version) if version else Finding("package", "problem", missing)
    for name, purpose in OPTIONAL.items():
        version = _installed(name)
        missing = f"{name} is not installed; it is needed for {purpose}"
        yield _judged(name, version) if version else Finding("package", "note", missing)


def _judged(name: str, version: str) -> Finding:
    releases, reason = REFUSED.get(name, ((), ""))
    if version.split("+")[0] in releases:
        return Finding("package", "problem", f"{name} {version} {reason}: install another release")
    return Finding("package", "ok", f"{name} {version}")


def _shadowed() -> Iterator[Finding]:
    """Whether `lvdm` and `aicl` are ours: upstream's code has a package of the first name too."""
    ours = Path(__file__).resolve().parents[1]
    for package in ("aicl", "lvdm"):
        spec = importlib.util.find_spec(package)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if places and ours / package not in places:
            text = f"{package} is imported from {places[0]}, not from {ours}: uninstall the other package of that name"
            yield Finding("package", "problem", text)


def _devices() -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB if hasattr(os, "sysconf") else 0
    yield Finding(
        "cpu", "ok", f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, torch uses {torch.get_num_threads()}"
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"PyTorch was built for CUDA {built} and finds no usable GPU" if built else "PyTorch was built without CUDA"
        )
        yield Finding("gpu", "note", f"none: {why}; the small models run on the CPU, full-size ones need a GPU")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        text = f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}"
        if about.major < 8:
            yield Finding("gpu", "note", f"{text}: no bfloat16 in hardware, use --dtype float16")
        else:
            yield Finding("gpu", "ok", text)


def _attention() -> Iterator[Finding]:
    import torch

    from lvdm.errors import ConfigError
    from lvdm.models import set_backend

    kernels = ("flash", "mem_efficient", "math")
    enabled = [name for name in kernels if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]
    yield Finding("attention", "ok", f"PyTorch's scaled_dot_product_attention ({', '.join(enabled)})")
    try:
        set_backend("xformers")
        yield Finding("attention", "ok", "xformers")
    except ConfigError as error:
        yield Finding("attention", "note", str(error))
    finally:
        set_backend("sdpa")


def _compiler() -> Iterator[Finding]:
    import torch

    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    triton = importlib.util.find_spec("triton") is not None
    if torch.cuda.is_available() and not (triton and compiler):
        lacking = " and ".join(name for name, there in (("Triton", triton), ("a C++ compiler", compiler)) if not there)
        yield Finding("compiler", "note", f"torch.compile lacks {lacking}: models run, but slower")
    elif compiler is None:
        yield Finding("compiler", "note", "no C++ compiler: torch.compile does not work on this CPU")
    else:
        yield Finding("compiler", "ok", f"torch.compile has {compiler}{' and Triton' if triton else ''}")


def _video() -> Iterator[Finding]:
    import av

    missing = [name for name, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")) if codec not in av.codecs_available]
    if missing:
        yield Finding("video", "note", f"this PyAV cannot write {' and '.join(missing)}: install PyAV's own wheel")
    else:
        yield Finding("video", "ok", "mp4 and webm can be written")


def _disk() -> Iterator[Finding]:
    for what, folder in (("this folder", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / GIB
        text = f"{free:.0f} GiB free for {what} ({folder})"
        yield Finding(
            "disk", "ok" if free >= 5 else "note", text if free >= 5 else text + ": a full-size model needs 5 to 10"
        )


def _models(checkpoints: Path) -> Iterator[Finding]:
    """Every model folder below `checkpoints`, and whether its files are complete."""
    from aicl.model_files import FolderConfig
    from lvdm.checkpoints.folder import CONFIG_FILE, expected_parts, read_model_config
    from lvdm.errors import UserError

    folders = sorted(path for path in checkpoints.glob("*") if path.is_dir()) if checkpoints.is_dir() else []
    if not folders:
        yield Finding("model", "note", f"no models in {checkpoints}: name one with --model or --base")
    for folder in folders:
        try:
            config = FolderConfig.read(folder)
            base = folder / config.base if config else folder
            if not (base / CONFIG_FILE).is_file():
                continue
            about = read_model_config(base)
            files = [f"{part}.safetensors" for part in sorted(expected_parts(about))]
            missing = [
                name for name in files if not ((base / name).is_file() or (base / f"{name}.index.json").is_file())
            ]
            if config and not (folder / config.adapter).is_file():
                missing.append(config.adapter)
            if missing:
                yield Finding("model", "problem", f"{folder}: {', '.join(missing)} missing: get the folder again")
                continue
        except UserError as error:
            yield Finding("model", "problem", str(error))
            continue
        what = "image-to-video" if about.takes_image else "text-to-video"
        yield Finding("model", "ok", f"{folder}: {about.family}, {what}{', with an adapter' if config else ''}")
