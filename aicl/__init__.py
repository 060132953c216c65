"""Action in-context learning for video diffusion models (arXiv 2403.11535). Names are imported when first used."""

from importlib import import_module
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
