"""WebVid as published: CSV files with the columns videoid, page_dir and name (the caption), and a tree of videos."""

import logging
import os
from pathlib import Path

from lvdm.data.clips import ClipRecord
from lvdm.errors import DataError
from lvdm.outside import check_text, checked_path, read_table

log = logging.getLogger(__name__)


def read_webvid(csv_path: str | os.PathLike[str], root: str | os.PathLike[str]) -> list[ClipRecord]:
    """The rows of a WebVid CSV whose video is at root/page_dir/videoid.mp4, in the order of the CSV.

    Hardly anybody has all videos of a CSV: rows without a file or without a caption are left out, and how many is
    logged. Raises DataError if a column is missing or nothing is left.
    """
    root, records, missing, silent = Path(root), [], 0, 0
    present: dict[str, set[str]] = {}  # one listing of each folder instead of one look at each file
    for line, row in read_table(csv_path, DataError, ("videoid", "page_dir", "name")):
        page, name = row["page_dir"], f"{row['videoid']}.mp4"
        if page not in present:
            folder = root / checked_path(page, DataError)
            try:
                present[page] = set(os.listdir(folder)) if folder.is_dir() else set()
            except OSError as error:
                raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
        if name not in present[page]:
            missing += 1
            continue
        caption = check_text(row["name"], f"{csv_path}: line {line}: 'name'", DataError).strip()
        if not caption:
            silent += 1
            continue
        records.append(ClipRecord(root / page / name, caption, key=f"{page}/{name}"))
    if not records:
        raise DataError(f"{root}: holds no captioned video of {csv_path}; give the folder that holds the page folders")
    if missing or silent:
        message = "%s: %d videos found below %s; left out: %d rows without a file, %d without a caption"
        log.warning(message, csv_path, len(records), root, missing, silent)
    return records
