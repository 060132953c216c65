"""What the page asks for: models, references, tasks and results, each of one session."""

import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aicl.apps.web_demo import outputs, uploads
from aicl.apps.web_demo.jobs import JobQueue, State, Task, runs
from aicl.apps.web_demo.models import ModelCard, example_clips
from aicl.apps.web_demo.previews import Preview, preview
from aicl.apps.web_demo.sessions import Session, Sessions, Slot
from aicl.reference_retrieval import Library
from aicl.sampling_jobs import Job
from lvdm.errors import ConfigError, DataError, UserError
from lvdm.files import disk_errors, make_folder
from lvdm.video import read_frames

MOST_STEPS = 100
MOST_SAMPLES = 4
MOST_PROMPT = 500  # characters
MOST_GALLERY = 24  # clips that are shown at once
_CLEANING_SECONDS = 600.0


@dataclass(frozen=True)
class Limits:
    """How much is kept, and for how long."""

    keep_hours: float = 24.0
    most_gigabytes: float = 5.0


@dataclass(frozen=True)
class Settings:
    """The settings of the page. None: what the model's own default is."""

    num_samples: int = 1
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    reference_guidance_scale: float | None = None
    scale: float = 1.0
    first_reference_until: float | None = None


class Service:
    """Everything behind the page.

    cards: the models, the first one is chosen at the beginning. root: where files are kept. workers: what makes the
    tasks' videos, one for each device. library: clips to choose from for all models, in place of each model's own.
    """

    def __init__(
        self,
        cards: Sequence[ModelCard],
        root: Path,
        workers: Sequence[Callable[[Task], None]],
        library: Library | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.cards, self.root, self.limits = list(cards), root, limits or Limits()
        self.sessions = Sessions(make_folder(root / "sessions"))
        self.libraries = [library or example_clips(card.name) for card in self.cards]
        self.queue = JobQueue(workers, on_end=self._keep)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Take up what was not finished when the server stopped, and begin to work."""
        known = {task.id for task in self.queue.active()}
        left = [
            task
            for folder in self.sessions.folder.iterdir()
            for task in outputs.saved_tasks(folder / "results")
            if task.state.active and task.id not in known
        ]
        self.queue.take_up(sorted(left, key=lambda each: each.created))
        self.queue.start()
        threading.Thread(target=self._clean_regularly, daemon=True, name="cleaning").start()

    def stop(self) -> None:
        """Interrupt what runs; it is done when the service starts again."""
        self._stopped.set()
        self.queue.stop()
        self.queue.join(timeout=10)

    def card(self, name: str | None) -> ModelCard:
        """The model of that name. Raises ConfigError."""
        return self.cards[self.number(name)]

    def number(self, name: str | None) -> int:
        """The number of a model in `cards`. Raises ConfigError."""
        for number, card in enumerate(self.cards):
            if card.name == name:
                return number
        raise ConfigError("this model is not served here: reload the page")

    def submit(self, session: Session, model: str | None, prompt: str | None, settings: Settings) -> Task:
        """Put a generation into the queue. Raises UserError for what cannot be made."""
        card, prompt = self.card(model), (prompt or "").strip()
        if len(prompt) > MOST_PROMPT:
            raise ConfigError(f"the prompt has {len(prompt)} characters: at most {MOST_PROMPT} are taken")
        steps = settings.num_inference_steps or card.defaults.num_inference_steps
        _check_range("the number of seeds", settings.num_samples, 1, MOST_SAMPLES)
        _check_range("the number of steps", steps, 1, MOST_STEPS)
        references = [slot.reference() for slot in session.slots] if card.reads_references else []
        image = session.image if card.takes_image else None
        if card.takes_image and image is None:
            raise ConfigError("this model begins with an image: give it one")
        several = len(references) > 1
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": settings.guidance_scale,
            "scale": settings.scale if references else 1.0,
            "reference_guidance_scale": settings.reference_guidance_scale if references else None,
            "first_reference_until": settings.first_reference_until if several else None,
        }
        id = secrets.token_hex(6)
        folder = outputs.task_folder(session.results, id)
        job = Job(
            prompt=prompt,
            references=references,
            image=str(image[0]) if image else None,
            seed=settings.seed,
            num_samples=settings.num_samples,
            out=str(folder / outputs.VIDEO),
            compare=bool(references),
            **options,
        )
        task = Task(id, session.key, card.name, job, total=card.steps_taken(steps) * runs(job))

        def keep() -> None:
            outputs.save_task(make_folder(folder), task)
            session.show(id)

        self.queue.add(task, keep)
        return task

    def cancel(self, session: Session) -> None:
        """Stop what a session waits for, if there is something."""
        task = self.queue.of_session(session.key)
        if task is not None:
            self.queue.cancel(task)

    def shown(self, session: Session) -> Task | None:
        """The task whose state and results a session sees."""
        task = self.queue.of_session(session.key)
        if task is not None:
            return task
        try:
            return outputs.read_task(outputs.task_folder(session.results, session.shown)) if session.shown else None
        except UserError:
            return None

    def history(self, session: Session) -> list[Task]:
        """The finished tasks of a session, the newest first."""
        return [task for task in outputs.saved_tasks(session.results) if task.state is State.DONE]

    def show(self, session: Session, id: str) -> None:
        """Have an earlier result on a session's page. Raises DataError for one that is not there."""
        if not any(task.id == id for task in self.history(session)):
            raise DataError("this result is not kept any more")
        session.show(id)

    def result_file(self, session: Session, id: str, name: str) -> Path:
        """A file of one of a session's tasks. Raises DataError for any other."""
        path = outputs.task_folder(session.results, id) / name
        if not path.is_file():
            raise DataError("there is no such file")
        return path

    def reference_preview(self, session: Session, id: str, model: int) -> Preview:
        """What a model reads of a reference. Raises DataError for a reference or a model that is not there."""
        slot = next((slot for slot in session.slots if slot.id == id), None)
        if slot is None or not 0 <= model < len(self.cards):
            raise DataError("there is no such reference")
        own = session.uploads in Path(slot.path).parents
        return preview(Path(slot.path), self.cards[model], session.previews if own else self.root / "examples")

    def example_preview(self, model: int, number: int) -> Preview:
        """What a model reads of an example clip. Raises DataError for one that is not offered."""
        if not 0 <= model < len(self.cards) or number not in self.gallery(model):
            raise DataError("there is no such example")
        library = self.libraries[model]
        assert library is not None
        return preview(library.paths[number], self.cards[model], self.root / "examples")

    def gallery(self, model: int) -> list[int]:
        """The numbers of the clips that are offered: one of each action first."""
        library = self.libraries[model]
        if library is None:
            return []
        first: dict[str, int] = {}
        for number, actions in enumerate(library.index.verbs):
            first.setdefault(next(iter(actions), ""), number)
        rest = [number for number in range(len(library.paths)) if number not in first.values()]
        return [*first.values(), *rest][:MOST_GALLERY]

    def add_example(self, session: Session, model: int, number: int) -> None:
        """Take an example clip as a reference. Raises DataError."""
        library = self._library(model)
        if number not in self.gallery(model):
            raise DataError("there is no such example")
        actions = ", ".join(library.index.verbs[number])
        session.add([self._slot(library, number, f"you picked it; its caption names '{actions}'")])

    def take_frame(self, session: Session, model: int, number: int) -> None:
        """Take the first frame of an example clip as the image. Raises DataError for a clip that is not offered."""
        library = self._library(model)
        if number not in self.gallery(model):
            raise DataError("there is no such example")
        frame = read_frames(library.paths[number], [0])[0]
        place, _ = uploads.reserve(session, "")
        with disk_errors(place.parent), place.open("wb") as file:
            Image.fromarray(frame.numpy()).save(file, format="PNG")
        uploads.accept_image(session, place, library.index.captions[number])

    def retrieve(self, session: Session, model: int, caption: str, called: str) -> None:
        """Choose one more reference that shares an action with a caption (eq. 8), which the reason calls `called`.

        Raises DataError where there is none.
        """
        library = self._library(model)
        taken = {slot.path for slot in session.slots}
        known = [number for number, path in enumerate(library.paths) if str(path) in taken]
        [found] = library.index.select(caption, 1, seed=len(known), exclude=known)
        session.add([self._slot(library, found.index, f"its caption shares '{found.action}' with {called}")])

    def _library(self, model: int) -> Library:
        library = self.libraries[model] if 0 <= model < len(self.cards) else None
        if library is None:
            raise DataError("there are no example clips for this model: upload your own")
        return library

    def _slot(self, library: Library, number: int, reason: str) -> Slot:
        path = library.paths[number]
        return Slot(secrets.token_hex(8), str(path), path.name, reason, library.index.captions[number])

    def _keep(self, task: Task) -> None:
        """A task ended: write down how."""
        folder = self.sessions.folder / task.session / "results" / task.id
        outputs.save_task(folder, task)

    def _clean_regularly(self) -> None:
        while not self._stopped.wait(_CLEANING_SECONDS):
            self.clean()

    def clean(self) -> None:
        """Remove what is too old or too much; nothing of a session that waits for something."""
        busy = {task.session for task in self.queue.active()}
        most = int(self.limits.most_gigabytes * 2**30)
        for key in outputs.clean(self.sessions.folder, 3600 * self.limits.keep_hours, most, busy):
            self.sessions.forget(key)


def _check_range(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{what} is {value}: it must be from {least} to {most}")
