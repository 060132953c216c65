"""KVD: the kernel distance of video features, for sets that are too small for FVD."""

from aicl.evaluation.kernel_distance import kernel_metric
from aicl.evaluation.metric import register

register(
    kernel_metric(
        "kvd",
        "KVD",
        "i3d",
        "Squared maximum mean discrepancy of I3D's logits under a cubic polynomial kernel, unbiased; 0 is real.",
    )
)
register(
    kernel_metric(
        "kvd_videomae",
        "KVD-VideoMAE",
        "videomae",
        "The same of VideoMAE features, and not comparable with KVD.",
    )
)
