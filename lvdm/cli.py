"""What commands share: running `main` so that a user's mistake ends in one sentence, and the device to run on."""

import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from lvdm.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    import torch


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit: 0 on success, 2 on bad input or a lack of memory (one sentence on stderr), 130: Ctrl-C."""
    warnings.formatwarning = _one_sentence
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {_what_memory_lacks(error)}", file=sys.stderr)
        sys.exit(2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was not enough: PyTorch's for a GPU or the machine, or Python's own."""
    name = type(error).__name__  # so that torch need not be imported here
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _what_memory_lacks(error: BaseException) -> str:
    """One sentence: what PyTorch asked for in vain, and what to do."""
    gpu = type(error).__name__ == "OutOfMemoryError"
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    free = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", str(error))
    found = f" ({asked[1]} more were asked for" if asked else ""
    found += f"; {free[2]} of {free[1]} were free)" if asked and free else ")" if asked else ""
    advice = "give a video --offload, --batch-size 1 or fewer frames, and a training "
    advice += "training.gradient_checkpointing=true or more training.gradient_accumulation_steps"
    return f"the memory of {'the GPU' if gpu else 'this machine'} is not enough{found}: {advice}"


def counted(number: int, noun: str) -> str:
    """A number of things: "1 video", "2 videos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_there(path: str | os.PathLike[str] | None, advice: str) -> None:
    """Say at once that what an option names is not there: what reads it takes seconds to import. None is not given.

    advice: what to do about it. Raises DataError.
    """
    if path is not None and not os.path.lexists(path):
        raise DataError(f"{os.fspath(path)} does not exist: {advice}")


def _one_sentence(message: Warning | str, category: type[Warning], *where: object, **line: object) -> str:
    """Our own warnings are meant for users, who need no line of our code; those of libraries keep their kind."""
    return f"warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


def rank_and_world_size() -> tuple[int, int]:
    """Which of the processes of torchrun this is, from 0, and how many there are; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def device(name: str | None = None) -> "torch.device":
    """The device that --device names; by default the GPU of this process (of torchrun), or the CPU where there is none.

    Raises ConfigError for one that cannot be used.
    """
    import torch  # here, so that --help and mistakes in the options need not wait for it

    if name is None and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    try:
        chosen = torch.device(name or "cpu")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used here: choose another with --device, such as cpu") from error
    if chosen.type == "cuda":
        if chosen.index is None:
            chosen = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(chosen)
    return chosen
