"""FVD, and the same distance of other networks' features, which say so by their names."""

from aicl.evaluation.frechet import frechet_metric
from aicl.evaluation.metric import register

register(
    frechet_metric(
        "fvd",
        "FVD",
        "i3d",
        "Frechet distance of I3D's logits (Unterthiner et al. 2018) between generated and real videos.",
    )
)
register(
    frechet_metric(
        "fvd_videomae",
        "FVD-VideoMAE",
        "videomae",
        "Frechet distance of VideoMAE features between generated and real videos; less blind to motion than FVD "
        "(Ge et al. 2024), and not comparable with it.",
    )
)
