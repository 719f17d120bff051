"""Read the rows of JSON files: an object on each line, objects over several lines, or arrays of objects."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from finetune_trainer.data import compression
from finetune_trainer.data.encodings import UTF8_REMEDY
from finetune_trainer.data.values import (
    PYTHON_NOTATION,
    TOO_DEEP,
    Row,
    UnusableJsonError,
    build_object,
    check_depth,
    null_for_nan,
    parse_json,
    quote,
    quote_value,
)

CHUNK_CHARACTERS = 1 << 16
MAX_ROW_CHARACTERS = 64 * 1024 * 1024
"""Length of the longest row that is accepted, which limits how much of a file is in memory at once."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ROW_COLUMNS = {"text", "prompt", "question", "instruction", "messages", "conversations", "conversation", "chosen"}
"""Usual columns of rows. A row has at least one of them; a message and a tool have none."""
TOO_LONG = f"is longer than {MAX_ROW_CHARACTERS >> 20} MB: split it into several rows"


@dataclass(frozen=True)
class FileRow:
    """One row of a file, or the problem with it. ``location`` names file and line, or file and row."""

    location: str
    row: Row | None = None
    problem: str = ""


def read_lines(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Read an object on each line; blank lines are skipped.

    Lines end with a carriage return if the file's beginning has no line feed. Files that were joined have byte order
    marks at the beginning of other lines, too.
    """
    start = stream.peek(CHUNK_CHARACTERS)
    has_returns_only = b"\r" in start and b"\n" not in start
    lines: io.BufferedIOBase = io.BufferedReader(_LineFeeds(stream)) if has_returns_only else stream
    for number, line in enumerate(_split_lines(lines), start=1):
        content = line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n")
        if content.strip():
            yield _read_line(content, f"{name} line {number}")


class _LineFeeds(io.RawIOBase):
    """Turn carriage returns into line feeds."""

    def __init__(self, inner: io.BufferedReader) -> None:
        """Wrap a reader."""
        self._inner = inner

    def readable(self) -> bool:
        """Return True: this stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into ``buffer``, and return their number."""
        piece = self._inner.read1(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(piece)] = piece
        return len(piece)


def refuse_wrapped(file_rows: Iterator[FileRow]) -> Iterator[FileRow]:
    """Refuse the only object of a file if a list in it holds the rows."""
    first_rows = list(islice(file_rows, 2))
    if len(first_rows) == 1 and (keys := _find_row_lists(first_rows[0].row or {})):
        path = keys[0] if keys[0].isidentifier() else json.dumps(keys[0])
        problem = (
            f"is one object that holds its rows in the list {' or '.join(map(repr, keys))}, which jq -c '.{path}[]' "
            "writes as an object on each line"
        )
        first_rows = [FileRow(first_rows[0].location, problem=problem)]
    return chain(first_rows, file_rows)


def _find_row_lists(row: Row) -> list[str]:
    """Return the keys of lists of rows in an object that is no row itself."""
    if not ROW_COLUMNS.isdisjoint(row):
        return []
    return [
        key
        for key, value in row.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and not ROW_COLUMNS.isdisjoint(value[0])
    ]


def _split_lines(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield the lines; of a line that is too long for a row, only the beginning."""
    while line := stream.readline(MAX_ROW_CHARACTERS + 1):
        rest = line
        while len(rest) > MAX_ROW_CHARACTERS and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_ROW_CHARACTERS + 1)
        yield line


def _read_line(content: bytes, location: str) -> FileRow:
    if len(content) > MAX_ROW_CHARACTERS:
        return FileRow(location, problem=TOO_LONG)
    try:
        return _to_row(location, parse_json(content.decode()))
    except UnicodeDecodeError as error:
        return FileRow(location, problem=f"is not UTF-8 text ({error.reason}): {UTF8_REMEDY}: {quote(content)}")
    except ValueError as error:
        return FileRow(location, problem=f"is not JSON ({_explain(error, content.decode(), 0)}): {quote(content)}")


def _explain(error: ValueError, text: str, start: int) -> str:
    """Say in plain words why the text from ``start`` on is not JSON."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    if PYTHON_NOTATION.match(text[start:].lstrip()):
        return "it is Python's notation, which json.dumps(row) writes as JSON"
    rest = text[error.pos :].strip()
    if error.msg == "Extra data":
        return "a comma follows the object" if rest == "," else f"after the first value comes {quote(rest)}"
    if not rest:
        return "it has no end"
    place = f" at character {error.pos - start + 1}, where it has {quote(rest)}" if error.pos > start else ""
    return f"{error.msg.removesuffix(' at')}{place}"


def _to_row(location: str, value: Any) -> FileRow:
    if isinstance(value, dict):
        return FileRow(location, value)
    return FileRow(location, problem=f"is not a JSON object: {quote(quote_value(value))}")


def read_arrays(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Decode the elements of top-level arrays one after another while the file is read."""
    return _decode(stream, name, arrays=True)


def read_objects(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Decode top-level objects, each over one or several lines, one after another while the file is read."""
    return _decode(stream, name, arrays=False)


def _decode(stream: io.BufferedReader, name: str, *, arrays: bool) -> Iterator[FileRow]:
    decoder = json.JSONDecoder(parse_constant=null_for_nan, object_pairs_hook=build_object)
    line, inside = 1, not arrays
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        buffer, size, at = _read_more(text, name, CHUNK_CHARACTERS), CHUNK_CHARACTERS, 0
        while True:
            start = at
            while at < len(buffer) and buffer[at] in " \t\r\n,\ufeff":
                at += 1
            line += buffer.count("\n", start, at)
            location = f"{name} line {line}"
            if at == len(buffer) and (more := _read_more(text, name, CHUNK_CHARACTERS)):
                buffer, at = more, 0
                continue
            if at == len(buffer) and not (arrays and inside):
                return
            if arrays and at < len(buffer) and buffer[at] == ("]" if inside else "["):
                inside, at = not inside, at + 1
                continue
            if not inside:
                problem = (
                    f"comes after the end of an array: {quote(buffer[at:])}. Write one array, or an object on each line"
                )
                yield FileRow(location, problem=problem)
                return
            try:
                value, end = decoder.raw_decode(buffer, at)
                check_depth(value)
            except RecursionError:
                yield FileRow(location, problem=f"is not JSON ({TOO_DEEP})")
                return
            except ValueError as error:
                # Read as much again as is buffered, so that a long row is not decoded too often.
                short = len(buffer) - at <= MAX_ROW_CHARACTERS
                more = _read_more(text, name, size) if short and not isinstance(error, UnusableJsonError) else ""
                if not more:
                    yield FileRow(location, problem=_describe_error(error, buffer, at, short=short))
                    return
                buffer, at, size = buffer[at:] + more, 0, max(size, len(buffer) - at)
                continue
            yield _to_row(location, value)
            line += buffer.count("\n", at, end)
            at = end
            if at > CHUNK_CHARACTERS:
                buffer, at, size = buffer[at:], 0, CHUNK_CHARACTERS


def _describe_error(error: ValueError, buffer: str, at: int, *, short: bool) -> str:
    if not short:
        return TOO_LONG
    if at == len(buffer):
        return "the array has no end: a ] is missing"
    return f"is not JSON ({_explain(error, buffer, at)}): {quote(buffer[at:])}"


def _read_more(text: io.TextIOWrapper, name: str, size: int) -> str:
    try:
        return text.read(size)
    except UnicodeDecodeError as error:
        raise compression.damaged_file(name, f"is not UTF-8 text: {error.reason}: {UTF8_REMEDY}") from error
