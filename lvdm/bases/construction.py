"""Networks of diffusers with random weights, from the arguments of their classes."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from lvdm.errors import ConfigError


def construct(name: str, params: Mapping[str, Any], where: str) -> Any:
    """The class `name` of diffusers, called with `params`, a section that `where` names.

    Raises ConfigError without the extra, and for parameters that the class does not have or cannot work with.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f'{name} needs the extra "diffusers": pip install -e ".[diffusers]"') from error
    cls: Any = getattr(diffusers, name)
    known = list(inspect.signature(cls.__init__).parameters)[1:]
    for unknown in (key for key in params if key not in known):
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f": did you mean {near[0]}?" if near else f": it has {', '.join(known)}"
        raise ConfigError(f"{where}.{unknown} is no parameter of {name}{hint}")
    try:
        return cls(**params)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"these parameters make no {name}: {error}") from error
