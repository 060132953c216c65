"""The queue: tasks are done in the order in which they came, by one worker for each device, and none is lost."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from aicl.sampling_jobs import Job
from lvdm.cli import is_out_of_memory
from lvdm.errors import UserError

MOST_WAITING = 100
_FAILED = "something went wrong on the server, which has kept a note of it: please try again"
_NO_MEMORY = "the server's memory does not suffice for this: ask for fewer references, or another model"

_log = logging.getLogger(__name__)


class State(StrEnum):
    """Where a task is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        """Whether there is something left to do."""
        return self in (State.WAITING, State.RUNNING)


class Cancelled(Exception):
    """Raised where a task that was cancelled reports its progress."""


@dataclass
class Task:
    """Videos that somebody waits for. `done` of `total` steps; times in seconds of the wall clock.

    message: why it failed. warnings: what is to be said of its references.
    """

    id: str
    session: str
    model: str
    job: Job
    total: int
    created: float = field(default_factory=time.time)
    state: State = State.WAITING
    done: int = 0
    started: float | None = None
    ended: float | None = None
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    _cancel: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def steps(self) -> int:
        """The steps that the sampler takes for a video."""
        return self.total // runs(self.job)

    def step(self) -> None:
        """Count one step. Raises Cancelled if nobody waits for the task any more."""
        if self._cancel.is_set():
            raise Cancelled
        self.done += 1

    def cancel(self) -> None:
        """Have the task stop at its next step."""
        self._cancel.set()


def runs(job: Job) -> int:
    """How often a sampler runs for a job: for each video, and for that of the base model beside it."""
    return job.num_samples * (2 if job.compare else 1)


class JobQueue:
    """Tasks in order, and a thread for each of `workers`, which does a task and raises UserError for what cannot be.

    on_end: called with each task that ended, however it ended, while nothing else of the queue changes.
    """

    def __init__(self, workers: Sequence[Callable[[Task], None]], on_end: Callable[[Task], None] | None = None) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._on_end = on_end
        self._seconds_per_step: float | None = None
        self._stopped = False
        self.workers = len(workers)
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"worker {number}", daemon=True)
            for number, worker in enumerate(workers)
        ]

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Interrupt what runs, and take no more; what is not finished stays active."""
        with self._changed:
            self._stopped = True
            for task in self._running:
                task.cancel()
            self._changed.notify_all()

    def join(self, timeout: float) -> None:
        """Wait until all workers ended, at most `timeout` seconds for each."""
        for thread in self._threads:
            thread.join(timeout)

    def add(self, task: Task, prepare: Callable[[], None] = lambda: None) -> None:
        """Put a task at the end, after `prepare` was called, which may raise.

        Raises UserError where its session has a task already, or the queue is full.
        """
        with self._changed:
            if self._stopped:
                raise UserError("the server is about to stop: please try again in a moment")
            if self.of_session(task.session) is not None:
                raise UserError("your last videos are not finished: wait for them, or cancel them")
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} people are waiting already: please come back later")
            prepare()
            self._waiting.append(task)
            self._changed.notify()

    def take_up(self, tasks: Sequence[Task]) -> None:
        """Put tasks of an earlier queue at the end, however many there are: they were taken once."""
        with self._changed:
            for task in tasks:
                task.state = State.WAITING
            self._waiting.extend(tasks)
            self._changed.notify_all()

    def cancel(self, task: Task) -> None:
        """Take a task out, or have it stop at its next step."""
        with self._changed:
            task.cancel()
            if task in self._waiting:
                self._waiting.remove(task)
                self._end(task, State.CANCELLED)

    def of_session(self, session: str) -> Task | None:
        """The task that a session waits for, if there is one."""
        with self._changed:
            return next((task for task in (*self._running, *self._waiting) if task.session == session), None)

    def active(self) -> list[Task]:
        """All tasks that are not finished, in order."""
        with self._changed:
            return [*self._running, *self._waiting]

    def ahead(self, task: Task) -> int:
        """How many tasks will be done before this one begins."""
        with self._changed:
            if task not in self._waiting:
                return 0
            return self._waiting.index(task) + len(self._running)

    def seconds_left(self, task: Task) -> float | None:
        """About how long it will take until a task is finished; None as long as there is nothing to tell it by."""
        with self._changed:
            own = self._remaining(task)
            if task.state is not State.WAITING or own is None:
                return own
            before = (
                [*self._running, *list(self._waiting)[: self._waiting.index(task)]] if task in self._waiting else []
            )
            times = [self._remaining(each) for each in before]
        return None if None in times else own + sum(each for each in times if each is not None) / self.workers

    def _remaining(self, task: Task) -> float | None:
        """Seconds of work that are left of a task, by its own steps or, before these, by those of earlier tasks."""
        if task.started is not None and task.done > 1:
            pace = (time.time() - task.started) / task.done
        elif self._seconds_per_step is not None:
            pace = self._seconds_per_step
        else:
            return None
        return pace * (task.total - task.done)

    def _work(self, worker: Callable[[Task], None]) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                task = self._waiting.popleft()
                task.state, task.started = State.RUNNING, time.time()
                self._running.append(task)
            state, message = self._try(worker, task)
            with self._changed:
                if self._stopped and state is State.CANCELLED:
                    return  # nobody cancelled it: it is done when the server is back
                self._running.remove(task)
                if state is State.DONE and task.started is not None and task.done:
                    self._seconds_per_step = (time.time() - task.started) / task.done
                self._end(task, state, message)

    def _try(self, worker: Callable[[Task], None], task: Task) -> tuple[State, str]:
        """Do a task: how it ended, and what there is to say."""
        try:
            worker(task)
        except Cancelled:
            return State.CANCELLED, ""
        except UserError as error:
            return State.FAILED, str(error)
        except Exception as error:  # whatever it is, the next task must be done
            if is_out_of_memory(error):
                _log.warning("task %s: out of memory: %s", task.id, error)
                return State.FAILED, _NO_MEMORY
            _log.exception("task %s failed", task.id)
            return State.FAILED, _FAILED
        return State.DONE, ""

    def _end(self, task: Task, state: State, message: str = "") -> None:
        task.ended, task.message, task.state = time.time(), message, state
        if self._on_end is not None:
            try:
                self._on_end(task)
            except UserError as error:
                _log.error("%s", error)
