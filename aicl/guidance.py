"""Guidance with references: which branches a prediction is the weighted sum of."""

from dataclasses import replace
from typing import Any

from lvdm.diffusion import Condition


def branches(
    negative: Condition,
    positive: Condition,
    context: Any,
    guidance_scale: float,
    reference_guidance_scale: float | None,
    embedded: bool = False,
) -> tuple[list[Condition], list[float]]:
    """Guidance branches and their weights: e(none), e(text) where it has a strength of its own, e(text, R).

    context: what the network takes as its `references`, such as a ReferenceContext; None: there are none. embedded: it
    was distilled with guidance, so that it is told g and has no e(none).
    """
    g, r = guidance_scale, reference_guidance_scale
    full = positive if context is None else replace(positive, extras={**positive.extras, "references": context})
    if context is None or r is None:
        return ([full], [1.0]) if embedded else ([negative, full], [1 - g, g])
    if embedded:
        return [positive, full], [1 - r, r]
    return [negative, positive, full], [1 - g, g - r, r]
