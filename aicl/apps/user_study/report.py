"""What the answers say: how often ours is preferred, with intervals, and how far evaluators agree."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from aicl.apps.user_study.store import QUESTIONS, Answer, Evaluator, Store
from aicl.evaluation.statistics import wilson


def summarise(store: Store, level: float = 0.95) -> dict[str, Any]:
    """The whole report, ready for JSON; intervals reach `level`, shares are in [0, 1].

    A row of `results` has the counts of answers and `preference`, the share of ours among decided answers (ties left
    out) with Wilson's interval, which takes answers as independent. Where evaluators agree they are not: `by_pair`
    counts each pair once, by the majority of its answers.
    """
    answers, evaluators, settings = store.answers(), store.evaluators(), store.settings
    groups = {pair.number: pair.group for pair in store.pairs}
    results = []
    for question in QUESTIONS:
        asked = [answer for answer in answers if answer.question == question]
        results.append(_row(question, None, asked, level))
        for group in sorted(set(groups.values()) - {""}):
            results.append(_row(question, group, [item for item in asked if groups[item.pair] == group], level))
    people = [
        _person(evaluator, [answer for answer in answers if answer.evaluator == evaluator.number], len(store.pairs))
        for evaluator in evaluators
    ]
    times = sorted(answer.time for answer in answers)
    return {
        "study": {
            "fingerprint": settings.fingerprint,
            "seed": settings.seed,
            "ties": settings.ties,
            "created": settings.created,
            "pairs": len(store.pairs),
            "questions": QUESTIONS,
            "level": level,
        },
        "evaluators": len(evaluators),
        "finished": sum(person["finished"] for person in people),
        "answers": len(answers),
        "changed_answers": len(store.history()),
        "first_answer": times[0] if times else None,
        "last_answer": times[-1] if times else None,
        "results": results,
        "by_evaluator": people,
    }


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is full agreement, 0 what chance gives.

    Each unit has the values given to it, by any number of raters; units with fewer than two don't count. None where
    it is not defined: no such unit, or one value everywhere, which leaves no disagreement to expect.
    """
    counts = [Counter(values) for values in units if len(values) > 1]
    totals = sum(counts, Counter[Hashable]())
    count = totals.total()
    expected = count**2 - sum(number**2 for number in totals.values())
    if not expected:
        return None
    observed = sum((u.total() ** 2 - sum(number**2 for number in u.values())) / (u.total() - 1) for u in counts)
    return 1 - (count - 1) * observed / expected


def pairwise_agreement(units: Iterable[Sequence[Hashable]]) -> float | None:
    """The share of all pairs of raters of one unit who gave it the same value; None without such pairs."""
    same = total = 0
    for counts in map(Counter, units):
        same += sum(number * (number - 1) for number in counts.values())
        total += counts.total() * (counts.total() - 1)
    return same / total if total else None


def markdown(report: dict[str, Any]) -> str:
    """The report as tables to read."""
    study = report["study"]
    lines = [
        "# User study",
        "",
        f"Pairs: {study['pairs']}. Evaluators: {report['evaluators']} ({report['finished']} finished). "
        f"Answers: {report['answers']} ({report['changed_answers']} changed afterwards), "
        f"from {report['first_answer'] or '-'} to {report['last_answer'] or '-'}.",
        "",
        f"Ours: the share of decided answers that prefer ours, with Wilson's {study['level']:.0%} interval. "
        "By pair: the same with one vote a pair, that of its majority; trust it where evaluators agree, since their "
        "answers are then not independent. Left: the share of answers for the left video, 50% if sides don't matter.",
        "",
        "| question | group | ours % | ours | no difference | baseline | by pair % | alpha | agreement % | left % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["results"]:
        cells = [
            row["question"].upper(),
            row["group"] or "all",
            _interval(row["preference"]),
            *(str(row[kind]) for kind in ("ours", "tie", "baseline")),
            _interval(row["by_pair"]["preference"]),
            "-" if row["alpha"] is None else f"{row['alpha']:.2f}",
            _percent(row["agreement"]),
            _percent(row["left"]),
        ]
        lines.append(_cells(cells))
    lines += ["", *(f"- {name.upper()}: {text}" for name, text in study["questions"].items()), "", "## Evaluators", ""]
    names = list(study["questions"])
    lines.append(
        _cells(["evaluator", "pairs", *(f"{name.upper()}: ours %" for name in names), "left %", "last answer"])
    )
    lines.append(_cells(["---"] * (4 + len(names))))
    for person in report["by_evaluator"]:
        shares = [_percent(person["preference"][name]) for name in names]
        pairs = f"{person['pairs']} of {study['pairs']}"
        lines.append(
            _cells([str(person["evaluator"]), pairs, *shares, _percent(person["left"]), person["last"] or "-"])
        )
    return "\n".join(lines) + "\n"


def _row(question: str, group: str | None, answers: list[Answer], level: float) -> dict[str, Any]:
    units: dict[int, list[str]] = {}
    for answer in answers:
        units.setdefault(answer.pair, []).append(answer.preferred)
    leads = [values.count("ours") - values.count("baseline") for values in units.values()]
    won, lost = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
    counts = Counter(answer.preferred for answer in answers)
    return {
        "question": question,
        "group": group,
        "answers": len(answers),
        "ours": counts["ours"],
        "tie": counts["tie"],
        "baseline": counts["baseline"],
        "preference": _preference(counts["ours"], counts["baseline"], level),
        "by_pair": {
            "won": won,
            "even": len(leads) - won - lost,
            "lost": lost,
            "preference": _preference(won, lost, level),
        },
        "alpha": krippendorff_alpha(units.values()),
        "agreement": pairwise_agreement(units.values()),
        "left": _left(answers),
    }


def _person(evaluator: Evaluator, answers: list[Answer], pairs: int) -> dict[str, Any]:
    complete = sum(number == len(QUESTIONS) for number in Counter(answer.pair for answer in answers).values())
    preference = {}
    for question in QUESTIONS:
        counts = Counter(answer.preferred for answer in answers if answer.question == question)
        decided = counts["ours"] + counts["baseline"]
        preference[question] = counts["ours"] / decided if decided else None
    return {
        "evaluator": evaluator.number,
        "pairs": complete,
        "finished": complete == pairs,
        "preference": preference,
        "left": _left(answers),
        "joined": evaluator.created,
        "last": max((answer.time for answer in answers), default=None),
    }


def _preference(ours: int, baseline: int, level: float) -> dict[str, Any] | None:
    return asdict(wilson(ours, ours + baseline, level)) if ours + baseline else None


def _left(answers: list[Answer]) -> float | None:
    sides = Counter(answer.choice for answer in answers)
    decided = sides["left"] + sides["right"]
    return sides["left"] / decided if decided else None


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _interval(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
