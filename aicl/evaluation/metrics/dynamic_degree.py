"""Dynamic Degree: how much moves. FC says how little changes; a frozen video has 0 here."""

from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register


def dynamic_degree(fastest: Tensor) -> Tensor:
    """Mean over time (b,) of the speeds of the fastest pixels, (b, t - 1), in percent of the frame's height a frame."""
    return fastest.mean(1)


def _values(observed: Observed) -> Tensor:
    return dynamic_degree(observed.videos["flow.fastest"])


register(
    Metric(
        name="dynamic_degree",
        column="Dynamic Degree",
        better=0,
        needs=("flow",),
        about="Mean speed of the fastest 5% of pixels, in percent of the frame's height a frame. VBench's measure of "
        "this name looks at the same pixels, and then says yes or no of each video, by a threshold.",
        values=_values,
        lines=lambda observed: {"Dynamic Degree of a static video": 0.0},
        decimals=2,
    )
)
