"""Appearance: a video should do what the reference does, and look like what the prompt says.

In the puppet world a classifier reads shirt, trousers and background, so both halves are counted exactly. For real
videos, `similarity_margin` says how much closer a video's looks are to its own reference than to other references.
"""

import torch.nn.functional as F
from torch import Tensor

from lvdm.errors import DataError

VERSION = 1


def appearance_hits(logits: Tensor, looks: Tensor) -> Tensor:
    """Whether each look is the prompt's: logits (n, kinds, values), looks (n, kinds) -> bool (n, kinds)."""
    return logits.argmax(-1) == looks


def leaks(logits: Tensor, looks: Tensor, reference_looks: Tensor) -> Tensor:
    """Copy leakage: whether a look is a reference's, where no reference shares the prompt's.

    logits (n, kinds, values), looks (n, kinds), reference_looks (n, k, kinds) -> bool (m,), one entry for each look
    that could leak. Chance, for a look that ignores prompt and reference alike, is k / values or less.
    """
    could = (reference_looks != looks[:, None]).all(1)  # (n, kinds)
    copied = (reference_looks == logits.argmax(-1)[:, None]).any(1)
    return copied[could]


def similarity_margin(features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """100 x cosine of each video's looks (n, t, d) with its reference's (n, t', d), and with all other references.

    Looks are the mean of the unit frame features (of CLIP, or any image network). Returns (own (n,), others (n,));
    own - others near zero means that nothing but the subject is shared. Raises DataError for fewer than two videos.
    """
    if len(features) < 2 or len(features) != len(references):
        raise DataError(f"{len(features)} videos and {len(references)} references: give two or more, one for each")
    looks = [F.normalize(F.normalize(x.double(), dim=-1).mean(1), dim=-1) for x in (features, references)]
    cosine = 100 * looks[0] @ looks[1].T  # (videos, references)
    own = cosine.diagonal()
    return own, (cosine.sum(1) - own) / (len(cosine) - 1)
