"""Finding broken videos before a training does, in parallel, so that it can be interrupted and continued."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from lvdm.data.clips import ClipRecord
from lvdm.data.dataset import ClipConfig
from lvdm.errors import VideoError
from lvdm.files import atomic_path, disk_errors, json_text, make_folder, write_json
from lvdm.video import check_video, frame_indices, probe

Result = dict[str, Any]
_MEASURED = ("frames", "fps", "width", "height")


def check_record(record: ClipRecord, quick: bool = False) -> Result:
    """Decode a video (quick: only its first frame, counting the others) -> what it is, or `error`, why it is broken."""
    result: Result = {"key": record.key, "stamp": _stamp(record.path), "quick": quick, "error": None}
    try:
        info = probe(record.path) if quick else check_video(record.path)
    except VideoError as error:
        return result | {"error": str(error)}
    result |= {"frames": info.num_frames, "fps": info.fps, "width": info.width, "height": info.height}
    return result | {"damaged": info.damaged}


def check_records(
    records: Sequence[ClipRecord],
    report: str | os.PathLike[str],
    workers: int = 1,
    quick: bool = False,
    progress: Callable[[int, int, int], None] = lambda done, total, broken: None,
    clip: ClipConfig | None = None,
) -> Result:
    """Check all videos and write `report` as JSON; return it.

    Results are appended to `report`.jsonl as they come. A later call takes from there what has been checked as
    thoroughly and has not changed since, so an interrupted check goes on and a repeated one sees only new files.
    The report has `checked`, `broken` {key: reason}, `damaged` {key: how many frames decode with errors} of those that
    can be used, `single_frame`, keys of those that trainings on clips leave out (see `read_clip`), and the ranges of
    frames, fps and sizes of the good ones. With `clip`, `short` has the keys of those that are shorter than such clips.
    """
    records = list({record.key: record for record in records}.values())  # a video with several captions is checked once
    journal = Path(f"{report}.jsonl")
    make_folder(journal.parent)
    results = _still_valid(_read_journal(journal), records, quick)
    todo = [record for record in records if record.key not in results]
    broken = sum(1 for result in results.values() if result["error"])
    progress(len(results), len(records), broken)
    with disk_errors(journal, then="then go on with the same command"), open(journal, "a", encoding="utf-8") as file:
        for result in _run(partial(check_record, quick=quick), todo, workers):
            file.write(json_text(result) + "\n")
            file.flush()
            results[result["key"]] = result
            broken += bool(result["error"])
            progress(len(results), len(records), broken)
    summary = _summary([results[record.key] for record in records], quick)
    if clip is not None:
        good = (result for record in records if not (result := results[record.key])["error"])
        summary["short"] = [result["key"] for result in good if _is_short(result, clip)]
    write_json(report, summary)
    return summary


def _run(check: Callable[[ClipRecord], Result], records: Sequence[ClipRecord], workers: int) -> Iterator[Result]:
    """Results in the order of completion; only a few tasks wait at a time, so that an interrupt ends soon."""
    if workers <= 1:
        yield from map(check, records)
        return
    # Not "fork": a child would inherit the locks of this process's threads. The server imports once for all children.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        rest = iter(records)
        running = {pool.submit(check, record) for record in islice(rest, 4 * workers)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(check, record) for record in islice(rest, len(finished))}
            for future in finished:
                yield future.result()


def _stamp(path: Path) -> list[int]:
    """Size and time of change, by which a file is recognised; empty where there is none that may be read."""
    try:
        status = path.stat()
    except OSError:
        return []
    # The right to read a file changes neither of the two.
    return [status.st_size, status.st_mtime_ns] if os.access(path, os.R_OK) else []


def _read_journal(journal: Path) -> dict[str, Result]:
    """Key -> result. Lines that are none are left out: a killed or full run writes half of one."""
    results: dict[str, Result] = {}
    if journal.exists():
        for line in journal.read_bytes().decode("utf-8", "replace").split("\n"):
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_result(result):
                results[result["key"]] = result
        # Start the file anew, so that nothing is appended to half a line.
        with atomic_path(journal) as temporary:
            lines = [json_text(result) + "\n" for result in results.values()]
            temporary.write_text("".join(lines), encoding="utf-8")
    return results


def _is_result(content: Any) -> bool:
    """Whether a line of the journal holds all that `check_record` writes."""
    if not isinstance(content, dict) or not isinstance(content.get("key"), str):
        return False
    if not isinstance(content.get("stamp"), list) or not isinstance(content.get("quick"), bool):
        return False
    if isinstance(content.get("error"), str):
        return True
    return "error" in content and all(type(content.get(name)) in (int, float) for name in _MEASURED)


def _still_valid(results: dict[str, Result], records: Sequence[ClipRecord], quick: bool) -> dict[str, Result]:
    valid = {}
    for record in records:
        result = results.get(record.key)
        if result and result["stamp"] == _stamp(record.path) and (quick or not result["quick"]):
            valid[record.key] = result
    return valid


def _is_short(result: Result, clip: ClipConfig) -> bool:
    """Whether a video is shorter than a clip, so that the rule `data.clip.short` is asked."""
    total, rate = result["frames"], result["fps"]
    try:
        frame_indices(total, clip.num_frames, source_fps=rate, stride=clip.stride, target_fps=clip.fps, short="error")
    except VideoError:
        return True
    return False


def _summary(results: Sequence[Result], quick: bool) -> Result:
    good = [result for result in results if not result["error"]]
    summary: Result = {
        "checked": len(results),
        "quick": quick,
        "broken": {result["key"]: result["error"] for result in results if result["error"]},
    }
    summary["damaged"] = {
        result["key"]: f"{result['damaged']} of {result['frames']} frames decode with errors"
        for result in good
        if isinstance(result.get("damaged"), int) and result["damaged"] > 0
    }
    summary["single_frame"] = [result["key"] for result in good if result["frames"] == 1]
    for name in ("frames", "fps") if good else ():
        values = [result[name] for result in good]
        summary[name] = {"least": min(values), "median": median(values), "most": max(values)}
    sizes = Counter(f"{result['width']}x{result['height']}" for result in good)
    summary["sizes"] = dict(sizes.most_common(20))
    return summary
