"""Download large files in ranges, so that a download that was killed can continue.

A file gets its name when it is complete. Until then it is ``<name>.partial``, and ``<name>.ranges`` lists the ranges
on the disk; each range is flushed before it is listed. This module does not know where the bytes come from.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from finetune_artifacts.storage import ProgressCallback

RANGE_BYTES = 32 * 1024 * 1024
THREADS = 8


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, of ``size`` bytes. ``name`` is below the directory; ``version`` changes with the content."""

    name: str
    size: int
    version: str


RangeReader = Callable[[RemoteFile, int, int], bytes]
"""Reads ``length`` bytes of a file from byte ``start``."""


@dataclass
class _Partial:
    """A file that is being downloaded, with the starts of the ranges on the disk, which ``journal`` lists."""

    path: Path
    journal: Path
    starts: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


def count_missing_bytes(files: Sequence[RemoteFile], directory: Path) -> int:
    """Count the bytes that are not on the disk yet."""
    missing = [file for file in files if not _is_complete(file, directory)]
    return sum(length for file in missing for _, length in _list_missing(file, _open_journal(file, directory)))


def download_in_ranges(
    files: Sequence[RemoteFile], directory: Path, read: RangeReader, on_progress: ProgressCallback
) -> None:
    """Download the files into ``directory``. Ranges that an earlier call has downloaded are kept.

    Args:
        files: Files to download. A file that exists with its name and size is not downloaded again.
        directory: Directory to write to. No other process may write there.
        read: Reads a range; it is called from several threads. An exception of it ends the download.
        on_progress: Receives the number of bytes that have arrived, and the total.

    Raises:
        OSError: The disk is full, for example.
    """
    total = sum(file.size for file in files)
    files = [file for file in files if not _is_complete(file, directory)]
    partials = {file.name: _open_journal(file, directory) for file in files}
    ranges = [(file, *span) for file in files for span in _list_missing(file, partials[file.name])]
    present = total - sum(length for _, _, length in ranges)
    for file in files:
        _prepare(file, partials[file.name])
    with ThreadPoolExecutor(THREADS, thread_name_prefix="range") as pool:
        futures = [pool.submit(_fetch, read, *item, partials[item[0].name]) for item in ranges]
        try:
            for future in futures:
                present += future.result()
                on_progress(present, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for file in files:
        _finish(directory / file.name, partials[file.name])


def _open_journal(file: RemoteFile, directory: Path) -> _Partial:
    """Read which ranges of a file are on the disk. A last line that a kill has cut off is ignored."""
    path = directory / file.name
    partial = _Partial(path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.ranges"))
    if partial.journal.is_file() and partial.path.is_file():
        version, *starts = partial.journal.read_text(encoding="utf-8").split("\n")[:-1] or [""]
        if version == f"{file.size} {file.version}":
            partial.starts = {int(start) for start in starts}
    return partial


def _is_complete(file: RemoteFile, directory: Path) -> bool:
    path = directory / file.name
    return path.is_file() and path.stat().st_size == file.size


def _list_missing(file: RemoteFile, partial: _Partial) -> list[tuple[int, int]]:
    """List start and length of the ranges that are not on the disk."""
    starts = range(0, file.size, RANGE_BYTES)
    return [(start, min(RANGE_BYTES, file.size - start)) for start in starts if start not in partial.starts]


def _prepare(file: RemoteFile, partial: _Partial) -> None:
    """Create the partial file and its journal, unless an earlier call did."""
    if partial.starts:
        return
    partial.path.parent.mkdir(parents=True, exist_ok=True)
    with partial.path.open("wb") as content:
        content.truncate(file.size)
    partial.journal.write_text(f"{file.size} {file.version}\n", encoding="utf-8")


def _fetch(read: RangeReader, file: RemoteFile, start: int, length: int, partial: _Partial) -> int:
    content = read(file, start, length)
    with partial.path.open("r+b") as target:
        _write_at(target, content, start)
        os.fdatasync(target.fileno())
    with partial.lock, partial.journal.open("a", encoding="utf-8") as journal:
        journal.write(f"{start}\n")
    return len(content)


def _write_at(target: BinaryIO, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(target.fileno(), view, start)
        view, start = view[written:], start + written


def _finish(path: Path, partial: _Partial) -> None:
    """Give a complete file its name."""
    if partial.path.is_file():
        with partial.path.open("rb") as content:
            os.fsync(content.fileno())
        partial.path.replace(path)
    partial.journal.unlink(missing_ok=True)
