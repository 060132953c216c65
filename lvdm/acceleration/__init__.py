"""How fast a model runs, apart from what it computes: kernels, compiled blocks and CUDA graphs, for sampling."""

from lvdm.acceleration.graphs import Holdable, Replayed
from lvdm.acceleration.regions import compile_regions

__all__ = ["Holdable", "Replayed", "compile_regions"]
