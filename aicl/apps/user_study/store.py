"""Answers in SQLite: many evaluators at once, each answer in a transaction of its own, nothing ever overwritten."""

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar, cast

from aicl.apps.user_study.pairs import Side
from lvdm.errors import DataError, DiskError
from lvdm.files import make_folder

QUESTIONS = {  # the supplement's two measures, and what evaluators are asked for them
    "uscc": "Which video fits the text better?",
    "usfc": "Which video is more consistent from frame to frame?",
}
T = TypeVar("T")

_VERSION = 1
_CODE_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that are read for one another
_SCHEMA = (
    """CREATE TABLE study (fingerprint TEXT NOT NULL, seed INTEGER NOT NULL, ties INTEGER NOT NULL,
    created TEXT NOT NULL)""",
    """CREATE TABLE pairs (number INTEGER PRIMARY KEY, prompt TEXT NOT NULL, "group" TEXT NOT NULL,
    ours TEXT NOT NULL, baseline TEXT NOT NULL, ours_sha256 TEXT NOT NULL, baseline_sha256 TEXT NOT NULL)""",
    """CREATE TABLE evaluators (number INTEGER PRIMARY KEY AUTOINCREMENT, code TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL)""",
    """CREATE TABLE answers (evaluator INTEGER NOT NULL REFERENCES evaluators, pair INTEGER NOT NULL REFERENCES pairs,
    question TEXT NOT NULL, choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')),
    ours TEXT NOT NULL CHECK (ours IN ('left', 'right')), time TEXT NOT NULL,
    PRIMARY KEY (evaluator, pair, question))""",
    """CREATE TABLE history (evaluator INTEGER NOT NULL, pair INTEGER NOT NULL, question TEXT NOT NULL,
    choice TEXT NOT NULL, ours TEXT NOT NULL, time TEXT NOT NULL)""",
    """CREATE TRIGGER keep_history BEFORE UPDATE ON answers BEGIN
    INSERT INTO history SELECT old.evaluator, old.pair, old.question, old.choice, old.ours, old.time; END""",
)


@dataclass(frozen=True)
class StoredPair:
    """A pair of the study: where its videos were, and the SHA-256 of each."""

    number: int
    prompt: str
    group: str
    ours: str
    baseline: str
    ours_sha256: str
    baseline_sha256: str


@dataclass(frozen=True)
class Settings:
    """`fingerprint` stands for all pairs, `seed` for the plan; `ties`: whether "no difference" can be chosen."""

    fingerprint: str
    seed: int
    ties: bool
    created: str


@dataclass(frozen=True)
class Evaluator:
    """Someone who takes part; `code` is what lets them go on later."""

    number: int
    code: str
    created: str


@dataclass(frozen=True)
class Answer:
    """What was chosen on the screen, and the side on which our video was."""

    evaluator: int
    pair: int
    question: str
    choice: str
    ours: Side
    time: str

    @property
    def preferred(self) -> str:
        """ "ours", "baseline" or "tie"."""
        return "tie" if self.choice == "tie" else "ours" if self.choice == self.ours else "baseline"


class Store:
    """The database of one study; safe to share between threads and processes. Raises DataError if it is none."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.exists(path):
            raise DataError(f"{self.path}: is no study database; start the study with its pairs first")
        with self._connect() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version != _VERSION:
                raise DataError(f"{self.path}: has version {version}, but this program knows {_VERSION}; update it")
            row = database.execute("SELECT * FROM study").fetchone()
            self.settings = Settings(row["fingerprint"], row["seed"], bool(row["ties"]), row["created"])
            self.pairs = [StoredPair(**row) for row in database.execute("SELECT * FROM pairs ORDER BY number")]

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether `path` holds a study; raises DataError where it holds something else."""
        if not Path(path).is_file():
            return False
        with _connection(path) as database:
            tables = {row["name"] for row in database.execute("SELECT name FROM sqlite_master")}
        if tables and "study" not in tables:
            raise DataError(f"{path}: is the database of something else; give another folder")
        return bool(tables)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], pairs: Sequence[StoredPair], *, fingerprint: str, seed: int, ties: bool
    ) -> "Store":
        """Start a study, wholly or not at all. Raises DataError if one is there."""
        if cls.exists(path):
            raise DataError(f"{path}: holds a study already; open it, or give another folder")
        make_folder(Path(path).parent)
        with _connection(path) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                database.execute(statement)
            database.execute("INSERT INTO study VALUES (?, ?, ?, ?)", (fingerprint, seed, ties, _now()))
            names = [field.name for field in fields(StoredPair)]
            database.executemany(
                f"INSERT INTO pairs VALUES ({', '.join('?' * len(names))})",
                [[getattr(pair, name) for name in names] for pair in pairs],
            )
            database.execute(f"PRAGMA user_version = {_VERSION}")
            database.execute("COMMIT")
        return cls(path)

    def add_evaluator(self) -> Evaluator:
        """Someone new, with the next number and a code that cannot be guessed."""
        code, created = "".join(secrets.choice(_CODE_LETTERS) for _ in range(10)), _now()
        with self._connect() as database:
            row = database.execute("INSERT INTO evaluators (code, created) VALUES (?, ?)", (code, created))
            return Evaluator(cast(int, row.lastrowid), code, created)  # an INSERT has one

    def find_evaluator(self, code: str) -> Evaluator | None:
        """Who has this code, in any case and with spaces around it; None for nobody."""
        with self._connect() as database:
            row = database.execute("SELECT * FROM evaluators WHERE code = ?", (code.strip().lower(),)).fetchone()
        return Evaluator(**row) if row else None

    def save(self, evaluator: int, pair: int, question: str, choice: str, ours: Side) -> None:
        """Keep an answer; it is on the disk when this returns. Another choice replaces it, with the old in `history`.

        Raises DataError for an evaluator, pair, question or choice that the study doesn't have.
        """
        if question not in QUESTIONS or (choice == "tie" and not self.settings.ties):
            raise DataError(f"the study has no question {question!r} with the answer {choice!r}")
        try:
            with self._connect() as database:
                database.execute(
                    """INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)
                    ON CONFLICT DO UPDATE SET choice = excluded.choice, ours = excluded.ours, time = excluded.time
                    WHERE choice != excluded.choice""",
                    (evaluator, pair, question, choice, ours, _now()),
                )
        except sqlite3.IntegrityError as error:
            raise DataError(f"no such answer: evaluator {evaluator}, pair {pair}, {choice!r} ({error})") from error

    def choices(self, evaluator: int) -> dict[tuple[int, str], str]:
        """What an evaluator has answered so far: (pair, question) -> choice."""
        with self._connect() as database:
            rows = database.execute("SELECT pair, question, choice FROM answers WHERE evaluator = ?", (evaluator,))
            return {(row["pair"], row["question"]): row["choice"] for row in rows}

    def answers(self) -> list[Answer]:
        """Everyone's present answers."""
        return self._all(Answer, "SELECT * FROM answers ORDER BY evaluator, pair, question")

    def history(self) -> list[Answer]:
        """Answers that were changed later, oldest first."""
        return self._all(Answer, "SELECT * FROM history ORDER BY rowid")

    def evaluators(self) -> list[Evaluator]:
        """Everyone who ever joined, by number."""
        return self._all(Evaluator, "SELECT * FROM evaluators ORDER BY number")

    def _all(self, kind: type[T], query: str) -> list[T]:
        with self._connect() as database:
            return [kind(**row) for row in database.execute(query)]

    def _connect(self) -> AbstractContextManager[sqlite3.Connection]:
        return _connection(self.path)


@contextmanager
def _connection(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A connection in which each statement is a transaction, unless BEGIN opens one; what is open at an error is lost.

    `synchronous = FULL`: in WAL mode the default keeps the file whole, but may lose the last answers to a power cut.
    Raises DiskError where the file cannot be read or written, DataError where it is no database or a damaged one.
    """
    try:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA foreign_keys = ON")
            database.execute("PRAGMA synchronous = FULL")
            yield database
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as error:
        raise DiskError(f"{path}: cannot be used ({error}); make room or see to the disk, then go on") from error
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path}: is no study database, or a damaged one ({error}); give another folder") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
