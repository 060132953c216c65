"""A plain folder of videos with captions: one CSV or JSONL file for all, or a .txt file beside each video."""

import os
from collections.abc import Iterator
from pathlib import Path

from lvdm.data.clips import ClipRecord
from lvdm.data.manifest_rows import LISTING_ENDINGS, read_rows
from lvdm.errors import DataError
from lvdm.video import VIDEO_ENDINGS

LISTING = "captions.csv"


def read_folder(
    root: str | os.PathLike, captions: str | os.PathLike | None = None, default_caption: str | None = None
) -> list[ClipRecord]:
    """The captioned videos below `root`.

    With `captions`: the rows of a .csv (with a header) or .jsonl file, in its order: `file` (relative to `root`),
    `caption` and optionally `label`. Without it: those of captions.csv in `root`, as aicl make-puppets writes it;
    where there is none, every video file, sorted, each with its caption in a .txt file of the same name.
    default_caption: of videos that have none; None does not allow that.
    Raises DataError for a missing folder, file, caption or column.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; give a folder of videos")
    if captions is None and (root / LISTING).is_file():
        captions = root / LISTING
    records = list(_listed(root, Path(captions), default_caption) if captions else _beside(root, default_caption))
    if not records:
        raise DataError(f"{captions or root}: lists no videos; known endings are {', '.join(VIDEO_ENDINGS)}")
    return records


def _beside(root: Path, default_caption: str | None) -> Iterator[ClipRecord]:
    for file in sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_ENDINGS and path.is_file()):
        try:
            caption = file.with_suffix(".txt").read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            caption = None
        caption = default_caption if caption is None else caption
        if caption is None:
            raise DataError(
                f"{file}: has no caption; write it to {file.with_suffix('.txt').name} beside it, or set "
                "data.default_caption for all videos without one"
            )
        yield ClipRecord(file, caption, key=file.relative_to(root).as_posix())


def _listed(root: Path, listing: Path, default_caption: str | None) -> Iterator[ClipRecord]:
    if listing.suffix.lower() not in LISTING_ENDINGS:
        raise DataError(f"{listing}: is neither .csv nor .jsonl; give captions in one of these")
    for line, row in read_rows(listing, '"file": ..., "caption": ...'):
        values = {name: row.get(name) for name in ("file", "caption", "label")}
        if not str(values["caption"] or "").strip():
            values["caption"] = default_caption
        empty = [name for name, value in (("file", values["file"]), ("caption", values["caption"])) if value is None]
        empty += [] if str(values["file"] or "").strip() else ["file"]
        if empty:
            raise DataError(f"{listing}: line {line} has no '{empty[0]}'; each needs file and caption")
        path = root / values["file"]
        if not path.is_file():
            raise DataError(f"{listing}: line {line} names {values['file']}, which is not in {root}")
        key = Path(values["file"]).as_posix()
        yield ClipRecord(path, str(values["caption"]).strip(), values["label"] or None, key)
