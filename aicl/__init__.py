"""Action in-context learning for video diffusion models (arXiv 2403.11535). Names are imported when first used."""

# ruff: noqa: I001 (names are given again, so that type checkers take them for public)
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # editors and type checkers do not see names that are imported when first used
    from aicl.action_integration import IntegrationConfig as IntegrationConfig
    from aicl.action_prism import ActionPrism as ActionPrism, PrismConfig as PrismConfig, build_prism as build_prism
    from aicl.adapter import load_adapter as load_adapter, save_adapter as save_adapter
    from aicl.integrated_backbone import IntegratedBackbone as IntegratedBackbone, integrate as integrate
    from aicl.motion_features import MotionFeatures as MotionFeatures
    from aicl.options import Reference as Reference, SamplingOptions as SamplingOptions
    from aicl.pipeline import AICLPipeline as AICLPipeline
    from aicl.reference_context import ReferenceContext as ReferenceContext
    from aicl.reference_retrieval import (
        Library as Library,
        VerbIndex as VerbIndex,
        VerbPairSampler as VerbPairSampler,
        load_library as load_library,
        save_library as save_library,
    )

__version__ = "0.2.0"

_HOMES = {
    "action_integration": ("IntegrationConfig",),
    "action_prism": ("ActionPrism", "PrismConfig", "build_prism"),
    "adapter": ("load_adapter", "save_adapter"),
    "integrated_backbone": ("IntegratedBackbone", "integrate"),
    "motion_features": ("MotionFeatures",),
    "options": ("Reference", "SamplingOptions"),
    "pipeline": ("AICLPipeline",),
    "reference_context": ("ReferenceContext",),
    "reference_retrieval": ("Library", "VerbIndex", "VerbPairSampler", "load_library", "save_library"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def _check_lvdm() -> None:
    """Raise ImportError where Python finds another package than ours under the name `lvdm`: two ancestors have it."""
    spec = find_spec("lvdm")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    ours = any((place / "errors.py").is_file() for place in places)
    others = [place for place in places if (place / "modules").is_dir() or (place / "models" / "modules").is_dir()]
    if ours and not others:
        return
    if Path(sys.argv[0]).stem in ("aicl", "-m"):
        sys.tracebacklimit = 0  # the command says this sentence and nothing more
    where = f"in {(others or places)[0]} " if others or places else ""
    raise ImportError(
        f"the package lvdm {where}is not AICL's but another of that name, such as LVDM's or VideoCrafter's own: take "
        "it off PYTHONPATH and out of the working folder, or give AICL an environment of its own"
    )


# As in lvdm.lazy, from which it cannot come: nothing of lvdm is imported before it is known to be ours.
def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_check_lvdm()
