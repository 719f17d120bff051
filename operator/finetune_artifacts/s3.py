"""Store objects in S3."""

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from botocore.exceptions import ClientError, IncompleteReadError

from finetune_api.base import S3Location
from finetune_api.uris import S3Uri, StorageUri
from finetune_artifacts.digests import checksum_of
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.s3_connection import OWNER_METADATA, PATIENCE_SECONDS, S3Connection, create_client
from finetune_artifacts.s3_errors import code_of, status_of
from finetune_artifacts.s3_transfer import download_objects, upload_file
from finetune_artifacts.storage import ObjectInfo, ProgressCallback


@dataclass(frozen=True)
class S3Storage(S3Connection):
    """A ``Storage`` in S3: the root of an address is its bucket."""

    def check_root(self, uri: StorageUri) -> None:
        """Check that the bucket exists and may be listed."""
        # A HEAD answer has no body and so no error code. A list distinguishes a missing bucket from a forbidden one.
        self.call(S3Uri(uri.root, ""), lambda: self.client.list_objects_v2(Bucket=uri.root, MaxKeys=1))

    def head(self, uri: StorageUri) -> ObjectInfo | None:
        """Describe an object; None if it does not exist."""
        try:
            answer = self.call(uri, lambda: self.client.head_object(Bucket=uri.root, Key=uri.key))
        except ArtifactError as error:
            if error.fault is Fault.NO_OBJECT:
                return None
            raise
        owner = answer["Metadata"].get(OWNER_METADATA)
        return ObjectInfo(uri, answer["ContentLength"], answer["ETag"], owner)

    def list_objects(self, prefix: StorageUri) -> list[ObjectInfo]:
        """Describe every object below ``prefix``, in the order of their keys."""
        start = f"{prefix.key}/" if prefix.key else ""

        def read_pages() -> list[ObjectInfo]:
            paginator = self.client.get_paginator("list_objects_v2")
            return [
                ObjectInfo(S3Uri(prefix.root, item["Key"]), item["Size"], item["ETag"])
                for page in paginator.paginate(Bucket=prefix.root, Prefix=start)
                for item in page.get("Contents", [])
                if not item["Key"].endswith("/")
            ]

        return self.call(prefix, read_pages)

    def read(self, uri: StorageUri, max_bytes: int) -> bytes:
        """Read the first ``max_bytes`` bytes of an object, or all if it has fewer."""

        def read_start() -> bytes:
            answer = self.client.get_object(Bucket=uri.root, Key=uri.key)
            content, expected = answer["Body"].read(max_bytes), min(answer["ContentLength"], max_bytes)
            # When a length is given, botocore does not notice that the body was cut off.
            if len(content) < expected:
                raise IncompleteReadError(actual_bytes=len(content), expected_bytes=expected)
            return content

        return self.call(uri, read_start)

    def read_range(self, uri: StorageUri, start: int, length: int) -> bytes:
        """Read at most ``length`` bytes of an object, from byte ``start``."""
        span = f"bytes={start}-{start + length - 1}"

        def read() -> bytes:
            return self.client.get_object(Bucket=uri.root, Key=uri.key, Range=span)["Body"].read()

        return self.call(uri, read)

    def put_file(self, uri: StorageUri, path: Path, sha256: str) -> None:
        """Upload a file, and check that it arrived."""
        upload_file(self, uri, path, sha256)

    def put_new(self, uri: StorageUri, content: bytes) -> bool:
        """Write an object unless there is one. Return whether it was written."""
        return self.call(uri, lambda: self._put_new(uri, content))

    def _put_new(self, uri: StorageUri, content: bytes) -> bool:
        checksum = checksum_of(content)
        put = partial(self.client.put_object, Metadata=self.metadata)
        try:
            put(Bucket=uri.root, Key=uri.key, Body=content, ChecksumSHA256=checksum, IfNoneMatch="*")
        except ClientError as error:
            if status_of(error) == 412:
                return False
            if code_of(error) != "NotImplemented":
                raise
            if self.head(uri) is not None:
                return False
            put(Bucket=uri.root, Key=uri.key, Body=content, ChecksumSHA256=checksum)
        return True

    def is_superseded(self, info: ObjectInfo) -> bool:
        """Return False: without a claim (``fence``) no object counts as superseded."""
        return False

    def replace(self, uri: StorageUri, content: bytes, etag: str) -> bool:
        """Write an object if it still has this entity tag. Return whether it was written."""
        put = partial(self.client.put_object, Bucket=uri.root, Key=uri.key, Body=content, Metadata=self.metadata)
        try:
            self.call(uri, lambda: put(ChecksumSHA256=checksum_of(content), IfMatch=etag))
        except ArtifactError as error:
            if error.fault is Fault.NO_CONDITIONS:
                self.call(uri, lambda: put(ChecksumSHA256=checksum_of(content)))
                return True
            if error.fault in (Fault.CHANGED, Fault.NO_OBJECT):
                return False
            raise
        return True

    def delete(self, uri: StorageUri) -> bool:
        """Delete an object; one that does not exist is no error. Return whether the bucket keeps its old versions."""
        answer = self.call(uri, lambda: self.client.delete_object(Bucket=uri.root, Key=uri.key))
        return answer.get("DeleteMarker", False)

    def download(self, files: list[tuple[ObjectInfo, Path]], on_progress: ProgressCallback) -> None:
        """Download objects into files."""
        download_objects(self, files, on_progress)

    def probe_write(self, prefix: StorageUri) -> bool:
        """Write and delete a small object. Return whether the service honours ``If-None-Match: *``."""
        uri = prefix.child(f".write-probe-{uuid.uuid4().hex[:12]}")
        try:
            self.call(uri, self._put_probe(uri))
            return not self.call(uri, self._put_probe(uri))
        finally:
            with contextlib.suppress(ArtifactError):
                self.delete(uri)

    def _put_probe(self, uri: StorageUri) -> Callable[[], bool]:
        """Return a request that writes the probe unless there is one, and returns whether it was written."""

        def put() -> bool:
            try:
                self.client.put_object(Bucket=uri.root, Key=uri.key, Body=b"probe", IfNoneMatch="*")
            except ClientError as error:
                if status_of(error) == 412:
                    return False
                if code_of(error) != "NotImplemented":
                    raise
            return True

        return put


def open_s3(
    location: S3Location | None,
    secret: Path | None,
    purpose: Purpose,
    patience_seconds: float = PATIENCE_SECONDS,
    owner: str = "",
) -> S3Storage:
    """Open a storage in S3. No request is sent yet.

    Args:
        location: Endpoint and region; None: AWS.
        secret: Directory of a mounted Secret; None: the pod's own identity.
        purpose: What the storage is used for.
        patience_seconds: How long requests are repeated while the service does not answer.
        owner: The uid of the job, for the metadata of the objects that it writes; empty: no metadata.

    Raises:
        ArtifactError: The Secret lacks a key.
    """
    client = create_client(location, secret, purpose)
    endpoint = location.endpoint if location else None
    return S3Storage(client, endpoint or client.meta.endpoint_url, purpose, patience_seconds, owner)
