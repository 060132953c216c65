"""Rows of a manifest: a CSV file with a header, or JSONL."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lvdm.errors import DataError
from lvdm.outside import read_json_lines, read_table

MANIFEST_ENDINGS = (".csv", ".jsonl")


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of each row of a file with one of MANIFEST_ENDINGS; empty lines don't count.

    `columns` are those that a CSV file must have. Raises DataError where the file cannot be read, or a row has another
    form than the header or is no object.
    """
    yield from (
        read_table(path, DataError, columns) if path.suffix.lower() == ".csv" else read_json_lines(path, DataError)
    )
