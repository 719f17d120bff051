"""Read the rows of a dataset file as a stream, each with its location.

The format is detected from the content, with the file's name as a hint.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal

from finetune_trainer.data import compression
from finetune_trainer.data.csv_rows import read_table, refuse_repeated
from finetune_trainer.data.encodings import UTF8_REMEDY, refuse_utf16
from finetune_trainer.data.foreign_files import find_markup, find_notation, refuse_foreign
from finetune_trainer.data.json_rows import (
    BYTE_ORDER_MARK,
    CHUNK_CHARACTERS,
    FileRow,
    read_arrays,
    read_lines,
    read_objects,
    refuse_wrapped,
)
from finetune_trainer.data.sources import DataFile
from finetune_trainer.data.values import Row, UnusableJsonError, parse_json

FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"]
PARQUET_BATCH_ROWS = 256
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".csv", ".tsv")
ROWS_IN_ARRAY = re.compile(rb"\[\s*\{\s*\"")
"""How an array of objects begins; a text may begin with a bracket, too."""
LIKE_JSON = re.compile(
    rb"""
    \{\s*"(?:[^"\\\n]|\\.)*"\s*:       # an object: a quoted key and a colon
    | \{\s*\w+\s*:\s*["'\[{]           # an object with a key that lacks its quotes
    | \[\s*\{\s*(?:["}]|\w+\s*:)      # an array of objects
    | \[\s*\[\s*["\[{]               # an array of arrays
    | \[\s*"(?:[^"\\\n]|\\.)*"\s*[,\]]   # an array of texts
    | \[\s*\]\s*$                    # an empty array
    """,
    re.VERBOSE,
)
"""How JSON begins, also with an error in it; prose and chat templates that begin with a bracket do not begin so."""
PLAIN_TEXT = "is plain text, but other files of the dataset have rows: leave this file out"
TEXT_REMEDY = "if it is plain text all the same, set spec.dataset.format to text"


@lru_cache(maxsize=64)
def detect_format(file: DataFile) -> FileFormat:
    """Detect the format of a file; the result is cached.

    Raises:
        Failure: The file is damaged.
    """
    with compression.open_decompressed(file) as stream:
        return _detect(_peek(stream), file)


def read_rows(file: DataFile) -> Iterator[FileRow]:
    """Read the rows of a file that is not plain text, valid and invalid ones.

    Raises:
        Failure: The whole file is damaged.
    """
    with compression.open_decompressed(file) as stream:
        start = _peek(stream)
        match _detect(start, file):
            case "parquet":
                yield from _parquet(stream, file.name)
            case "arrow":
                yield from _arrow(stream, file.name)
            case "csv":
                yield from read_table(stream, start, file.name, ",")
            case "tsv":
                yield from read_table(stream, start, file.name, "\t")
            case "json" if _skip_space(start).startswith(b"["):
                yield from _hint_at_text(read_arrays(stream, file.name), start, file)
            case "json":
                yield from _hint_at_text(refuse_wrapped(read_objects(stream, file.name)), start, file)
            case "jsonl":
                yield from _hint_at_text(refuse_wrapped(read_lines(stream, file.name)), start, file)
            case "text" if any(piece.strip() for piece in read_text(file)):
                yield FileRow(f"{file.name} line 1", problem=PLAIN_TEXT)


def read_text(file: DataFile, size: int = CHUNK_CHARACTERS) -> Iterator[str]:
    """Read plain text in pieces of about ``size`` characters that end with a line.

    Raises:
        Failure: The text is not UTF-8.
    """
    with (
        compression.open_decompressed(file) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text,
    ):
        piece: list[str] = []
        length = line_number = 0
        try:
            for line in text:
                line_number += 1
                piece.append(line)
                length += len(line)
                if length >= size:
                    yield "".join(piece)
                    piece, length = [], 0
        except UnicodeDecodeError as error:
            raise compression.damaged_file(
                file.name, f"is not UTF-8 text after line {line_number}: {error.reason}: {UTF8_REMEDY}"
            ) from error
    if piece:
        yield "".join(piece)


def _peek(stream: io.BufferedReader) -> bytes:
    """Return the first bytes without consuming them."""
    return stream.peek(compression.PEEK_BYTES)


def _detect(start: bytes, file: DataFile) -> FileFormat:
    name, suffix = file.name, _suffix(file.name)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    refuse_foreign(start, name, suffix)
    refuse_utf16(start, name)
    text = _skip_space(start)
    holds_rows = suffix in (*JSON_SUFFIXES, *TABLE_SUFFIXES)
    if (markup := find_markup(text)) and (holds_rows or not file.plain_text):
        remedy = "get the data again" if holds_rows else f"get the data again; {TEXT_REMEDY}"
        raise compression.damaged_file(name, f"{markup}: {remedy}")
    if _is_object(text):
        return "jsonl"
    if ROWS_IN_ARRAY.match(text) and (_is_array(text) or not file.plain_text):
        return "json"
    if suffix in TABLE_SUFFIXES:
        return "csv" if suffix == ".csv" else "tsv"
    if suffix in JSON_SUFFIXES or (LIKE_JSON.match(text) and not file.plain_text):
        return "json" if text.startswith(b"[") or _goes_over_lines(text) else "jsonl"
    if not file.plain_text and (notation := find_notation(text, suffix)):
        raise compression.damaged_file(name, f"{notation}; {TEXT_REMEDY}")
    return "text"


def _skip_space(start: bytes) -> bytes:
    return start.removeprefix(BYTE_ORDER_MARK).lstrip()


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in (".gz", ".zst", ".zstd") else path.suffix


def _is_object(text: bytes) -> bool:
    """Return whether the first line is a JSON object, perhaps one that is longer than the bytes that were read."""
    line = re.split(rb"[\r\n]", text, maxsplit=1)[0]
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(parse_json(line), dict)
    except UnusableJsonError:
        return True  # its row's problem says why
    except ValueError:
        return LIKE_JSON.match(line) is not None and len(line) >= compression.PEEK_BYTES // 2


def _is_array(text: bytes) -> bool:
    """Return whether an array begins with an object without an error, perhaps one that is longer than the text."""
    try:
        json.JSONDecoder().raw_decode(text[text.index(b"{") :].decode(errors="replace"))
    except (ValueError, RecursionError):
        return len(text) >= compression.PEEK_BYTES // 2
    return True


def _goes_over_lines(text: bytes) -> bool:
    """Return whether the first JSON object goes over several lines, as an indented one does."""
    first_line = re.split(rb"[\r\n]", text, maxsplit=1)[0].strip()
    try:
        _, end = json.JSONDecoder().raw_decode(text.decode(errors="replace"))
    except (ValueError, RecursionError):
        return len(text) >= compression.PEEK_BYTES // 2 and first_line.endswith((b"{", b"[", b","))
    return end > len(first_line.decode(errors="replace"))


def _hint_at_text(file_rows: Iterator[FileRow], start: bytes, file: DataFile) -> Iterator[FileRow]:
    """Say at a bad first row how the file is read as plain text, if it can be."""
    first = next(file_rows, None)
    if first is None:
        return iter(())
    if first.problem and not file.plain_text and _detect(start, replace(file, plain_text=True)) == "text":
        first = replace(first, problem=f"{first.problem} ({TEXT_REMEDY})")
    return chain((first,), file_rows)


def _parquet(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    if isinstance(stream, compression.DecompressedFile):
        raise compression.damaged_file(
            name, "is a compressed parquet file: parquet compresses by itself, store it as it is"
        )
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for row in _to_rows(batch, name):
                number += 1
                yield FileRow(f"{name} row {number}", row)
    except pyarrow.ArrowException as error:
        raise compression.damaged_file(
            name, f"cannot be read as parquet, it is damaged or cut off ({error})"
        ) from error


def _arrow(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Read what ``datasets.save_to_disk`` writes (a stream of batches), or an Arrow file."""
    import pyarrow

    number = 0
    try:
        is_file = _peek(stream).startswith(b"ARROW1")
        batches = _file_batches(stream) if is_file else pyarrow.ipc.open_stream(stream)
        for batch in batches:
            for start in range(0, batch.num_rows, PARQUET_BATCH_ROWS):
                for row in _to_rows(batch.slice(start, PARQUET_BATCH_ROWS), name):
                    number += 1
                    yield FileRow(f"{name} row {number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise compression.damaged_file(name, f"cannot be read as Arrow, it is damaged or cut off ({error})") from error


def _to_rows(batch: Any, name: str) -> list[Row]:
    """Return the rows of a batch of Arrow.

    Raises:
        Failure: DATASET_INVALID: Python cannot hold its columns or a value of them.
    """
    refuse_repeated(batch.schema.names, name, "its schema")
    try:
        rows: list[Row] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        # Nanoseconds and dates after the year 9999 have no place in Python's datetime.
        raise compression.damaged_file(
            name, f"has a value that Python cannot hold ({error}): leave its column out, or save it as text"
        ) from error
    return rows


def _file_batches(stream: io.BufferedReader) -> Iterator[Any]:
    import pyarrow

    reader = pyarrow.ipc.open_file(stream)
    return (reader.get_batch(number) for number in range(reader.num_record_batches))
