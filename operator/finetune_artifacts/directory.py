"""Store objects in a directory, for a training on a workstation.

A file is complete as soon as it exists: it is written under another name, flushed to the disk, then renamed.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.uris import DirectoryUri, StorageUri
from finetune_artifacts.digests import digest_of_file
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.storage import ObjectInfo, ProgressCallback

WORK = ".work"
"""Subdirectory for unfinished files. It is not listed, and may be deleted while nobody writes."""


@dataclass(frozen=True)
class DirectoryStorage:
    """A ``Storage`` in a directory, which is the root of its addresses."""

    purpose: Purpose
    endpoint: str = "this machine"

    def check_root(self, uri: StorageUri) -> None:
        """Create the directory if it does not exist."""
        with self._explain(DirectoryUri(uri.root, "")):
            Path(uri.root).mkdir(parents=True, exist_ok=True)

    def head(self, uri: StorageUri) -> ObjectInfo | None:
        """Describe a file; None if it does not exist."""
        path = _path_of(uri)
        with self._explain(uri):
            return ObjectInfo(uri, path.stat().st_size, "") if path.is_file() else None

    def list_objects(self, prefix: StorageUri) -> list[ObjectInfo]:
        """Describe every file below ``prefix``, in the order of their keys."""
        root = Path(prefix.root)
        with self._explain(prefix):
            files = [path for path in _path_of(prefix).rglob("*") if path.is_file()]
            sizes = sorted((path.relative_to(root).as_posix(), path.stat().st_size) for path in files)
        return [
            ObjectInfo(DirectoryUri(prefix.root, key), size, "")
            for key, size in sizes
            if not key.startswith(f"{WORK}/")
        ]

    def read(self, uri: StorageUri, max_bytes: int) -> bytes:
        """Read the first ``max_bytes`` bytes of a file, or all if it has fewer."""
        return self.read_range(uri, 0, max_bytes)

    def read_range(self, uri: StorageUri, start: int, length: int) -> bytes:
        """Read at most ``length`` bytes of a file, from byte ``start``."""
        with self._explain(uri), _path_of(uri).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def put_file(self, uri: StorageUri, path: Path, sha256: str) -> None:
        """Copy a file to ``uri``, and check that the copy is equal."""
        with self._explain(uri), _open_partial(uri) as partial:
            shutil.copyfile(path, partial)
            _flush(partial)
            if digest_of_file(partial) != sha256:
                raise ArtifactError(
                    self.purpose, Fault.CORRUPT, f"{uri} differs from what was written, {sha256}: check the disk"
                )
            partial.replace(_path_of(uri))
            _flush(_path_of(uri).parent)

    def put_new(self, uri: StorageUri, content: bytes) -> bool:
        """Write a file unless there is one. Return whether it was written."""
        with self._explain(uri), _open_partial(uri) as partial:
            partial.write_bytes(content)
            _flush(partial)
            try:
                os.link(partial, _path_of(uri))
            except FileExistsError:
                return False
            _flush(_path_of(uri).parent)
        return True

    def is_superseded(self, info: ObjectInfo) -> bool:
        """Return False: attempts on a workstation do not overlap."""
        return False

    def delete(self, uri: StorageUri) -> bool:
        """Delete a file that may exist, and directories that are empty then. Return False: no old version is kept."""
        path = _path_of(uri)
        with self._explain(uri):
            path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == Path(uri.root):
                break
            # A directory that is not empty stays.
            with contextlib.suppress(OSError):
                parent.rmdir()
        return False

    def download(self, files: list[tuple[ObjectInfo, Path]], on_progress: ProgressCallback) -> None:
        """Copy files one after another."""
        total, copied_bytes = sum(info.size for info, _ in files), 0
        for info, path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._explain(info.uri):
                source = _path_of(info.uri).open("rb")
            with source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)
                copied_bytes += target.tell()
            on_progress(copied_bytes, total)

    def probe_write(self, prefix: StorageUri) -> bool:
        """Write and delete a small file. Return whether a second write leaves the first."""
        uri = prefix.child(f".write-probe-{uuid.uuid4().hex[:12]}")
        self.put_new(uri, b"probe")
        atomic = not self.put_new(uri, b"probe")
        self.delete(uri)
        return atomic

    @contextlib.contextmanager
    def _explain(self, uri: StorageUri) -> Iterator[None]:
        """Turn an OSError into an ArtifactError with a remedy."""
        try:
            yield
        except OSError as error:
            cause = error.strerror or type(error).__name__
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                fault, text = Fault.NO_OBJECT, f"{uri} does not exist: put it there, or correct the path"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                fault, text = Fault.DENIED, f"{uri} may not be read or written ({cause}): choose another directory"
            elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                fault, text = Fault.NO_SPACE, f"there is no space left for {uri} ({cause}): free some"
            else:
                fault, text = Fault.OTHER, f"{uri}: {cause}"
            raise ArtifactError(self.purpose, fault, text) from error


def _path_of(uri: StorageUri) -> Path:
    return Path(uri.root, uri.key)


@contextlib.contextmanager
def _open_partial(uri: StorageUri) -> Iterator[Path]:
    """Yield a temporary path on the same disk as ``uri``. A file that is left there at the end is deleted."""
    partial = Path(uri.root, WORK, "partial", uri.key.replace("/", "_"))
    partial.parent.mkdir(parents=True, exist_ok=True)
    _path_of(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
