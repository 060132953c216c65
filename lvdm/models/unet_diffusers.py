"""Networks of diffusers trained from scratch, with this library's own text encoder, autoencoder and samplers.

A config's `family` is then the class, such as WanTransformer3DModel, and its section `unet` the arguments of the class.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lvdm.bases.backbone import DiffusersBackbone
from lvdm.bases.construction import construct
from lvdm.bases.kinds import KINDS
from lvdm.models.backbone import BACKBONES, Compression, VideoBackbone


def build(name: str, params: Mapping[str, Any]) -> VideoBackbone:
    """A network of a class in `lvdm.bases.kinds.KINDS`. Raises ConfigError without the extra, and for parameters that
    the class does not have or cannot work with."""
    model = construct(name, params, "unet")
    return DiffusersBackbone(model, Compression(space=8), "eps")


for _name in KINDS:
    _builder: Callable[[Mapping[str, Any]], VideoBackbone] = partial(build, _name)
    BACKBONES.register(_name)(_builder)
