"""What commands share: running `main` so that a user's mistake ends in one sentence, and the device to run on."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from lvdm.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    import torch


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit: 0 on success, 2 on bad input (one sentence on stderr), 130 on Ctrl-C."""
    warnings.formatwarning = _one_sentence
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def check_there(path: str | os.PathLike[str] | None, advice: str) -> None:
    """Say at once that what an option names is not there: what reads it takes seconds to import. None is not given.

    advice: what to do about it. Raises DataError.
    """
    if path is not None and not os.path.lexists(path):
        raise DataError(f"{os.fspath(path)} does not exist: {advice}")


def _one_sentence(message: Warning | str, category: type[Warning], *where: object, **line: object) -> str:
    """Our own warnings are meant for users, who need no line of our code; those of libraries keep their kind."""
    return f"warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


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
