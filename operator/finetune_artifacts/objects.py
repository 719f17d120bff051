"""Read and delete single objects of any storage."""

import io
from collections.abc import Iterable
from typing import Any

from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.storage import SMALL_OBJECT_BYTES, ObjectInfo, Storage


def read_object(storage: Storage, uri: StorageUri, limit: int = SMALL_OBJECT_BYTES) -> bytes:
    """Read a small object. Raises ArtifactError, also if it is larger than ``limit`` bytes."""
    content = storage.read(uri, limit + 1)
    if len(content) > limit:
        raise ArtifactError(
            storage.purpose,
            Fault.CORRUPT,
            f"{uri} is larger than {limit} bytes, more than such a file can have: check the address",
        )
    return content


def delete_objects(storage: Storage, uris: Iterable[StorageUri]) -> None:
    """Delete objects one after another, in this order; one that does not exist is no error."""
    for uri in uris:
        storage.delete(uri)


class _ObjectReader(io.RawIOBase):
    """An object as a file with random access. It reads only what is asked for."""

    def __init__(self, storage: Storage, info: ObjectInfo) -> None:
        self._storage, self._info, self._position = storage, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._info.size - self._position)
        if length <= 0:
            return 0
        content = self._storage.read_range(self._info.uri, self._position, length)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def open_object(storage: Storage, info: ObjectInfo, block: int = 1024 * 1024) -> io.BufferedReader:
    """Open an object as a binary file, which is read in blocks of ``block`` bytes."""
    return io.BufferedReader(_ObjectReader(storage, info), block)
