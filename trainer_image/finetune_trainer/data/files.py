"""Read the rows of a dataset file as a stream, each with its location.

The format is detected from the content, with the file's name as a hint.
"""

import csv
import io
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

from finetune_trainer.data import compression
from finetune_trainer.data.encodings import UTF8_REMEDY, refuse_utf16
from finetune_trainer.data.foreign_files import refuse_foreign
from finetune_trainer.data.json_rows import CHUNK_CHARACTERS, MAX_ROW_CHARACTERS, FileRow, read_arrays, read_lines
from finetune_trainer.data.sources import DataFile
from finetune_trainer.data.values import Row, UnusableJsonError, parse_json

FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"]
PARQUET_BATCH_ROWS = 256
TEXT_SUFFIXES = (".txt", ".text", ".md")
ROWS_IN_ARRAY = re.compile(rb"\[\s*\{\s*\"")
"""How an array of objects begins; a text may begin with a bracket, too."""


@lru_cache(maxsize=64)
def detect_format(file: DataFile) -> FileFormat:
    """Detect the format of a file; the result is cached.

    Raises:
        Failure: The file is damaged.
    """
    with compression.open_decompressed(file) as stream:
        return _detect(_peek(stream), file.name)


def read_rows(file: DataFile) -> Iterator[FileRow]:
    """Read the rows of a file that is not plain text, valid and invalid ones.

    Raises:
        Failure: The whole file is damaged.
    """
    with compression.open_decompressed(file) as stream:
        match _detect(_peek(stream), file.name):
            case "parquet":
                yield from _parquet(stream, file.name)
            case "arrow":
                yield from _arrow(stream, file.name)
            case "csv":
                yield from _csv(stream, file.name, ",")
            case "tsv":
                yield from _csv(stream, file.name, "\t")
            case "json":
                yield from read_arrays(stream, file.name)
            case _:
                yield from read_lines(stream, file.name)


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


def _detect(start: bytes, name: str) -> FileFormat:
    suffix = _suffix(name)
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    refuse_foreign(start, name, suffix)
    refuse_utf16(start, name)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    first_line = text.split(b"\n", 1)[0]
    if suffix in (".csv", ".tsv"):
        return "csv" if suffix == ".csv" else "tsv"
    if ROWS_IN_ARRAY.match(text) or (text.startswith(b"[") and suffix not in TEXT_SUFFIXES):
        return "json"
    if suffix in (".jsonl", ".ndjson", ".json") or _is_object(first_line):
        return "jsonl"
    return "text"


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in (".gz", ".zst", ".zstd") else path.suffix


def _is_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(parse_json(line), dict)
    except UnusableJsonError:
        return True  # its row's problem says why
    except ValueError:
        return len(line) >= compression.PEEK_BYTES // 2  # the row is longer than the bytes that were read


def _csv(stream: io.BufferedReader, name: str, delimiter: str) -> Iterator[FileRow]:
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader, line = csv.DictReader(text, delimiter=delimiter, strict=True), 1
        try:
            names = reader.fieldnames or []
            _refuse_repeated(list(names), name, "its first line")
            line = reader.line_num + 1
            for row in reader:
                location = f"{name} line {line}"
                if None in row:
                    yield FileRow(location, problem=f"has more fields than the {len(names)} columns of the first line")
                else:
                    yield FileRow(location, {key: value for key, value in row.items() if value is not None})
                line = reader.line_num + 1
        except csv.Error as error:
            yield FileRow(f"{name} line {line}", problem=f"is not CSV: {error}")
        except UnicodeDecodeError as error:
            raise compression.damaged_file(
                name, f"is not UTF-8 text after line {reader.line_num}: {error.reason}: {UTF8_REMEDY}"
            ) from error


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
    _refuse_repeated(batch.schema.names, name, "its schema")
    try:
        rows: list[Row] = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        # Nanoseconds and dates after the year 9999 have no place in Python's datetime.
        raise compression.damaged_file(
            name, f"has a value that Python cannot hold ({error}): leave its column out, or save it as text"
        ) from error
    return rows


def _refuse_repeated(names: list[str], name: str, where: str) -> None:
    if len(set(names)) != len(names):
        raise compression.damaged_file(name, f"has two columns of the same name in {where}: {', '.join(names)}")


def _file_batches(stream: io.BufferedReader) -> Iterator[Any]:
    import pyarrow

    reader = pyarrow.ipc.open_file(stream)
    return (reader.get_batch(number) for number in range(reader.num_record_batches))
