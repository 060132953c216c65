"""A plain folder of videos with captions: one CSV or JSONL file for all, or a .txt file beside each video."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from lvdm.data.clips import ClipRecord
from lvdm.data.manifest_rows import MANIFEST_ENDINGS, read_rows
from lvdm.errors import DataError
from lvdm.outside import check_text, checked_path, read_text
from lvdm.video import VIDEO_ENDINGS

log = logging.getLogger(__name__)

OnMissing = Literal["error", "skip"]
MANIFEST = "captions.csv"


class MissingCaption(DataError):
    """A video without a caption, where each needs one."""


def read_folder(
    root: str | os.PathLike[str],
    captions: str | os.PathLike[str] | None = None,
    default_caption: str | None = None,
    on_missing_caption: OnMissing = "error",
) -> list[ClipRecord]:
    """The captioned videos below `root`.

    With `captions`: the rows of a .csv (with a header) or .jsonl file, in its order: `file` (relative to `root`),
    `caption` and optionally `label`. Without it: those of captions.csv in `root`, as aicl make-puppets writes it;
    where there is none, every video file that is not hidden, sorted, each with its caption in a .txt file of the same
    name. A file that is listed with several captions gives a record for each, all with the same key.
    default_caption: of videos that have none; None leaves on_missing_caption to say whether that is an error or they
    are left out, which is said with their number.
    Raises DataError for a missing folder, file, caption or column.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; give a folder of videos")
    if captions is None and (root / MANIFEST).is_file():
        captions = root / MANIFEST
    skip = on_missing_caption == "skip"
    found = list(
        _listed(root, Path(captions), default_caption, skip) if captions else _beside(root, default_caption, skip)
    )
    records = [record for record in found if record is not None]
    if found and not records:
        raise DataError(
            f"{captions or root}: none of its {len(found)} videos has a caption; write some, each to a .txt file "
            f"beside its video, or all to {MANIFEST} with the columns file and caption"
        )
    if missing := len(found) - len(records):
        log.warning("%d of %d videos have no caption and are left out, in %s", missing, len(found), captions or root)
    if not records:
        raise DataError(f"{captions or root}: lists no videos; known endings are {', '.join(VIDEO_ENDINGS)}")
    return records


def video_files(root: str | os.PathLike[str]) -> list[Path]:
    """All video files below `root`, sorted, also those in folders that are linked to; hidden ones, and those in hidden
    folders, are left out, and with a warning links that lead to no file.

    Raises DataError where a folder cannot be read.
    """
    found: list[Path] = []
    lost: list[Path] = []
    for name, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        folder = Path(name)
        # a system's own files begin with a dot (._a.mp4, .Trash)
        folders[:] = [each for each in folders if not each.startswith(".") and not _leads_back(folder / each)]
        paths = (folder / each for each in files if not each.startswith("."))
        for path in (each for each in paths if each.suffix.lower() in VIDEO_ENDINGS):
            (lost if path.is_symlink() and not path.exists() else found).append(path)
    if lost:
        log.warning("links to videos that lead to no file are left out: %d, such as %s", len(lost), min(lost))
    return sorted(path for path in found if path.is_file())


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror}); give yourself the right to, or move it away")


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in, in which a walk would never end."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.parents}


def _beside(root: Path, default_caption: str | None, skip: bool) -> Iterator[ClipRecord | None]:
    """The videos with texts beside them; None in place of one without a caption, if these are skipped."""
    texts: dict[Path, dict[str, Path]] = {}  # folder -> name without its ending -> text file
    missing: list[Path] = []
    files = video_files(root)
    for file in files:
        if file.parent not in texts:
            found = (path for path in sorted(file.parent.iterdir()) if path.suffix.lower() == ".txt")
            known = texts[file.parent] = {}
            for path in found:
                known.setdefault(normalize("NFC", path.stem), path)
                known[path.stem] = path
        text = texts[file.parent].get(file.stem) or texts[file.parent].get(normalize("NFC", file.stem))
        caption = check_text(read_text(text, DataError).strip(), text, DataError) if text else None
        caption = caption or default_caption
        if caption is None:
            missing.append(file)
            if skip:
                yield None
        else:
            yield ClipRecord(file, caption, key=file.relative_to(root).as_posix())
    if missing and not skip:
        first = missing[0]
        others = f" (nor have {len(missing) - 1} others of {len(files)} videos)" if len(missing) > 1 else ""
        raise MissingCaption(f"{first}: has no caption{others}; write it to {first.with_suffix('.txt').name} beside it")


def _listed(root: Path, manifest: Path, default_caption: str | None, skip: bool) -> Iterator[ClipRecord | None]:
    """The rows of a manifest; None in place of one without a caption, if these are skipped."""
    if manifest.suffix.lower() not in MANIFEST_ENDINGS:
        raise DataError(f"{manifest}: is neither .csv nor .jsonl; give captions in one of these")
    columns = ("file",) if default_caption is not None else ("file", "caption")
    for line, row in read_rows(manifest, columns):
        where = f"{manifest}: line {line}"
        file, caption, label = (_text(row.get(name), f"{where}: '{name}'") for name in ("file", "caption", "label"))
        shown = caption or default_caption
        if file and shown is None and skip:
            yield None
            continue
        if not file or shown is None:
            raise DataError(f"{where} has no '{'caption' if file else 'file'}'; each needs file and caption")
        file = _as_on_disk(root, checked_path(file, DataError))
        path = root / file
        if not path.is_file():
            raise DataError(f"{where} names {file}, which is not in {root}")
        yield ClipRecord(path, shown, label or None, Path(os.path.normpath(file)).as_posix())


def _as_on_disk(root: Path, file: Path) -> str:
    """The name of a file, where there is one only of the same letters in another form of Unicode that one: an accent is
    a character of its own in names from a Mac."""
    name = os.fspath(file)
    forms = (name, normalize("NFC", name), normalize("NFD", name))
    return next((form for form in forms if os.path.isfile(root / form)), name)


def _text(value: object, where: str) -> str:
    """A field of a row without space around it, "" where it is missing. Raises DataError for anything but text."""
    return "" if value is None else check_text(value, where, DataError).strip()
