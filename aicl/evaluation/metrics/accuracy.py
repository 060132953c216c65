"""Accuracy: does a video classifier see the action that was asked for, among all its classes or in a forced choice?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aicl.evaluation.metric import Metric, Observed, register
from lvdm.errors import DataError

TEN = 10


def top1(scores: Tensor, labels: Tensor, among: Sequence[int] | Tensor | None = None) -> Tensor:
    """Whether the best-scored class is `labels` (n,), for scores (n, classes): bool (n,).

    `among`: a forced choice among these classes; chance is 1 / len(among). Raises DataError for a label outside it.
    """
    if among is None:
        return scores.argmax(1) == labels
    choices = torch.as_tensor(among, device=scores.device)
    if not torch.isin(labels, choices).all():
        raise DataError("a label is not among the classes of the forced choice")
    return choices[scores[:, choices].argmax(1)] == labels


def _accuracy(observed: Observed) -> Tensor:
    return top1(observed.videos["classifier.logits"], observed.index(observed.labels))


def _of_the_reference(observed: Observed) -> Tensor:
    return top1(observed.videos["classifier.logits"], observed.index(observed.shown_labels))


def _forced_choice(observed: Observed) -> Tensor:
    pool = observed.index(observed.pool)
    return top1(observed.videos["classifier.logits"], observed.index(observed.labels), pool)


def _ten_way(observed: Observed) -> Tensor:
    if len(observed.pool or ()) != TEN:
        raise DataError(
            f"10-way accuracy is a choice among ten classes, and this set has {len(observed.pool or ())}: "
            "put n_way_acc in its place"
        )
    return _forced_choice(observed)


def _chance(observed: Observed) -> dict[str, float]:
    count = len(observed.pool or ())
    return {f"accuracy of a guess among {count} classes, %": 100 / count} if count else {}


register(
    Metric(
        name="acc",
        column="ACC %",
        better=1,
        needs=("classifier", "label"),
        about="Share of videos whose action a classifier names right, among all its classes.",
        values=_accuracy,
        factor=100,
    )
)
register(
    Metric(
        name="ten_way_acc",
        column="10-way accuracy %",
        better=1,
        needs=("classifier", "label", "pool"),
        about="The same in a forced choice among the set's ten actions; chance is 10%.",
        values=_ten_way,
        lines=_chance,
        factor=100,
    )
)
register(
    Metric(
        name="n_way_acc",
        column="N-way accuracy %",
        better=1,
        needs=("classifier", "label", "pool"),
        about="The same in a forced choice among all actions of the set, of which there are N.",
        values=_forced_choice,
        lines=_chance,
        factor=100,
    )
)
register(
    Metric(
        name="reference_acc",
        column="ACC as reference %",
        better=0,
        needs=("classifier", "shown_labels"),
        about="Share of videos in which the classifier sees the action that the reference shows.",
        values=_of_the_reference,
        factor=100,
    )
)
