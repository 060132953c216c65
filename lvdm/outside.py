"""The door for files from outside: text, JSON, YAML, tables and tensors, with limits of size, depth and number.

Whatever is wrong with such a file is one sentence of the kind of `UserError` that the caller names: what, where, and
what to do. Nothing of the size that a file claims is allocated before the claim is checked.
"""

import codecs
import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from lvdm.errors import UserError

Kind = type[UserError]

MAX_BYTES = 2**28  # of a file that is read as a whole; manifests, which are read line by line, may be longer
MAX_LINE = 2**20  # characters of a line of a manifest
MAX_DEPTH = 50  # of nested JSON or YAML
MAX_NODES = 100_000  # of a YAML file, aliases written out
MAX_DIGITS = 18  # of a whole number: it fits into 64 bits
MAX_NAME, MAX_PATH = 255, 4096  # bytes of a file's name and of a path, as file systems have it

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_KINDS = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # byte order marks; the longer one of those that begin alike comes first


def read_text(path: str | os.PathLike[str], kind: Kind, limit: int = MAX_BYTES, what: str | None = None) -> str:
    """The text of a file of at most `limit` bytes, without its byte order mark. Raises `kind`.

    Without a mark it must be UTF-8; the message names what it seems to be instead. `what` names the file in messages,
    its path unless given.
    """
    path = checked_path(path, kind)
    try:
        size = path.stat().st_size
        if size > limit:
            raise kind(f"{what or path}: is too large to be what is wanted ({size:,} bytes, at most {limit:,})")
        data = path.read_bytes()
    except OSError as error:
        raise kind(f"{what or path} cannot be read: {error.strerror}") from error
    return _decoded(data, what or path, kind, first_line=1)


def read_lines(path: str | os.PathLike[str], kind: Kind) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a text file of any length, without byte order mark and line ends. Raises `kind`."""
    path = checked_path(path, kind)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
            if mark and mark != codecs.BOM_UTF8:
                yield from enumerate(read_text(path, kind).splitlines(), 1)
                return
            file.seek(len(mark))
            number = 0
            while data := file.readline(MAX_LINE + 1):
                number += 1
                if len(data) > MAX_LINE:
                    raise kind(f"{path}: line {number} has more than {MAX_LINE:,} bytes; it is no manifest")
                yield number, _decoded(data, path, kind, number).rstrip("\r\n")
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror}") from error


def parse_json(text: str, where: object, kind: Kind) -> Any:
    """The value of a JSON text. Raises `kind` for what is no JSON, nested too deeply, or has numbers beyond 64 bits."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word[:20]} is no number that can be used")

    def whole(digits: str) -> int:
        return int(digits) if len(digits.lstrip("-")) <= MAX_DIGITS else refuse(digits)

    def real(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits)

    try:
        value = json.loads(text, parse_int=whole, parse_float=real, parse_constant=refuse)
    except RecursionError as error:
        raise kind(f"{where}: is nested too deeply to be read") from error
    except json.JSONDecodeError as error:
        raise kind(f"{where}: is no valid JSON ({error.msg} at line {error.lineno}, column {error.colno})") from error
    except ValueError as error:
        raise kind(f"{where}: is no valid JSON ({error})") from error
    if _depth(value) > MAX_DEPTH:
        raise kind(f"{where}: is nested too deeply to be read (at most {MAX_DEPTH} levels)")
    return value


def read_json(path: str | os.PathLike[str], kind: Kind, limit: int = MAX_BYTES) -> Any:
    """The value of a JSON file, see `read_text` and `parse_json`. Raises `kind`."""
    return parse_json(read_text(path, kind, limit), path, kind)


def read_object(path: str | os.PathLike[str], kind: Kind, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Like `read_json`, for a file that must hold an object. Raises `kind`."""
    return checked(read_json(path, kind, limit), dict, path, kind)


def read_json_lines(path: str | os.PathLike[str], kind: Kind) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSONL file that is not empty. Raises `kind`."""
    for number, line in read_lines(path, kind):
        if line.strip():
            where = f"{path}: line {number}"
            yield number, checked(parse_json(line, where, kind), dict, where, kind)


def check_yaml(text: str, where: object, kind: Kind) -> bool:
    """Raise `kind` for a YAML text that no parser should be given: nested too deeply, or with too much in it.

    Returns whether it is a mapping, or empty. Aliases count as what they stand for, since whoever merges such a file
    writes them out. Mistakes of grammar are left to the parser.
    """
    depth, sizes, open_sizes = 0, {}, [0]
    names: list[str | None] = [None]
    first: yaml.Event | None = None
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if first is None and isinstance(event, yaml.NodeEvent):
                first = event
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                open_sizes.append(1)
                names.append(event.anchor)
                if depth > MAX_DEPTH:
                    raise kind(f"{where}: is nested too deeply to be read (at most {MAX_DEPTH} levels)")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
                size, name = open_sizes.pop(), names.pop()
                open_sizes[-1] += size
                if name is not None:
                    sizes[name] = size
            elif isinstance(event, yaml.AliasEvent):
                open_sizes[-1] += sizes.get(str(event.anchor), 1)
            elif isinstance(event, yaml.ScalarEvent):
                open_sizes[-1] += 1
                digits = event.value.lstrip("+-").replace("_", "")
                if event.implicit[0] and len(digits) > MAX_DIGITS and digits.isdigit():
                    raise kind(f"{where}: {digits[:20]}... is no number that can be used")
            if open_sizes[-1] > MAX_NODES:
                raise kind(f"{where}: holds more than {MAX_NODES:,} values")
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, UserError):
            raise
    return first is None or isinstance(first, yaml.MappingStartEvent)


def read_table(
    path: str | os.PathLike[str], kind: Kind, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of each row of a CSV file with a header, which must have `columns`. Raises `kind`.

    A row must have as many fields as the header, each on one line: what does not is a comma or a quote gone wrong, and
    would become another text than was written.
    """
    header: list[str] = []
    rows = _csv_rows(path, kind)
    for line, row in rows:
        if not header:
            header = [name.strip() for name in row]
            _check_header(header, columns, path, kind)
            continue
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):
            raise kind(
                f"{path}: line {line} has {len(row)} fields where the header has {len(header)}; "
                "put a text with commas in double quotes"
            )
        if any("\n" in field or "\r" in field for field in row):
            raise kind(f"{path}: line {line} opens a quote that is not closed on that line; close or double the quote")
        yield line, dict(zip(header, row))
    if not header:
        raise kind(f"{path}: is empty; it needs a header with the columns {', '.join(columns)}")


def check_text(text: object, where: object, kind: Kind, limit: int = MAX_LINE) -> str:
    """The text itself. Raises `kind` for anything that is no text that can be written and shown."""
    checked(text, str, where, kind)
    assert isinstance(text, str)
    if len(text) > limit:
        raise kind(f"{where}: has {len(text):,} characters, at most {limit:,} can be used")
    if "\0" in text:
        raise kind(f"{where}: has a NUL character in it; remove it")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise kind(f"{where}: has half a character in it (a lone surrogate, as in \\ud800); remove it")
    return text


def checked_path(path: str | os.PathLike[str], kind: Kind) -> Path:
    """The path. Raises `kind` for one that no file system takes: with a NUL, half a character, or too long a name."""
    text = os.fspath(path)
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError as error:
        raise kind(f"{text!r}: is no name of a file (it has half a character in it)") from error
    if "\0" in text:
        raise kind(f"{text!r}: is no name of a file (it has a NUL character in it)")
    if len(data) > MAX_PATH or any(len(part) > MAX_NAME for part in data.split(os.fsencode(os.sep))):
        raise kind(f"{text[:60]}...: is no name of a file (it is longer than {MAX_NAME} bytes)")
    return Path(path)


def checked(value: Any, expected: type, where: object, kind: Kind) -> Any:
    """The value itself. Raises `kind` unless it is an `expected`: str, int, float (an int will do), list or dict."""
    number = expected in (int, float) and isinstance(value, bool)
    if number or not isinstance(value, (int, float) if expected is float else expected):
        shown = repr(value)
        raise kind(f"{where}: must be {_KINDS[expected]}, not {shown if len(shown) <= 60 else shown[:57] + '...'}")
    return value


@contextmanager
def open_tensors(
    path: str | os.PathLike[str], kind: Kind, device: str = "cpu", remedy: str = "get it again"
) -> Iterator[Any]:
    """A safetensors file as `safetensors.safe_open` opens it. Raises `kind` for one that is missing or damaged."""
    path = checked_path(path, kind)
    if not path.is_file():
        raise kind(f"{path}: is {'a folder' if path.is_dir() else 'not there'}; give a safetensors file")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise kind(f"{path} is damaged or no safetensors file ({error}): {remedy}") from error


@contextmanager
def hinted(hint: str) -> Iterator[None]:
    """Add what to do ("make one with ...") to the sentence about a file that is read inside."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{error}; {hint}") from error


def metadata_object(metadata: Mapping[str, str] | None, name: str, where: object, kind: Kind) -> dict[str, Any]:
    """The JSON object that the metadata of a safetensors file has under `name`. Raises `kind`."""
    if not metadata or name not in metadata:
        raise kind(f"{where}: says nothing about itself (no '{name}' in its metadata); it is a file of another kind")
    about = f"{where}: its metadata '{name}'"
    return checked(parse_json(metadata[name], about, kind), dict, about, kind)


def _decoded(data: bytes, path: object, kind: Kind, first_line: int) -> str:
    mark = next((mark for mark in _MARKS if data.startswith(mark)), None)
    try:
        text = data.decode(_MARKS[mark] if mark else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data[: error.start].count(b"\n")
        guess = "Windows-1252 or Latin-1" if data[error.start] >= 0x80 and not mark else "damaged"
        raise kind(f"{path}: line {line} is no UTF-8 text (it seems to be {guess}); save the file as UTF-8") from error
    if "\0" in text:
        line = first_line + text[: text.index("\0")].count("\n")
        raise kind(f"{path}: line {line} holds NUL characters; the file is damaged or no UTF-8 text, save it as UTF-8")
    return text


def _csv_rows(path: str | os.PathLike[str], kind: Kind) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, fields) of each row."""
    rows = csv.reader((line + "\n" for _, line in read_lines(path, kind)), strict=True)
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise kind(f"{path}: line {line} has a quote that is not closed, or text behind one ({error})") from error
        yield line, row


def is_hub_id(path: str | os.PathLike[str]) -> bool:
    """Whether a name is OWNER/NAME of the Hugging Face Hub: one slash, and neither it nor its first half is a place on
    this disk."""
    if not isinstance(path, str) or not HUB_ID.fullmatch(path) or os.path.lexists(path):
        return False
    return not os.path.lexists(path.split("/")[0])


def _check_header(header: list[str], columns: Sequence[str], path: object, kind: Kind) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        needed = f"it needs the columns {', '.join(columns)}"
        lower = {name.lower(): name for name in header}
        if missing[0].lower() in lower:
            raise kind(
                f"{path}: has the column '{lower[missing[0].lower()]}', not '{missing[0]}'; write it in lower case"
            )
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if any(separator in field for field in header):
                raise kind(f"{path}: separates its columns by {name}, not by commas; save it with commas")
        raise kind(f"{path}: has no column '{missing[0]}' in its first line; {needed}")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise kind(f"{path}: has the column '{twice}' twice; remove one")


def _depth(value: Any) -> int:
    """How deeply lists and objects are nested in each other, without recursion."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
            waiting += [(inner, depth + 1) for inner in (item.values() if isinstance(item, dict) else item)]
    return deepest
