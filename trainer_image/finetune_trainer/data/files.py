"""Read the rows of a dataset file, each with its location, without the file in memory.

The format is detected from the content, with the file's name as a hint.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

from finetune_trainer.data import compression
from finetune_trainer.data.sources import DataFile
from finetune_trainer.data.values import Row, quote

FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet", "text"]
CHUNK_CHARACTERS = 1 << 16
MAX_ROW_CHARACTERS = 64 * 1024 * 1024
"""The longest row of a JSON array; an element without an end within it is treated as incomplete."""
PARQUET_BATCH_ROWS = 256


@dataclass(frozen=True)
class FileRow:
    """Hold one row of a file, or the problem with it. ``location`` names file and line, or file and row."""

    location: str
    row: Row | None = None
    problem: str = ""


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
            case "csv":
                yield from _csv(stream, file.name, ",")
            case "tsv":
                yield from _csv(stream, file.name, "\t")
            case "json":
                yield from _json_array(stream, file.name)
            case _:
                yield from _json_lines(stream, file.name)


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
                file.name, f"is no UTF-8 text after line {line_number}: {error.reason}"
            ) from error
    if piece:
        yield "".join(piece)


def _peek(stream: io.BufferedReader) -> bytes:
    """Return the first bytes without consuming them."""
    return stream.peek(compression.PEEK_BYTES)


def _detect(look: bytes, name: str) -> FileFormat:
    suffix = _suffix(name)
    if look.startswith(b"PAR1"):
        return "parquet"
    text = look.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.split(b"\n", 1)[0]
    if suffix in (".csv", ".tsv"):
        return "csv" if suffix == ".csv" else "tsv"
    if text.startswith(b"[") and suffix not in (".txt", ".text", ".md"):
        return "json"
    if suffix in (".jsonl", ".ndjson", ".json") or _is_object(first):
        return "jsonl"
    return "text"


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in (".gz", ".zst", ".zstd") else path.suffix


def _is_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return len(line) >= compression.PEEK_BYTES // 2  # a row longer than what was looked at


def _json_lines(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        location = f"{name} line {number}"
        try:
            row = json.loads(content)
        except ValueError as error:
            yield FileRow(location, problem=f"is not JSON ({error}): {quote(content)}")
            continue
        yield (
            FileRow(location, row)
            if isinstance(row, dict)
            else FileRow(location, problem=f"is no JSON object: {quote(content)}")
        )


def _json_array(stream: io.BufferedReader, name: str) -> Iterator[FileRow]:
    """Decode the elements of a top-level array one after another while the file is read."""
    decoder, line = json.JSONDecoder(), 1
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        buffer, size, at = _read_more(text, name, CHUNK_CHARACTERS), CHUNK_CHARACTERS, 0
        at = buffer.index("[") + 1
        line += buffer.count("\n", 0, at)
        while True:
            start = at
            while at < len(buffer) and buffer[at] in " \t\r\n,":
                at += 1
            line += buffer.count("\n", start, at)
            location = f"{name} line {line}"
            if at < len(buffer) and buffer[at] == "]":
                return
            try:
                value, end = decoder.raw_decode(buffer, at)
            except ValueError as error:
                # read as much again as is buffered, so that a long row is not decoded too often
                more = _read_more(text, name, size) if len(buffer) - at <= MAX_ROW_CHARACTERS else ""
                if not more:
                    what = buffer[at : at + 200]
                    found = (
                        f"is not JSON ({error}): {quote(what.encode())}"
                        if what
                        else "the array has no end: a ] is missing"
                    )
                    yield FileRow(location, problem=found)
                    return
                buffer, at, size = buffer[at:] + more, 0, max(size, len(buffer) - at)
                continue
            yield (
                FileRow(location, value)
                if isinstance(value, dict)
                else FileRow(location, problem=f"is no JSON object: {quote(json.dumps(value).encode())}")
            )
            line += buffer.count("\n", at, end)
            at = end
            if at > CHUNK_CHARACTERS:
                buffer, at, size = buffer[at:], 0, CHUNK_CHARACTERS


def _read_more(text: io.TextIOWrapper, name: str, size: int) -> str:
    try:
        return text.read(size)
    except UnicodeDecodeError as error:
        raise compression.damaged_file(name, f"is no UTF-8 text: {error.reason}") from error


def _csv(stream: io.BufferedReader, name: str, delimiter: str) -> Iterator[FileRow]:
    csv.field_size_limit(MAX_ROW_CHARACTERS)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader, line = csv.DictReader(text, delimiter=delimiter, strict=True), 1
        try:
            names = reader.fieldnames or []
            if len(set(names)) != len(names):
                raise compression.damaged_file(
                    name, f"has two columns of the same name in its first line: {', '.join(names)}"
                )
            line = reader.line_num + 1
            for row in reader:
                location = f"{name} line {line}"
                if None in row:
                    yield FileRow(location, problem=f"has more fields than the {len(names)} columns of the first line")
                else:
                    yield FileRow(location, {key: value for key, value in row.items() if value is not None})
                line = reader.line_num + 1
        except csv.Error as error:
            yield FileRow(f"{name} line {line}", problem=f"is no CSV: {error}")
        except UnicodeDecodeError as error:
            raise compression.damaged_file(
                name, f"is no UTF-8 text after line {reader.line_num}: {error.reason}"
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
            for row in batch.to_pylist():
                number += 1
                yield FileRow(f"{name} row {number}", row)
    except pyarrow.ArrowException as error:
        raise compression.damaged_file(
            name, f"cannot be read as parquet, it is damaged or cut off ({error})"
        ) from error
