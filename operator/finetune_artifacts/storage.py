"""Define the protocol ``Storage``, so that S3 and a directory are used in the same way.

This module must not know any implementation: ``s3`` and ``directory`` implement the protocol.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault, Purpose

SMALL_OBJECT_BYTES = 16 * 1024 * 1024
"""Largest object that ``read_object`` reads by default."""

ProgressCallback = Callable[[int, int], None]
"""Called from time to time with the number of bytes that have arrived, and the total."""


def ignore_progress(_done: int, _total: int) -> None:
    """Ignore the progress of a download."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a storage.

    Attributes:
        uri: Its address.
        size: Its size in bytes.
        etag: Its entity tag; empty in a directory.
        owner: The uid of the job that wrote it, if ``head`` found it in the metadata; None in a directory.
    """

    uri: StorageUri
    size: int
    etag: str
    owner: str | None = None


class Storage(Protocol):
    """Keeps objects at addresses. Every method raises ArtifactError if the storage refuses or does not answer.

    A new object is complete as soon as it exists.
    """

    @property
    def purpose(self) -> Purpose:
        """Return what the storage is used for, which decides the reason of an error."""
        ...

    @property
    def endpoint(self) -> str:
        """Return the name of the storage in messages."""
        ...

    def check_root(self, uri: StorageUri) -> None:
        """Check that the bucket exists and may be listed. A missing directory is created."""
        ...

    def head(self, uri: StorageUri) -> ObjectInfo | None:
        """Describe an object; None if it does not exist."""
        ...

    def list_objects(self, prefix: StorageUri) -> list[ObjectInfo]:
        """Describe every object below ``prefix``, in the order of their keys."""
        ...

    def read(self, uri: StorageUri, max_bytes: int) -> bytes:
        """Read the first ``max_bytes`` bytes of an object, or all if it has fewer."""
        ...

    def read_range(self, uri: StorageUri, start: int, length: int) -> bytes:
        """Read at most ``length`` bytes of an object, from byte ``start``."""
        ...

    def put_file(self, uri: StorageUri, path: Path, sha256: str) -> None:
        """Upload a file, and check that it arrived. ``sha256`` is the file's digest."""
        ...

    def put_new(self, uri: StorageUri, content: bytes) -> bool:
        """Write an object unless there is one. Return whether it was written."""
        ...

    def is_superseded(self, info: ObjectInfo) -> bool:
        """Return whether an attempt that this writer superseded wrote the object. It may then be replaced."""
        ...

    def delete(self, uri: StorageUri) -> bool:
        """Delete an object; one that does not exist is no error. Return whether the storage keeps an old version."""
        ...

    def download(self, files: list[tuple[ObjectInfo, Path]], on_progress: ProgressCallback) -> None:
        """Download objects into files. Raises OSError if the disk is full, for example."""
        ...

    def probe_write(self, prefix: StorageUri) -> bool:
        """Write and delete a small object below ``prefix``.

        Returns:
            Whether ``put_new`` is atomic: without that, two writers can replace each other's manifest.
        """
        ...


def missing_object_error(storage: Storage, uri: StorageUri) -> ArtifactError:
    """Return the error for an object that does not exist."""
    return ArtifactError(
        storage.purpose,
        Fault.NO_OBJECT,
        f"{uri} does not exist at {storage.endpoint}: put it there, or correct the address",
    )
