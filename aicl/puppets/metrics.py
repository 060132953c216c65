"""What can be measured in the puppet world alone: whether a video looks like its prompt, or like its reference.

Its classifier reads shirt, trousers and background, so that both halves of the claim are counted exactly: a video does
what the reference does, and looks like what the prompt says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aicl.evaluation.frechet import frechet_metric
from aicl.evaluation.kernel_distance import kernel_metric
from aicl.evaluation.metric import Metric, Observed, register
from aicl.puppets.captions import parse
from aicl.puppets.scene_parameters import BACKGROUNDS, COLOURS
from lvdm.errors import DataError


def attribute_hits(logits: Tensor, looks: Tensor) -> Tensor:
    """Whether each look is the prompt's: logits (n, kinds, values), looks (n, kinds) -> bool (n, kinds)."""
    return logits.argmax(-1) == looks


def leaks(logits: Tensor, looks: Tensor, reference_looks: Tensor) -> Tensor:
    """Whether a look is a reference's, where no reference shares the prompt's.

    logits (n, kinds, values), looks (n, kinds), reference_looks (n, k, kinds) -> bool (m,), one entry for each look
    that could leak. Chance, for a look that ignores prompt and reference alike, is k / values or less.
    """
    could = (reference_looks != looks[:, None]).all(1)  # (n, kinds)
    copied = (reference_looks == logits.argmax(-1)[:, None]).any(1)
    return copied[could]


def prompt_looks(prompts: Sequence[str]) -> Tensor:
    """The numbers of shirt, trousers and background in prompts of the puppet world, (n, 3).

    Raises DataError for a prompt that is none, or leaves one of them open.
    """
    rows = []
    for prompt in prompts:
        said = parse(prompt)
        words = ((said.shirt, COLOURS), (said.trousers, COLOURS), (said.background, BACKGROUNDS))
        if any(word is None for word, _ in words):
            raise DataError(f"'{prompt}' does not say how shirt, trousers and background look: leave attribute_acc out")
        rows.append([list(table).index(str(word)) for word, table in words])
    return torch.tensor(rows)


def _looks(observed: Observed) -> Tensor:
    return observed.facts["looks"] if "looks" in observed.facts else prompt_looks(observed.prompts)


def _attributes(observed: Observed) -> Tensor:
    return attribute_hits(observed.videos["classifier.looks"], _looks(observed))


def _leakage(observed: Observed) -> Tensor:
    return leaks(observed.videos["classifier.looks"], _looks(observed), observed.facts["shown_looks"])


register(
    Metric(
        name="attribute_acc",
        column="attribute accuracy %",
        better=1,
        needs=("classifier.looks", "wording"),
        about="Share of shirts, trousers and backgrounds that are as the prompt says.",
        values=_attributes,
        factor=100,
    )
)
register(
    Metric(
        name="appearance_leakage",
        column="appearance leakage %",
        better=-1,
        needs=("classifier.looks", "facts.shown_looks"),
        about="Of the looks in which prompt and reference differ, the share that is as in the reference.",
        values=_leakage,
        unpaired=True,
        factor=100,
    )
)
register(
    frechet_metric(
        "fd_puppets",
        "FD (puppet classifier)",
        "classifier",
        "Frechet distance of the puppet classifier's motion features between generated and real videos.",
    )
)

register(
    kernel_metric(
        "kd_puppets",
        "KD (puppet classifier)",
        "classifier",
        "Kernel distance of the puppet classifier's features, for sets that are too small for their Frechet distance.",
    )
)
