"""All that the puppet classifier says of a set of generated clips, as one row of numbers."""

import torch
from torch import Tensor

from aicl.evaluation.accuracy import puppet_verdict, top1
from aicl.evaluation.appearance import appearance_hits, leaks
from aicl.evaluation.frechet import FeatureStats, frechet_distance
from aicl.puppets.actions import UNSEEN_INDICES
from aicl.puppets.classifier import PuppetClassifier, Verdict


def judge(classifier: PuppetClassifier, frames: Tensor, batch_size: int = 64) -> Verdict:
    """The verdict on clips (n, 3, t, h, w) in [-1, 1], a batch at a time, on the CPU."""
    parts = [puppet_verdict(classifier, part) for part in frames.split(batch_size)]
    return Verdict(*(torch.cat(column).cpu() for column in zip(*parts)))


def measure(
    verdict: Verdict,
    actions: Tensor,
    looks: Tensor,
    *,
    reference_looks: Tensor | None = None,
    shown: Tensor | None = None,
    real: FeatureStats | None = None,
) -> dict[str, float]:
    """Shares in [0, 1], and a Frechet distance, of clips that should show `actions` (n,) by people of `looks` (n, 3).

    accuracy: top-1 among all actions. forced_choice: among the ten unseen ones, where only such are asked for.
    appearance: of the looks. leakage: how often a look is a reference's instead, with `reference_looks` (n, k, 3).
    accuracy_as_shown: top-1 as the action that the reference shows, `shown` (n,), for wrong references. frechet: to
    the features of `real` clips.
    """
    row = {
        "accuracy": _share(top1(verdict.action, actions)),
        "appearance": _share(appearance_hits(verdict.looks, looks)),
    }
    if torch.isin(actions, torch.tensor(UNSEEN_INDICES)).all():
        row["forced_choice"] = _share(top1(verdict.action, actions, UNSEEN_INDICES))
    if reference_looks is not None:
        row["leakage"] = _share(leaks(verdict.looks, looks, reference_looks))
    if shown is not None:
        row["accuracy_as_shown"] = _share(top1(verdict.action, shown))
    if real is not None:
        row["frechet"] = frechet_distance(FeatureStats.of(verdict.features), real, allow_few=True)
    return row


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
