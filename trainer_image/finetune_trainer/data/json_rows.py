"""Read the rows of JSON files: an object on each line, or arrays of objects, one or several in a file."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data import compression
from finetune_trainer.data.encodings import UTF8_REMEDY
from finetune_trainer.data.values import (
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
TOO_LONG = f"is longer than {MAX_ROW_CHARACTERS >> 20} MB: split it into several rows"


@dataclass(frozen=True)
class FileRow:
    """One row of a file, or the problem with it. ``location`` names file and line, or file and row."""

    location: str
    row: Row | None = None
    problem: str = ""


def read_lines(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Read an object on each line; blank lines are skipped."""
    for number, line in enumerate(_split_lines(stream), start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content.strip():
            yield _read_line(content, f"{name} line {number}")


def _split_lines(stream: io.BufferedReader) -> Iterator[bytes]:
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
        return FileRow(location, problem=f"is not JSON ({error}): {quote(content)}")


def _to_row(location: str, value: Any) -> FileRow:
    if isinstance(value, dict):
        return FileRow(location, value)
    return FileRow(location, problem=f"is not a JSON object: {quote(quote_value(value))}")


def read_arrays(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Decode the elements of top-level arrays one after another while the file is read."""
    decoder = json.JSONDecoder(parse_constant=null_for_nan, object_pairs_hook=build_object)
    line, inside = 1, False
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        buffer, size, at = _read_more(text, name, CHUNK_CHARACTERS), CHUNK_CHARACTERS, 0
        while True:
            start = at
            while at < len(buffer) and buffer[at] in " \t\r\n,":
                at += 1
            line += buffer.count("\n", start, at)
            location = f"{name} line {line}"
            if at == len(buffer) and (more := _read_more(text, name, CHUNK_CHARACTERS)):
                buffer, at = more, 0
                continue
            if at == len(buffer) and not inside:
                return
            if at < len(buffer) and buffer[at] == ("]" if inside else "["):
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
                    yield FileRow(location, problem=_describe_error(buffer[at : at + 200], error, short=short))
                    return
                buffer, at, size = buffer[at:] + more, 0, max(size, len(buffer) - at)
                continue
            yield _to_row(location, value)
            line += buffer.count("\n", at, end)
            at = end
            if at > CHUNK_CHARACTERS:
                buffer, at, size = buffer[at:], 0, CHUNK_CHARACTERS


def _describe_error(text: str, error: ValueError, *, short: bool) -> str:
    if not short:
        return TOO_LONG
    return f"is not JSON ({error}): {quote(text)}" if text else "the array has no end: a ] is missing"


def _read_more(text: io.TextIOWrapper, name: str, size: int) -> str:
    try:
        return text.read(size)
    except UnicodeDecodeError as error:
        raise compression.damaged_file(name, f"is not UTF-8 text: {error.reason}: {UTF8_REMEDY}") from error
