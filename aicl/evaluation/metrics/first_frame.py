"""Whether an image-to-video model keeps its image: the first frame against that of the clip which the image is of."""

import torch.nn.functional as F
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register

_ANOTHER = "first frame, to another sample's image"


def first_frame(videos: Tensor, clips: Tensor) -> Tensor:
    """100 x the cosine (n,) of the features of each video's first frame (n, t, d) and its clip's (n, t', d)."""
    return 100 * F.cosine_similarity(videos[:, 0].double(), clips[:, 0].double(), dim=-1)


def _values(observed: Observed) -> Tensor:
    return first_frame(observed.videos["clip.frames"], observed.target["clip.frames"]).float()


def _lines(observed: Observed) -> dict[str, float]:
    """What a video that has nothing to do with its image gets."""
    if len(observed) < 2 or not observed.target:
        return {}
    other = observed.target["clip.frames"].roll(1, 0)
    return {_ANOTHER: float(first_frame(observed.videos["clip.frames"], other).mean())}


register(
    Metric(
        name="first_frame",
        column="first frame",
        better=1,
        needs=("clip", "target", "image"),
        about="100 x cosine of CLIP features of the video's first frame and of the image that it was given.",
        values=_values,
        lines=_lines,
    )
)
