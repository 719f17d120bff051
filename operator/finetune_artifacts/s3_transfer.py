"""Transfer whole files to and from S3: large ones in parts, several parts at a time."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from botocore.exceptions import ClientError

from finetune_api.uris import StorageUri
from finetune_artifacts.digests import checksum_of, composite_checksum
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.s3_connection import S3Connection
from finetune_artifacts.s3_errors import code_of
from finetune_artifacts.storage import ObjectInfo, ProgressCallback

log = logging.getLogger(__name__)
PART_BYTES = 16 * 1024 * 1024
"""Minimum size of the parts in which larger files are sent. A smaller file is one request."""
MAX_PARTS = 10_000
CHUNK_BYTES = 32 * 1024 * 1024
"""Size of the ranges in which objects are downloaded."""
UPLOAD_THREADS, DOWNLOAD_THREADS = 4, 8


@dataclass(frozen=True)
class Part:
    """A part of a file: its number from 1, its first byte, and its length in bytes."""

    number: int
    start: int
    length: int


class Condition(TypedDict, total=False):
    """The condition of a write: there is no such object (``*``), or it has this entity tag."""

    IfMatch: str
    IfNoneMatch: str


NO_CONDITION = Condition()


def upload_file(
    s3: S3Connection, uri: StorageUri, path: Path, sha256: str, condition: Condition = NO_CONDITION
) -> None:
    """Upload one file, and compare size and checksum with what S3 has. Raises ArtifactError."""
    size = path.stat().st_size
    parts = split_file(size)
    for attempt in (1, 2):
        checksum = (
            _put_at_once(s3, uri, path, condition) if len(parts) == 1 else _put_parts(s3, uri, path, parts, condition)
        )
        stored = s3.call(uri, lambda: s3.client.head_object(Bucket=uri.root, Key=uri.key, ChecksumMode="ENABLED"))
        if stored["ContentLength"] == size and stored.get("ChecksumSHA256", checksum) == checksum:
            return
        log.warning("%s differs from what was sent (attempt %d)", uri, attempt)
    raise ArtifactError(
        s3.purpose,
        Fault.CORRUPT,
        f"{uri} at {s3.endpoint} has {stored['ContentLength']} bytes, which are not the {size} bytes with {sha256} "
        "that were sent: check the storage",
    )


def split_file(size: int) -> list[Part]:
    """Return the parts in which a file of ``size`` bytes is sent."""
    length = max(PART_BYTES, -(-size // MAX_PARTS))
    starts = range(0, max(size, 1), length)
    return [Part(number, start, min(length, size - start)) for number, start in enumerate(starts, start=1)]


def _put_at_once(s3: S3Connection, uri: StorageUri, path: Path, condition: Condition) -> str:
    content = path.read_bytes()
    checksum = checksum_of(content)
    s3.call(
        uri,
        lambda: s3.client.put_object(
            Bucket=uri.root, Key=uri.key, Body=content, ChecksumSHA256=checksum, Metadata=s3.metadata, **condition
        ),
    )
    return checksum


def _put_parts(s3: S3Connection, uri: StorageUri, path: Path, parts: list[Part], condition: Condition) -> str:
    client = s3.client
    upload = s3.call(
        uri,
        lambda: client.create_multipart_upload(
            Bucket=uri.root, Key=uri.key, ChecksumAlgorithm="SHA256", Metadata=s3.metadata
        ),
    )["UploadId"]

    def put(part: Part) -> tuple[str, str]:
        with path.open("rb") as file:
            file.seek(part.start)
            content = file.read(part.length)
        checksum = checksum_of(content)
        answer = s3.call(
            uri,
            lambda: client.upload_part(
                Bucket=uri.root,
                Key=uri.key,
                UploadId=upload,
                PartNumber=part.number,
                Body=content,
                ChecksumSHA256=checksum,
            ),
        )
        return answer["ETag"], checksum

    try:
        with ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload") as pool:
            tags = list(pool.map(put, parts))
        s3.call(uri, lambda: _complete(s3, uri, upload, parts, tags, condition))
    except BaseException:
        _abort(s3, uri, upload)
        raise
    return composite_checksum([checksum for _, checksum in tags])


def _complete(
    s3: S3Connection,
    uri: StorageUri,
    upload: str,
    parts: list[Part],
    tags: list[tuple[str, str]],
    condition: Condition,
) -> None:
    try:
        s3.client.complete_multipart_upload(
            Bucket=uri.root,
            Key=uri.key,
            UploadId=upload,
            MultipartUpload={
                "Parts": [
                    {"PartNumber": part.number, "ETag": etag, "ChecksumSHA256": checksum}
                    for part, (etag, checksum) in zip(parts, tags, strict=True)
                ]
            },
            **condition,
        )
    except ClientError as error:
        # An earlier request may have completed the upload, and its answer was lost. The caller compares the checksum.
        if code_of(error) != "NoSuchUpload":
            raise


def _abort(s3: S3Connection, uri: StorageUri, upload: str) -> None:
    try:
        s3.client.abort_multipart_upload(Bucket=uri.root, Key=uri.key, UploadId=upload)
    except Exception as error:  # noqa: BLE001 -- the caller raises the error that ended the upload
        log.warning("the parts of %s could not be removed: %s", uri, type(error).__name__)


def read_unchanged_range(s3: S3Connection, info: ObjectInfo, start: int, length: int) -> bytes:
    """Read a part of an object that must not have changed since it was listed.

    Raises:
        ArtifactError: The object was replaced or is shorter, or the service refuses or does not answer.
    """

    def get() -> bytes:
        answer = s3.client.get_object(
            Bucket=info.uri.root, Key=info.uri.key, Range=f"bytes={start}-{start + length - 1}", IfMatch=info.etag
        )
        return answer["Body"].read()

    content = s3.call(info.uri, get)
    if len(content) != length:
        raise ArtifactError(
            s3.purpose,
            Fault.CORRUPT,
            f"{info.uri} at {s3.endpoint} ended after {start + len(content)} of {info.size} bytes: it is incomplete",
        )
    return content


def download_objects(s3: S3Connection, files: list[tuple[ObjectInfo, Path]], on_progress: ProgressCallback) -> None:
    """Download objects in ranges, several at a time. A range that breaks off is repeated."""
    total, received_bytes = sum(info.size for info, _ in files), 0
    ranges: list[tuple[ObjectInfo, Path, int]] = []
    for info, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(info.size)
        ranges += [(info, path, start) for start in range(0, info.size, CHUNK_BYTES)]
    with ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="download") as pool:
        futures = [pool.submit(_download_range, s3, *item) for item in ranges]
        try:
            for future in futures:
                received_bytes += future.result()
                on_progress(received_bytes, total)
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _download_range(s3: S3Connection, info: ObjectInfo, path: Path, start: int) -> int:
    end = min(start + CHUNK_BYTES, info.size)

    def get() -> int:
        body = s3.client.get_object(
            Bucket=info.uri.root, Key=info.uri.key, Range=f"bytes={start}-{end - 1}", IfMatch=info.etag
        )["Body"]
        position = start
        with path.open("r+b") as file:
            for block in body.iter_chunks(1024 * 1024):
                os.pwrite(file.fileno(), block, position)
                position += len(block)
        return position - start

    received = s3.call(info.uri, get)
    if received != end - start:
        raise ArtifactError(
            s3.purpose,
            Fault.CORRUPT,
            f"{info.uri} at {s3.endpoint} ended after {start + received} of {info.size} bytes: it is incomplete",
        )
    return received
