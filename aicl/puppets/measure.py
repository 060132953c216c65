"""What the classifier says of generated clips: the right action, the right person, how far from real clips as a set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aicl.puppets.actions import UNSEEN_INDICES
from aicl.puppets.classifier import PuppetClassifier, Verdict


@torch.no_grad()
def judge(classifier: PuppetClassifier, frames: Tensor, batch_size: int = 64) -> Verdict:
    """The classifier's verdict on clips (n, 3, t, h, w) in [-1, 1], in float32 on the CPU."""
    device = classifier.position.device
    parts = [classifier(part.to(device, torch.float32)) for part in frames.split(batch_size)]
    return Verdict(*(torch.cat(column).float().cpu() for column in zip(*parts)))


def accuracy(verdict: Verdict, actions: Tensor, among: Sequence[int] | None = None) -> float:
    """Share of clips whose best-scored action is `actions` (n,); `among` restricts the choice to these actions."""
    scores = verdict.action
    if among is not None:
        barred = torch.full_like(scores[0], -torch.inf)
        barred[list(among)] = 0.0
        scores = scores + barred
    return _share(scores.argmax(1) == actions)


def forced_choice(verdict: Verdict, actions: Tensor, among: Sequence[int] = UNSEEN_INDICES) -> float:
    """Accuracy in a choice among the ten unseen actions; chance is 10%."""
    return accuracy(verdict, actions, among)


def appearance_accuracy(verdict: Verdict, looks: Tensor) -> float:
    """Share of shirts, trousers and backgrounds that are recognised as the prompt's `looks` (n, 3)."""
    return _share(verdict.looks.argmax(2) == looks)


def copy_leakage(verdict: Verdict, looks: Tensor, reference_looks: Tensor) -> float:
    """How often a look is the reference's (n, 3) where the prompt's (n, 3) is another one; nan where none differs."""
    differs = looks != reference_looks
    return _share((verdict.looks.argmax(2) == reference_looks)[differs])


def frechet_distance(features: Tensor, real: Tensor, components: int | None = 32) -> float:
    """Frechet distance of two sets of features (n, d) and (m, d), as Gaussians, in float64.

    With `components`, both are first projected on the real set's main axes: with a few hundred clips a covariance of
    all features would be singular. Raises ValueError where a set has no more clips than dimensions.
    """
    features, real = features.double(), real.double()
    if components is not None and components < real.shape[1]:
        axes = torch.linalg.svd(real - real.mean(0), full_matrices=False)[2][:components].T
        features, real = features @ axes, real @ axes
    if min(len(features), len(real)) <= real.shape[1]:
        raise ValueError(f"a Frechet distance of {real.shape[1]} dimensions needs more clips than that in each set")
    covariance, real_covariance = torch.cov(features.T), torch.cov(real.T)
    # tr sqrt(A B) = tr sqrt(A^1/2 B A^1/2), which is symmetric: its eigenvalues are real and stable to compute
    root = _symmetric_root(covariance)
    cross = torch.linalg.eigvalsh(root @ real_covariance @ root).clamp(min=0).sqrt().sum()
    between = (features.mean(0) - real.mean(0)).square().sum()
    return float(between + covariance.trace() + real_covariance.trace() - 2 * cross)


def _symmetric_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
