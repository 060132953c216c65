"""Killing real processes, at moments that are drawn from a seed, and comparing with what was never killed.

A process is forked from a server that has everything imported, works as `tests.soak.work` says, and is killed with
signal 9: nothing of it can clean up. Then it is started again, until it ends by itself.
"""

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lvdm.errors import CheckpointError
from lvdm.files import LOCK_FILE
from lvdm.hashing import check_sums, files_hash
from lvdm.training.checkpoints import check_checkpoint, list_checkpoints
from tests import processes
from tests.aicl.study_samples import write_pairs
from tests.aicl.test_pipeline import tiny_pipeline
from tests.lvdm.training_runs import MODEL, losses, make_clips, tiny_config
from tests.soak import work

PATIENCE_S = 120  # before a process that should end, or come on, counts as hanging


@dataclass
class Figures:
    """What was done: kills by kind, by what was going on, and how often a checkpoint was damaged on purpose."""

    kills: Counter = field(default_factory=Counter)
    moments: Counter = field(default_factory=Counter)
    damaged: int = 0
    disks: int | None = None  # how often a disk that was full or read-only stopped something; None: no disk was made
    rounds: Counter = field(default_factory=Counter)
    seconds: float = 0.0


class Killer:
    """Runs work in processes and kills them; `figures` counts."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder, self.random, self.figures = folder, random.Random(seed), Figures()
        self._damaged: set[Path] = set()
        self.clips = make_clips(folder / "clips")

    def start(self, target: Callable, *arguments: Any) -> Any:
        return processes.start(target, *arguments, log=self.folder / "log")

    def complete(self, target: Callable, *arguments: Any) -> None:
        """Let work end by itself."""
        process = self.start(target, *arguments)
        process.join(PATIENCE_S)
        assert process.exitcode == 0, f"{target.__name__} ended with {process.exitcode}"

    def kill_when(self, process: Any, kind: str, moment: str, ready: Callable[[], bool], most_s: float) -> bool:
        """Kill once `ready`, and up to `most_s` seconds later; False if the work had ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while process.is_alive() and not ready():
            assert time.monotonic() < deadline, f"{kind} hangs"
            time.sleep(0.002)
        process.join(self.random.uniform(0, most_s))
        if process.exitcode is not None:
            assert process.exitcode == 0, f"{kind} ended with {process.exitcode}"
            return False
        process.kill()
        process.join()
        if process.exitcode == 0:  # it ended while it was to be killed
            return False
        assert process.exitcode == -signal.SIGKILL
        self.figures.kills[kind] += 1
        self.figures.moments[f"{kind}: {moment}"] += 1
        return True

    def trainings(self, kills: int, steps: int = 40) -> None:
        """Kill trainings and continue them with --resume auto; their losses must be those of one that was not."""
        config = self.config("whole", steps)
        self.complete(work.train_run, config)
        expected = losses(self.folder / "runs/whole")
        assert len(expected) == steps
        while self.figures.kills["training"] < kills:
            name = f"killed_{self.figures.rounds['training']}"
            self.figures.rounds["training"] += 1
            self._kill_one(self.config(name, steps), self.folder / "runs" / name, kills)
            assert losses(self.folder / "runs" / name) == expected, f"{name} learned something else"
            assert not (self.folder / "runs" / name / LOCK_FILE).exists()
            shutil.rmtree(self.folder / "runs" / name)

    def config(self, name: str, steps: int) -> dict[str, Any]:
        """Of a training that takes some seconds, in the folder `runs`."""
        training = {"steps": steps, "checkpoint_every": 4, "keep": 3, "ema": 0.9, "gradient_accumulation_steps": 2}
        data = {"path": str(self.clips), "workers": self.figures.rounds["training"] % 2}
        return tiny_config(
            self.folder, "autoencoder", run={"name": name}, model={"config": MODEL}, training=training, data=data
        )

    def _kill_one(self, config: dict[str, Any], run: Path, kills: int) -> None:
        while True:
            process, before = self.start(work.train_run, config), max(losses(run), default=0)
            further = self.random.randint(1, 12)
            moments: dict[str, tuple[Callable[[], bool], float]] = {
                "starting": (lambda: True, 2.0),
                "between steps": (lambda: max(losses(run), default=0) >= before + further, 0.05),  # noqa: B023
                "writing a checkpoint": (lambda: any(run.glob("checkpoints/.writing_*")), 0.02),
            }
            moment = self.random.choice([*moments, *list(moments)[1:]])
            if self.figures.kills["training"] >= kills:
                process.join(PATIENCE_S)
                assert process.exitcode == 0, f"training ended with {process.exitcode}"
                return
            if not self.kill_when(process, "training", moment, *moments[moment]):
                return
            found = list_checkpoints(run / "checkpoints")
            for checkpoint in found:
                self._check(checkpoint)
            if len(found) > 1 and self.random.random() < 0.15:
                self._damage(found[-1])

    def _check(self, checkpoint: Path) -> None:
        """No checkpoint is ever half there, but for those that were damaged here and not yet put aside."""
        try:
            check_checkpoint(checkpoint)
        except CheckpointError:
            assert checkpoint in self._damaged, f"{checkpoint} is half there"

    def _damage(self, checkpoint: Path) -> None:
        """As a power cut leaves a file: its end, or all of it, is NUL bytes."""
        path = self.random.choice([checkpoint / "state.ckpt", checkpoint / "progress.json"])
        size = path.stat().st_size
        kept = self.random.choice([0, size // 2])
        path.write_bytes(path.read_bytes()[:kept] + b"\0" * (size - kept))
        self._damaged.add(checkpoint)
        self.figures.damaged += 1

    def caches(self, kills: int) -> None:
        """Kill the filling of a latent cache; what is there in the end must be what an unkilled one holds."""
        whole = self.folder / "cache"
        self.complete(work.fill_cache, str(whole), str(self.clips))
        count = len(list(whole.rglob("*.safetensors")))

        def same(folder: Path) -> None:
            entries = {path.relative_to(whole) for path in whole.rglob("*.safetensors")}
            for entry in entries:
                ours, theirs = load_file(folder / entry), load_file(whole / entry)
                assert all((ours[name] == theirs[name]).all() for name in theirs), f"{entry} differs"

        def entries(folder: Path) -> int:
            return sum(1 for path in folder.rglob("*.safetensors") if not path.name.startswith("."))

        self._repeat("caching", kills, work.fill_cache, [str(self.clips)], entries, count, same)

    def checks(self, kills: int) -> None:
        """Kill the checking of a data set; the report in the end must be that of an unkilled one."""
        clips = make_clips(self.folder / "many", 40)
        whole = self.folder / "report/report.json"
        self.complete(work.check_clips, str(whole), str(clips))

        def lines(folder: Path) -> int:
            journal = folder / "report.json.jsonl"
            return journal.read_bytes().count(b"\n") if journal.exists() else 0

        def same(folder: Path) -> None:
            assert json.loads((folder / "report.json").read_text()) == json.loads(whole.read_text())

        self._repeat("checking", kills, work.check_clips, [str(clips)], lines, 40, same, file="report.json")

    def _repeat(
        self,
        kind: str,
        kills: int,
        target: Callable,
        arguments: list[str],
        count: Callable[[Path], int],
        total: int,
        same: Callable[[Path], None],
        file: str = "",
    ) -> None:
        """Start `target`(place, arguments) and kill it after some more of its `total` results, until it ends itself."""
        while self.figures.kills[kind] < kills:
            folder = self.folder / f"{kind}_{self.figures.rounds[kind]}"
            self.figures.rounds[kind] += 1
            while self.figures.kills[kind] < kills:
                process = self.start(target, str(folder / file), *arguments)
                wanted = count(folder) + self.random.randint(0, max(1, total // 4))
                if not self.kill_when(process, kind, "at work", lambda: count(folder) >= wanted, 0.02):  # noqa: B023
                    break
            self.complete(target, str(folder / file), *arguments)
            same(folder)
            shutil.rmtree(folder)

    def exports(self, kills: int) -> None:
        """Kill exports; a model folder is whole or not there, and nothing of the killed ones stays in the end."""
        model = self.folder / "model"
        tiny_pipeline().save_pretrained(model)
        adapter = str(next(model.glob("adapter*.safetensors")))
        place = self.folder / "exports"
        place.mkdir()
        out = place / "out"
        self.complete(work.export_model, str(out), str(model / "base"), adapter)
        expected = files_hash(out)
        shutil.rmtree(out)
        while self.figures.kills["export"] < kills:
            process = self.start(work.export_model, str(out), str(model / "base"), adapter)
            moment = self.random.choice(["loading", "writing"])
            ready = (lambda: True) if moment == "loading" else (lambda: any(place.iterdir()))
            killed = self.kill_when(process, "export", moment, ready, 0.8 if moment == "loading" else 0.05)
            if out.exists():
                check_sums(out)
                assert files_hash(out) == expected
                shutil.rmtree(out)
            assert killed or not list(place.iterdir())
        self.figures.rounds["export"] = 1
        self.complete(work.export_model, str(out), str(model / "base"), adapter)
        assert [path.name for path in place.iterdir()] == ["out"] and files_hash(out) == expected

    def studies(self, kills: int) -> None:
        """Kill a user study that is being answered; no answer that it accepted is lost."""
        manifest, folder = write_pairs(self.folder / "study", 4), self.folder / "study/kept"
        accepted = self.folder / "study/accepted.jsonl"
        self.figures.rounds["user study"] = 1
        while self.figures.kills["user study"] < kills:
            before = _lines(accepted)
            further = self.random.randint(0, 30)
            process = self.start(work.answer_study, str(folder), str(manifest), str(accepted))
            ready = lambda: _lines(accepted) >= before + further  # noqa: B023, E731
            self.kill_when(process, "user study", "answering" if further else "starting", ready, 0.3)
            kept = work.kept_answers(str(folder)) if (folder / "study.sqlite").exists() else None
            last = {tuple(given[:3]): given[3] for given in _complete_lines(accepted)}
            wrong = [key for key, choice in last.items() if kept is None or kept(*key) != choice]
            assert all(kept is not None and kept(*key) for key in wrong), f"answers were lost: {wrong}"
            # Of each killed evaluator's answers one may have been kept that was not yet reported, in place of an older.
            assert max(Counter(code for code, _, _ in wrong).values(), default=0) <= 1, f"answers were lost: {wrong}"


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _complete_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []
