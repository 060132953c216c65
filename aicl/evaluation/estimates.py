"""From what was seen of a row to its numbers: the one place that makes them, for tables and for folders."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aicl.evaluation import statistics
from aicl.evaluation.metric import Evaluator, Metric, Observed
from aicl.evaluation.observe import RATE
from aicl.evaluation.statistics import Estimate


def estimate(metric: Metric, observed: Observed) -> Estimate:
    """A metric of a set, with its interval."""
    if metric.estimate is not None:
        return metric.estimate(observed)
    values = values_of(metric, observed)
    return statistics.share(values) if values.dtype == torch.bool else statistics.mean(values)


def values_of(metric: Metric, observed: Observed) -> Tensor:
    """What a metric says of each video, computed once."""
    assert metric.values is not None
    if metric.name not in observed.known:
        observed.known[metric.name] = metric.values(observed)
    return observed.known[metric.name]


def estimates_by_seed(metrics: Sequence[Metric], parts: Sequence[Observed]) -> dict[str, list[float]]:
    """The value of each seed, of metrics that judge each video."""
    if any(len(part) < 2 for part in parts):
        return {}
    return {m.name: [estimate(m, part).value for part in parts] for m in metrics if m.values is not None}


def shares_by_label(metrics: Sequence[Metric], observed: Observed) -> dict[str, dict[str, float]]:
    """The share of each label's videos, of metrics that judge a video right or wrong: metric -> label -> share."""
    if observed.labels is None:
        return {}
    rows: dict[str, list[int]] = {}
    for number, label in enumerate(observed.labels):
        rows.setdefault(label, []).append(number)
    judged = {m.name: values_of(m, observed) for m in metrics if m.values is not None}
    return {
        name: {label: float(values[chosen].double().mean()) for label, chosen in sorted(rows.items())}
        for name, values in judged.items()
        if values.dtype == torch.bool
    }


def paired_differences(metrics: Sequence[Metric], ours: Observed, theirs: Observed) -> dict[str, Estimate]:
    """Ours minus theirs on the same samples, of metrics that judge each video."""
    return {
        metric.name: statistics.difference(values_of(metric, ours), values_of(metric, theirs))
        for metric in metrics
        if metric.values is not None and not metric.unpaired and not metric.missing(theirs)
    }


def lines_beside(metrics: Sequence[Metric], observed: Observed) -> dict[str, float]:
    """What is to be read beside the metrics of a row: the value of real videos, floors, ceilings, chance levels."""
    lines: dict[str, float] = {}
    for metric in metrics:
        real = observed.real
        if real is not None and metric.values is not None and not metric.missing(real):
            lines[f"{metric.column} of real videos"] = metric.factor * float(values_of(metric, real).double().mean())
        if metric.lines is not None:
            lines |= metric.lines(observed)
    return lines


def own_rates(seen: Mapping[str, Tensor]) -> list[float]:
    """The different frame rates (1/s) that videos have of themselves, rounded to hundredths."""
    rates = next((value for name, value in seen.items() if name.endswith(f".{RATE}")), None)
    return [] if rates is None else sorted({round(rate, 2) for rate in rates.tolist()})


def describe(evaluators: Mapping[str, Evaluator], metrics: Sequence[Metric]) -> tuple[dict[str, str], dict[str, int]]:
    """The networks and versions of a protocol: of the evaluators that the metrics need, and of the metrics."""
    used = {role for metric in metrics for role in metric.roles()}
    needed = {role: evaluator for role, evaluator in sorted(evaluators.items()) if role in used}
    networks = {role: f"{e.name}, SHA-256 {e.hash[:12]}" if e.hash else e.name for role, e in needed.items()}
    versions = {role: e.version for role, e in needed.items()} | {metric.name: metric.version for metric in metrics}
    return networks, versions
