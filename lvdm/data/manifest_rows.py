"""Rows of a listing of videos: a CSV file with a header, or JSONL."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from lvdm.errors import DataError

LISTING_ENDINGS = (".csv", ".jsonl")


def read_rows(path: Path, fields: str) -> Iterator[tuple[int, dict]]:
    """(line number, row) of each row of a file with one of LISTING_ENDINGS; empty lines of JSONL don't count.

    `fields` is what a JSONL row should look like, for the message: '"file": ..., "caption": ...'.
    Raises DataError where the file cannot be read or a row is no object.
    """
    try:
        yield from _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path, fields)
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, dict]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for row in rows:
            yield rows.line_num, row


def _jsonl_rows(path: Path, fields: str) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number} is not an object like {{{fields}}}")
                yield number, row
