"""A dataset file made into rows, each with its place: compression and kind are told from the content, with the name as a hint. Holds no file in memory."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, cast

import zstandard

from finetune_api.reasons import Reason
from finetune_trainer.data.sources import DataFile
from finetune_trainer.runtime.failures import Failure

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "text"]
Row = dict[str, Any]
LOOK, BLOCK = 1 << 16, 1 << 16
LONGEST_ITEM = 64 * 1024 * 1024
"""No row of a JSON array is longer than so many characters; what is, lacks its end."""
PARQUET_ROWS = 256


@dataclass(frozen=True)
class Item:
    """One row of a file, or what is wrong with it. ``place`` is for messages: file and line, or file and row."""

    place: str
    row: Row | None = None
    problem: str = ""


@lru_cache(maxsize=64)
def kind_of(file: DataFile) -> Kind:
    """What kind of file it is, looked at once. Raises Failure for a damaged one."""
    with _unpacked(file) as stream:
        return _kind(_look(stream), file.name)


def items(file: DataFile) -> Iterator[Item]:
    """The rows of a file that is no plain text, good and bad. Raises Failure for a file that is damaged as a whole."""
    with _unpacked(file) as stream:
        match _kind(_look(stream), file.name):
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


def pieces(file: DataFile, size: int = BLOCK) -> Iterator[str]:
    """Plain text in pieces of about ``size`` characters that end at a line's end. Raises Failure for what is no UTF-8."""
    with _unpacked(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
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
            raise damaged(file.name, f"is no UTF-8 text after line {line_number}: {error.reason}") from error
    if piece:
        yield "".join(piece)


def damaged(name: str, what: str) -> Failure:
    """The failure for a file that cannot be read as a whole."""
    return Failure(Reason.DATASET_INVALID, f"{name} {what}", "spec.dataset.uri")


class _Unpacked(io.BufferedReader):
    """What a compressed file holds; what its decompression raises says which file it is about."""

    def __init__(self, name: str, inner: BinaryIO, errors: tuple[type[Exception], ...]) -> None:
        super().__init__(_Guarded(name, inner, errors), LOOK)


class _Guarded(io.RawIOBase):
    def __init__(self, name: str, inner: BinaryIO, errors: tuple[type[Exception], ...]) -> None:
        self._name, self._inner, self._errors = name, inner, errors

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._inner.read(len(buffer))
        except self._errors as error:
            raise damaged(self._name, f"cannot be unpacked, it is damaged or cut off ({error})") from error
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _unpacked(file: DataFile) -> io.BufferedReader:
    stream = file.open()
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        opened = cast(BinaryIO, gzip.GzipFile(fileobj=stream))
        return _Unpacked(file.name, opened, (OSError, EOFError, zlib.error))
    if magic == b"\x28\xb5\x2f\xfd":
        reader = cast(
            BinaryIO, zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=True)
        )
        return _Unpacked(file.name, reader, (zstandard.ZstdError,))
    return io.BufferedReader(cast(io.RawIOBase, stream), LOOK)


def _look(stream: io.BufferedReader) -> bytes:
    """The first bytes, which stay to be read."""
    return stream.peek(LOOK)


def _kind(look: bytes, name: str) -> Kind:
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
        return len(line) >= LOOK // 2  # a row longer than what was looked at


def _json_lines(stream: io.BufferedReader, name: str) -> Iterator[Item]:
    for number, line in enumerate(stream, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not content.strip():
            continue
        place = f"{name} line {number}"
        try:
            row = json.loads(content)
        except ValueError as error:
            yield Item(place, problem=f"is not JSON ({error}): {quote(content)}")
            continue
        yield Item(place, row) if isinstance(row, dict) else Item(place, problem=f"is no JSON object: {quote(content)}")


def _json_array(stream: io.BufferedReader, name: str) -> Iterator[Item]:
    """The elements of a top-level array, decoded one after another as the file is read."""
    decoder, line = json.JSONDecoder(), 1
    with io.TextIOWrapper(stream, encoding="utf-8-sig") as text:
        buffer, size, at = _more(text, name, BLOCK), BLOCK, 0
        at = buffer.index("[") + 1
        line += buffer.count("\n", 0, at)
        while True:
            start = at
            while at < len(buffer) and buffer[at] in " \t\r\n,":
                at += 1
            line += buffer.count("\n", start, at)
            place = f"{name} line {line}"
            if at < len(buffer) and buffer[at] == "]":
                return
            try:
                value, end = decoder.raw_decode(buffer, at)
            except ValueError as error:
                # what is read grows with what is held, so that a long row is not decoded over and over
                more = _more(text, name, size) if len(buffer) - at <= LONGEST_ITEM else ""
                if not more:
                    what = buffer[at : at + 200]
                    found = (
                        f"is not JSON ({error}): {quote(what.encode())}"
                        if what
                        else "the array has no end: a ] is missing"
                    )
                    yield Item(place, problem=found)
                    return
                buffer, at, size = buffer[at:] + more, 0, max(size, len(buffer) - at)
                continue
            yield (
                Item(place, value)
                if isinstance(value, dict)
                else Item(place, problem=f"is no JSON object: {quote(json.dumps(value).encode())}")
            )
            line += buffer.count("\n", at, end)
            at = end
            if at > BLOCK:
                buffer, at, size = buffer[at:], 0, BLOCK


def _more(text: io.TextIOWrapper, name: str, size: int) -> str:
    try:
        return text.read(size)
    except UnicodeDecodeError as error:
        raise damaged(name, f"is no UTF-8 text: {error.reason}") from error


def _csv(stream: io.BufferedReader, name: str, delimiter: str) -> Iterator[Item]:
    csv.field_size_limit(LONGEST_ITEM)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        reader, line = csv.DictReader(text, delimiter=delimiter, strict=True), 1
        try:
            names = reader.fieldnames or []
            if len(set(names)) != len(names):
                raise damaged(name, f"has two columns of the same name in its first line: {', '.join(names)}")
            line = reader.line_num + 1
            for row in reader:
                place = f"{name} line {line}"
                if None in row:
                    yield Item(place, problem=f"has more fields than the {len(names)} columns of the first line")
                else:
                    yield Item(place, {key: value for key, value in row.items() if value is not None})
                line = reader.line_num + 1
        except csv.Error as error:
            yield Item(f"{name} line {line}", problem=f"is no CSV: {error}")
        except UnicodeDecodeError as error:
            raise damaged(name, f"is no UTF-8 text after line {reader.line_num}: {error.reason}") from error


def _parquet(stream: io.BufferedReader, name: str) -> Iterator[Item]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    if isinstance(stream, _Unpacked):
        raise damaged(name, "is a compressed parquet file: parquet compresses by itself, store it as it is")
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Item(f"{name} row {number}", row)
    except pyarrow.ArrowException as error:
        raise damaged(name, f"cannot be read as parquet, it is damaged or cut off ({error})") from error


def quote(content: bytes) -> str:
    """The beginning of what was found, for a message."""
    text = content.decode("utf-8", errors="replace").strip()
    return repr(text if len(text) <= 60 else text[:59] + "…")
