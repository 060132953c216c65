"""References for jobs from a library: by verbs before a model is loaded, by its vectors afterwards."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from aicl.action_library import ActionLibrary, Found
from aicl.options import Reference
from aicl.reference_retrieval import Library, load_library
from lvdm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from aicl.pipeline import AICLPipeline
    from aicl.sampling_jobs import Job


def choose_by_verbs(jobs: "list[Job]") -> "list[Job]":
    """The jobs with references from their libraries, each said on the screen; those that need a model stay as they are.

    Raises DataError for a library that is none or has nothing for a prompt, ConfigError for a way that it lacks.
    """
    libraries = {path: _opened(path) for path in {job.library for job in jobs if job.library}}
    return [job if job.library is None else _by_verbs(job, libraries[job.library]) for job in jobs]


def choose_by_model(jobs: "list[Job]", pipe: "AICLPipeline") -> "list[Job]":
    """The jobs that still name a library with references from it. Raises as `ActionLibrary.search` does."""
    waiting = {job.library for job in jobs if job.library}
    if not waiting:
        return jobs
    from aicl.action_embeddings import Embedder

    libraries, embedder = {path: ActionLibrary.open(path) for path in waiting}, Embedder(pipe)
    chosen = []
    for job in jobs:
        if job.library is not None:
            example = None if job.example is None else Path(job.example)
            found = libraries[job.library].search(
                job.prompt,
                clip=example,
                by=job.library_by,
                k=job.num_references,
                embedder=embedder,
                exclude=[example] if example else [],
            )
            job = _with(job, found)
        chosen.append(job)
    return chosen


def _opened(path: str) -> Library | ActionLibrary:
    return ActionLibrary.open(path) if Path(path).is_dir() else load_library(path)


def _by_verbs(job: "Job", library: Library | ActionLibrary) -> "Job":
    if isinstance(library, Library):
        if job.example is not None or job.library_by not in (None, "verbs"):
            raise ConfigError(f"{job.library} holds verbs alone: for another way, make a folder with aicl index")
        rows = library.select(job.prompt, job.num_references, job.seed)
        return _with(
            job,
            [Found(path, caption, 1.0, f"its caption shares '{verb}' with the text") for path, caption, verb in rows],
        )
    if (job.library_by or library.way(job.prompt, job.example)) != "verbs":
        return job
    return _with(job, library.search(job.prompt, by="verbs", k=job.num_references, seed=job.seed))


def _with(job: "Job", found: list[Found]) -> "Job":
    """The job with these references. Raises DataError where they are fewer than it wants."""
    if len(found) < job.num_references:
        raise DataError(
            f"the library has {len(found)} clips for '{job.prompt}' that are not nearly the same, {job.num_references} "
            "are wanted: ask for fewer references or add clips"
        )
    for each in found:
        print(f"reference {each.path} ('{each.caption}'): {each.reason}")
    chosen = [{"video": str(each.path), "caption": each.caption, "reason": each.reason} for each in found]
    references = [Reference(each.path, each.caption) for each in found]
    return dataclasses.replace(job, library=None, library_by=None, example=None, references=references, chosen=chosen)
