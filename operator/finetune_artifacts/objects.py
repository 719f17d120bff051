"""Single objects, in S3 or in a directory: look, list, read, delete, and try whether writing is allowed."""

import contextlib
import io
import uuid
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError, IncompleteReadError

from finetune_api.uris import S3Uri
from finetune_artifacts import directory
from finetune_artifacts.directory import Directory
from finetune_artifacts.errors import ArtifactError, Fault, code_of, status_of
from finetune_artifacts.store import Place, Store, call


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its address, size in bytes and entity tag."""

    uri: S3Uri
    size: int
    etag: str


def check_bucket(store: Place, bucket: str) -> None:
    """Raise ArtifactError if the bucket is not there or may not be listed. A directory is made."""
    if isinstance(store, Directory):
        return directory.prepare(store, bucket)
    uri = S3Uri(bucket, "")
    # a HEAD answer has no body, and so no error code: listing tells a missing bucket from a refused one
    call(store, uri, lambda: store.client.list_objects_v2(Bucket=bucket, MaxKeys=1))


def head(store: Place, uri: S3Uri) -> ObjectInfo | None:
    """The object, or None if it is not there. Raises ArtifactError otherwise."""
    if isinstance(store, Directory):
        size = directory.size_of(store, uri)
        return None if size is None else ObjectInfo(uri, size, "")
    try:
        found = call(store, uri, lambda: store.client.head_object(Bucket=uri.bucket, Key=uri.key))
    except ArtifactError as error:
        if error.fault is Fault.NO_OBJECT:
            return None
        raise
    return ObjectInfo(uri, found["ContentLength"], found["ETag"])


def list_objects(store: Place, prefix: S3Uri) -> list[ObjectInfo]:
    """Every object below ``prefix``, in the order of their keys."""
    if isinstance(store, Directory):
        return [ObjectInfo(uri, size, "") for uri, size in directory.files(store, prefix)]
    start = f"{prefix.key}/" if prefix.key else ""

    def pages() -> list[ObjectInfo]:
        paginator = store.client.get_paginator("list_objects_v2")
        return [
            ObjectInfo(S3Uri(prefix.bucket, item["Key"]), item["Size"], item["ETag"])
            for page in paginator.paginate(Bucket=prefix.bucket, Prefix=start)
            for item in page.get("Contents", [])
            if not item["Key"].endswith("/")
        ]

    return call(store, prefix, pages)


def read_object(store: Place, uri: S3Uri, limit: int = 16 * 1024 * 1024) -> bytes:
    """The bytes of a small object. Raises ArtifactError, also for one larger than ``limit`` bytes."""
    content = (
        directory.read(store, uri, limit + 1)
        if isinstance(store, Directory)
        else call(store, uri, lambda: _read(store, uri, limit + 1))
    )
    if len(content) > limit:
        raise ArtifactError(
            store.purpose,
            Fault.CORRUPT,
            f"{uri} is larger than {limit} bytes, which no such file is: check the address",
        )
    return content


def _read(store: Store, uri: S3Uri, most: int) -> bytes:
    """At most so many bytes of an object. Raises botocore's IncompleteReadError for fewer than there are: told how much to read, botocore itself takes them for all."""
    answer = store.client.get_object(Bucket=uri.bucket, Key=uri.key)
    content, expected = answer["Body"].read(most), min(answer["ContentLength"], most)
    if len(content) < expected:
        raise IncompleteReadError(actual_bytes=len(content), expected_bytes=expected)
    return content


def read_range(store: Store, uri: S3Uri, start: int, length: int) -> bytes:
    """At most ``length`` bytes of an object, from byte ``start``."""

    def read() -> bytes:
        span = f"bytes={start}-{start + length - 1}"
        return store.client.get_object(Bucket=uri.bucket, Key=uri.key, Range=span)["Body"].read()

    return call(store, uri, read)


class _Ranges(io.RawIOBase):
    """An object as a file that can be read from anywhere in it: what is asked for is fetched, and no more."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info, self._position = store, info, 0

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
        piece = read_range(self._store, self._info.uri, self._position, length)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def open_object(store: Store, info: ObjectInfo, block: int = 1024 * 1024) -> io.BufferedReader:
    """The object as a binary file, fetched block by block as it is read."""
    return io.BufferedReader(_Ranges(store, info), block)


def missing(store: Place, uri: S3Uri) -> ArtifactError:
    """The error for an object that is not there."""
    return ArtifactError(
        store.purpose,
        Fault.NO_OBJECT,
        f"{uri} does not exist at {store.endpoint}: put it there, or correct the address",
    )


def delete_objects(store: Place, objects: list[S3Uri]) -> None:
    """Delete objects one after another, in this order; one that is not there is no error."""
    for uri in objects:
        if isinstance(store, Directory):
            directory.delete(store, uri)
            continue
        call(store, uri, lambda uri=uri: store.client.delete_object(Bucket=uri.bucket, Key=uri.key))  # type: ignore[misc]


def probe_write(store: Place, prefix: S3Uri) -> bool:
    """Put and delete a small object below ``prefix``. Raises ArtifactError if that is refused.

    Returns whether the service honours ``If-None-Match: *``, which keeps two writers from replacing each other's manifest.
    """
    uri = prefix.child(f".write-probe-{uuid.uuid4().hex[:12]}")
    if isinstance(store, Directory):
        directory.put_new(store, uri, b"probe")
        conditional = not directory.put_new(store, uri, b"probe")
        directory.delete(store, uri)
        return conditional
    return _probe_s3(store, uri)


def _probe_s3(store: Store, uri: S3Uri) -> bool:
    def put() -> None:
        store.client.put_object(Bucket=uri.bucket, Key=uri.key, Body=b"probe", IfNoneMatch="*")

    def conditional() -> bool:
        try:
            put()
        except ClientError as error:
            if status_of(error) == 412:
                return True
            if code_of(error) == "NotImplemented":
                return False
            raise
        return False

    try:
        call(store, uri, conditional)
        return call(store, uri, conditional)
    finally:
        with contextlib.suppress(ArtifactError):
            delete_objects(store, [uri])
