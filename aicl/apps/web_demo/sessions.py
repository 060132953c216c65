"""What each visitor put together: their references, their image and their results. Kept on the disk, so that neither a
reload of the page nor a restart of the server loses it."""

import hashlib
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from aicl.options import Reference
from lvdm import config as configs
from lvdm.errors import DataError, UserError
from lvdm.files import write_json
from lvdm.outside import read_object

MOST_REFERENCES = 4
TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
_FILE = "session.json"
_MOST_IN_MEMORY = 1000


@dataclass
class Slot:
    """A reference that was chosen. name: what the page calls it. reason: why it is here. caption None: the prompt."""

    id: str
    path: str
    name: str
    reason: str
    caption: str | None = None

    def reference(self) -> Reference:
        """As the pipeline takes it."""
        return Reference(self.path, self.caption)


@dataclass
class Choices:
    """What is kept of a session. image: a first frame, and what its file was called."""

    slots: list[Slot] = field(default_factory=list)
    image: str | None = None
    image_name: str = ""
    shown: str | None = None  # the task whose results are on the page


class Session:
    """A visitor's choices and folder. Each change is on the disk when its method returns."""

    def __init__(self, key: str, folder: Path) -> None:
        self.key, self.folder = key, folder
        self._lock = threading.RLock()
        self._choices = Choices()
        if (folder / _FILE).is_file():
            try:
                content = read_object(folder / _FILE, DataError)
                self._choices = configs.from_mapping(Choices, content, where=str(folder / _FILE))
            except UserError:  # damaged: the visitor chooses anew
                self._choices = Choices()

    @property
    def uploads(self) -> Path:
        """Where the visitor's files lie."""
        return self.folder / "uploads"

    @property
    def previews(self) -> Path:
        """Where what is shown of them lies."""
        return self.folder / "previews"

    @property
    def results(self) -> Path:
        """Where their videos lie, a folder for each task."""
        return self.folder / "results"

    @property
    def slots(self) -> list[Slot]:
        """The references whose files are still there, in order."""
        with self._lock:
            return [slot for slot in self._choices.slots if Path(slot.path).is_file()]

    @property
    def image(self) -> tuple[Path, str] | None:
        """The first frame for image-to-video models and its name, if one was given."""
        with self._lock:
            path = self._choices.image
            return (Path(path), self._choices.image_name) if path and Path(path).is_file() else None

    @property
    def shown(self) -> str | None:
        """The task whose results are on the page."""
        with self._lock:
            return self._choices.shown

    def add(self, slots: list[Slot]) -> None:
        """Add references. Raises DataError where there are too many, or one is there already."""
        with self._lock:
            known = self.slots
            for slot in slots:
                if any(slot.path == other.path for other in known):
                    raise DataError(f"{slot.name} is among your references already")
            if len(known) + len(slots) > MOST_REFERENCES:
                raise DataError(f"at most {MOST_REFERENCES} references are read at once: remove one first")
            self._choices.slots = [*known, *slots]
            self._save()

    def remove(self, id: str) -> None:
        """Take a reference out. Raises DataError for one that is not there, as `put_first` and `caption` do."""
        with self._lock:
            slot = self._slot(id)
            self._choices.slots = [each for each in self.slots if each.id != slot.id]
            self._save()

    def put_first(self, id: str) -> None:
        """Make a reference the first one."""
        with self._lock:
            slot = self._slot(id)
            self._choices.slots = [slot, *(each for each in self.slots if each.id != slot.id)]
            self._save()

    def caption(self, id: str, text: str) -> None:
        """Say what a reference shows; an empty text means the prompt."""
        with self._lock:
            self._slot(id).caption = text.strip() or None
            self._save()

    def set_image(self, path: Path | None, name: str = "") -> None:
        """Take another first frame, or none."""
        with self._lock:
            self._choices.image, self._choices.image_name = None if path is None else str(path), name
            self._save()

    def show(self, task: str) -> None:
        """Have a task's results on the page."""
        with self._lock:
            self._choices.shown = task
            self._save()

    def _slot(self, id: str) -> Slot:
        for slot in self._choices.slots:
            if slot.id == id:
                return slot
        raise DataError("this reference is not on your page any more: reload it")

    def _save(self) -> None:
        write_json(self.folder / _FILE, configs.to_mapping(self._choices))


class Sessions:
    """All sessions in a folder, each under a hash of the token that a visitor's browser keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Session] = OrderedDict()

    def of(self, token: str | None) -> Session:
        """The session of a token. Raises DataError for what is no token: the page has to be opened first."""
        if token is None or not TOKEN.fullmatch(token):
            raise DataError("this browser keeps no session: allow cookies for this page, then reload it")
        key = hashlib.sha256(token.encode()).hexdigest()[:24]
        with self._lock:
            session = self._known.pop(key, None) or Session(key, self.folder / key)
            self._known[key] = session
            while len(self._known) > _MOST_IN_MEMORY:
                self._known.popitem(last=False)
        return session

    def forget(self, key: str) -> None:
        """Drop what is in memory of a session whose folder was removed."""
        with self._lock:
            self._known.pop(key, None)
