"""Networks of diffusers trained from scratch, with this library's own text encoder, autoencoder and samplers.

A config's `family` is then the class, such as WanTransformer3DModel, and its section `unet` the arguments of the class.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lvdm.bases.backbone import DiffusersBackbone
from lvdm.bases.kinds import KINDS
from lvdm.errors import ConfigError
from lvdm.models.backbone import BACKBONES, Compression, VideoBackbone


def build(name: str, params: Mapping[str, Any]) -> VideoBackbone:
    """A network of a class in `lvdm.bases.kinds.KINDS`. Raises ConfigError without the extra, and for parameters that
    the class does not have or cannot work with."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f'{name} needs the extra "diffusers": pip install "aicl[diffusers]"') from error
    cls: Any = getattr(diffusers, name)
    known = list(inspect.signature(cls.__init__).parameters)[1:]
    for unknown in (key for key in params if key not in known):
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f": did you mean {near[0]}?" if near else f": it has {', '.join(known)}"
        raise ConfigError(f"unet.{unknown} is no parameter of {name}{hint}")
    try:
        model = cls(**params)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"these parameters make no {name}: {error}") from error
    return DiffusersBackbone(model, Compression(space=8), "eps")


for _name in KINDS:
    _builder: Callable[[Mapping[str, Any]], VideoBackbone] = partial(build, _name)
    BACKBONES.register(_name)(_builder)
