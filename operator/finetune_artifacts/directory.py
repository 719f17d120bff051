"""A directory in place of a bucket: the few operations that the S3 protocol stands on, for a training on a workstation.

What is written appears at once and whole, or not at all: it is written beside, forced to the disk, and then renamed or linked.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.uris import S3Uri
from finetune_artifacts.digests import digest_of_file
from finetune_artifacts.errors import ArtifactError, Fault, Purpose

WORK = ".work"
"""Below the directory: what is not finished yet. It is no part of what lies there, and may be removed when nobody writes."""


@dataclass(frozen=True)
class LocalUri(S3Uri):
    """A file below a directory: ``bucket`` is the path of the directory, ``key`` that of the file below it."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.bucket, self.key)


@dataclass(frozen=True)
class Directory:
    """Stands where a ``Store`` does, for addresses that are ``LocalUri``."""

    purpose: Purpose
    endpoint: str = "this machine"


def prepare(place: Directory, bucket: str) -> None:
    """See that the directory is there. Raises ArtifactError."""
    with _explained(place, LocalUri(bucket, "")):
        Path(bucket).mkdir(parents=True, exist_ok=True)


def size_of(place: Directory, uri: S3Uri) -> int | None:
    """The size of a file in bytes; None if it is not there."""
    with _explained(place, uri):
        path = _path(uri)
        return path.stat().st_size if path.is_file() else None


def files(place: Directory, prefix: S3Uri) -> list[tuple[LocalUri, int]]:
    """Every file below ``prefix`` with its size, in the order of their keys."""
    root = Path(prefix.bucket)
    with _explained(place, prefix):
        found = [path for path in _path(prefix).rglob("*") if path.is_file()]
        keys = sorted((path.relative_to(root).as_posix(), path.stat().st_size) for path in found)
    return [(LocalUri(prefix.bucket, key), size) for key, size in keys if not key.startswith(f"{WORK}/")]


def read(place: Directory, uri: S3Uri, length: int) -> bytes:
    """At most ``length`` bytes of a file. Raises ArtifactError, also if it is not there."""
    with _explained(place, uri), _path(uri).open("rb") as file:
        return file.read(length)


def put_file(place: Directory, uri: S3Uri, source: Path, sha256: str) -> None:
    """Copy a file to ``uri``, and see that it arrived as it was."""
    with _explained(place, uri), _partial(uri) as partial:
        shutil.copyfile(source, partial)
        _to_disk(partial)
        if digest_of_file(partial) != sha256:
            raise ArtifactError(
                place.purpose, Fault.CORRUPT, f"{uri} is not what was written, {sha256}: check the disk"
            )
        partial.replace(_path(uri))
        _to_disk(_path(uri).parent)


def put_new(place: Directory, uri: S3Uri, content: bytes) -> bool:
    """Write a file, unless there is one: whether it was written now."""
    with _explained(place, uri), _partial(uri) as partial:
        partial.write_bytes(content)
        _to_disk(partial)
        try:
            os.link(partial, _path(uri))
        except FileExistsError:
            return False
        _to_disk(_path(uri).parent)
    return True


def delete(place: Directory, uri: S3Uri) -> None:
    """Remove a file, and the directories that are empty then; one that is not there is no error."""
    path = _path(uri)
    with _explained(place, uri):
        path.unlink(missing_ok=True)
    for parent in path.parents:
        if parent == Path(uri.bucket):
            return
        # one that is not empty, or not there, is to stay so
        with contextlib.suppress(OSError):
            parent.rmdir()


def fetch(place: Directory, uri: S3Uri, target: Path) -> int:
    """Copy the file at ``uri`` to ``target``, and return its size."""
    with _explained(place, uri):
        content = _path(uri).open("rb")
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file, 1024 * 1024)
        return file.tell()


def _path(uri: S3Uri) -> Path:
    return Path(uri.bucket, uri.key)


@contextlib.contextmanager
def _partial(uri: S3Uri) -> Iterator[Path]:
    """A file to write to, on the disk on which ``uri`` is."""
    partial = Path(uri.bucket, WORK, "partial", uri.key.replace("/", "_"))
    partial.parent.mkdir(parents=True, exist_ok=True)
    _path(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(place: Directory, uri: S3Uri) -> Iterator[None]:
    """What the disk refuses, as an ArtifactError that names the remedy."""
    try:
        yield
    except OSError as error:
        what = error.strerror or type(error).__name__
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            fault, text = Fault.NO_OBJECT, f"{uri} does not exist: put it there, or correct the path"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            fault, text = Fault.DENIED, f"{uri} may not be read or written ({what}): choose another directory"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fault, text = Fault.NO_SPACE, f"there is no space left for {uri} ({what}): free some"
        else:
            fault, text = Fault.OTHER, f"{uri}: {what}"
        raise ArtifactError(place.purpose, fault, text) from error
