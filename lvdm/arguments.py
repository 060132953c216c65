"""Checks of what is handed to a pipeline's methods: a wrong type ends in one sentence, not deep inside a library."""

import os
from typing import Any

import torch

from lvdm.errors import ConfigError


def check_device(value: Any) -> torch.device:
    """The device itself. Raises ConfigError for anything that names none, or one that this machine does not have."""
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"device {described(value)} cannot be used here: choose another, such as 'cpu'") from error
    return device


def check_dtype(value: Any) -> None:
    """Raise ConfigError unless this is a floating-point type of torch, or None."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise ConfigError(f"torch_dtype must be a type of torch, such as torch.float16, got {described(value)}")


def check_path(value: Any, what: str) -> None:
    """Raise ConfigError unless this names a file or folder; `what` says which."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{what} must be given as a path, got {described(value)}")


def check_number(value: Any, name: str) -> float:
    """The number. Raises ConfigError for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, got {described(value)}")
    return value


def described(value: Any) -> str:
    """A value in a sentence: what is short and plain as it is written, anything else by its type."""
    plain = isinstance(value, str | int | float | bool | None | torch.dtype) and len(repr(value)) <= 60
    return repr(value) if plain else f"a {type(value).__name__}"
