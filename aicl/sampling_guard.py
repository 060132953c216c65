"""Jobs whose references are left out where the base model knows the action of their prompt by itself."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from aicl.options import SamplingOptions

if TYPE_CHECKING:
    from aicl.known_actions import KnownAction
    from aicl.pipeline import AICLPipeline
    from aicl.sampling_jobs import Job


def leave_out_needless(jobs: "list[Job]", pipe: "AICLPipeline") -> "list[Job]":
    """The jobs, without references where `reference_guard` says so; each is said on the screen.

    Warns of a prompt in which no action is found: its references stay.
    """
    guarded = [i for i, job in enumerate(jobs) if job.reference_guard is not None and job.references]
    if not guarded:
        return jobs
    from aicl.known_actions import known_actions
    from aicl.sampling_jobs import OF_REFERENCES

    fields = dataclasses.fields(SamplingOptions)
    of_references: dict[str, Any] = {field.name: field.default for field in fields if field.name in OF_REFERENCES}
    asked = [jobs[i] for i in guarded]
    found: dict[int, KnownAction] = {}
    for fps in dict.fromkeys(job.fps for job in asked):
        places = [i for i in guarded if jobs[i].fps == fps]
        alike = [jobs[i] for i in places]
        general, images = [job.general_prompt for job in alike], [job.image for job in alike]
        found |= zip(places, known_actions(pipe, [job.prompt for job in alike], general, images, fps=fps))
    jobs = list(jobs)
    for i in guarded:
        job, known = jobs[i], found[i]
        limit = job.reference_guard
        assert limit is not None
        if known.general is None:
            warnings.warn(
                f"'{job.prompt}' names no action that is found, so the guard cannot ask whether the base model knows "
                "it, and the references stay: give --general-prompt, the prompt with a general word in its place",
                stacklevel=2,
            )
        change = f"beside '{known.general}' the prompt changes the first prediction's motion by {known.effect:.1%}"
        job = dataclasses.replace(job, reference_guard=None, general_prompt=None)
        if known.is_known(limit):
            print(f"the base model knows this action, so its references are left out: {change}")
            job = dataclasses.replace(
                job,
                references=[],
                left_out=[each.name for each in job.references],
                chosen=[],
                num_references=1,
                **of_references,
            )
        elif known.general is not None:
            print(f"the base model does not know this action, so its references are read: {change}")
        jobs[i] = job
    return jobs
