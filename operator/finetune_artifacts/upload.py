"""Files up to S3, or into a directory: each verified, and a manifest last, so that nobody takes half a directory for a whole one."""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import ClientError

from finetune_api.base import Model
from finetune_api.manifest import MANIFEST_NAME, FileEntry
from finetune_api.uris import S3Uri
from finetune_artifacts import directory as disk
from finetune_artifacts.digests import checksum_of, composite_checksum, digest_of, digest_of_file
from finetune_artifacts.directory import Directory
from finetune_artifacts.errors import ArtifactError, Fault, code_of, status_of
from finetune_artifacts.objects import head, read_object
from finetune_artifacts.store import Place, Store, call

log = logging.getLogger(__name__)
PART_BYTES = 16 * 1024 * 1024
"""Files up to this size are one request; larger ones are parts of at least this size, of which S3 allows 10,000."""


@dataclass(frozen=True)
class Part:
    """A piece of a file: its number from 1, where it starts, and its length in bytes."""

    number: int
    start: int
    length: int


def upload_directory(
    store: Place, uri: S3Uri, directory: Path, stopped: Callable[[], bool] = lambda: False
) -> list[FileEntry]:
    """Upload every file of ``directory`` to below ``uri``, and return what a manifest has to say of them.

    Raises ArtifactError; also when ``stopped()`` turns true between two files, and when ``uri`` has a manifest already,
    because what lies below a manifest is never changed.
    """
    entries = [entry_of(directory, path) for path in _files(directory)]
    for entry in entries:
        if stopped():
            raise ArtifactError(store.purpose, Fault.OTHER, f"the upload to {uri} was stopped")
        if head(store, uri.child(MANIFEST_NAME)) is not None:
            raise _exists(store, uri.child(MANIFEST_NAME))
        upload_file(store, uri.child(entry.path), directory / entry.path, entry.sha256)
    return entries


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def entry_of(directory: Path, path: Path) -> FileEntry:
    """The manifest's line for one file of ``directory``."""
    relative = path.relative_to(directory).as_posix()
    return FileEntry(path=relative, size_bytes=path.stat().st_size, sha256=digest_of_file(path))


def upload_file(store: Place, uri: S3Uri, path: Path, sha256: str) -> None:
    """Upload one file and see that it is there as it is here. Raises ArtifactError."""
    if isinstance(store, Directory):
        return disk.put_file(store, uri, path, sha256)
    size = path.stat().st_size
    parts = split(size)
    for attempt in (1, 2):
        checksum = _put_whole(store, uri, path) if len(parts) == 1 else _put_parts(store, uri, path, parts)
        found = call(
            store, uri, lambda: store.client.head_object(Bucket=uri.bucket, Key=uri.key, ChecksumMode="ENABLED")
        )
        if found["ContentLength"] == size and found.get("ChecksumSHA256", checksum) == checksum:
            return
        log.warning("%s is not what was sent (attempt %d)", uri, attempt)
    raise ArtifactError(
        store.purpose,
        Fault.CORRUPT,
        f"{uri} at {store.endpoint} has {found['ContentLength']} bytes, which are not the {size} bytes with {sha256} that were sent: check the storage",
    )


def split(size: int) -> list[Part]:
    """The parts in which a file of ``size`` bytes is sent."""
    length = max(PART_BYTES, -(-size // 10_000))
    starts = range(0, max(size, 1), length)
    return [Part(number, start, min(length, size - start)) for number, start in enumerate(starts, start=1)]


def _put_whole(store: Store, uri: S3Uri, path: Path) -> str:
    content = path.read_bytes()
    checksum = checksum_of(content)
    call(
        store,
        uri,
        lambda: store.client.put_object(Bucket=uri.bucket, Key=uri.key, Body=content, ChecksumSHA256=checksum),
    )
    return checksum


def _put_parts(store: Store, uri: S3Uri, path: Path, parts: list[Part]) -> str:
    client = store.client
    upload = call(
        store, uri, lambda: client.create_multipart_upload(Bucket=uri.bucket, Key=uri.key, ChecksumAlgorithm="SHA256")
    )["UploadId"]

    def put(part: Part) -> tuple[str, str]:
        with path.open("rb") as file:
            file.seek(part.start)
            content = file.read(part.length)
        checksum = checksum_of(content)
        answer = call(
            store,
            uri,
            lambda: client.upload_part(
                Bucket=uri.bucket,
                Key=uri.key,
                UploadId=upload,
                PartNumber=part.number,
                Body=content,
                ChecksumSHA256=checksum,
            ),
        )
        return answer["ETag"], checksum

    try:
        with ThreadPoolExecutor(4, thread_name_prefix="upload") as pool:
            done = list(pool.map(put, parts))
        call(store, uri, lambda: _complete(store, uri, upload, parts, done))
    except BaseException:
        _abort(store, uri, upload)
        raise
    return composite_checksum([checksum for _, checksum in done])


def _complete(store: Store, uri: S3Uri, upload: str, parts: list[Part], done: list[tuple[str, str]]) -> None:
    try:
        store.client.complete_multipart_upload(
            Bucket=uri.bucket,
            Key=uri.key,
            UploadId=upload,
            MultipartUpload={
                "Parts": [
                    {"PartNumber": part.number, "ETag": etag, "ChecksumSHA256": checksum}
                    for part, (etag, checksum) in zip(parts, done, strict=True)
                ]
            },
        )
    except ClientError as error:
        # an earlier try may have completed it, its answer lost: the check of size and checksum that follows decides
        if code_of(error) != "NoSuchUpload":
            raise


def _abort(store: Store, uri: S3Uri, upload: str) -> None:
    try:
        store.client.abort_multipart_upload(Bucket=uri.bucket, Key=uri.key, UploadId=upload)
    except Exception as error:  # noqa: BLE001 -- the error that made us give up is the one to tell
        log.warning("the parts of %s could not be removed: %s", uri, type(error).__name__)


def manifest_bytes(manifest: Model) -> bytes:
    """A manifest as it lies in S3; its sha256 is the digest by which the directory is known."""
    return (json.dumps(manifest.to_json(), indent=2, sort_keys=True) + "\n").encode()


def put_manifest(store: Place, uri: S3Uri, manifest: Model) -> str:
    """Write ``manifest.json`` below ``uri``, unless there is one, and return its digest.

    The very same manifest being there already is no error: then an earlier try succeeded, its answer lost.
    Raises ArtifactError (``Fault.EXISTS``) if another one is there.
    """
    content, place = manifest_bytes(manifest), uri.child(MANIFEST_NAME)
    if not _put_new(store, place, content) and read_object(store, place) != content:
        raise _exists(store, place)
    return digest_of(content)


def _put_new(store: Place, uri: S3Uri, content: bytes) -> bool:
    """Whether the object was written now; False if one was there."""
    if isinstance(store, Directory):
        return disk.put_new(store, uri, content)
    return call(store, uri, lambda: _put_new_in_s3(store, uri, content))


def _put_new_in_s3(store: Store, uri: S3Uri, content: bytes) -> bool:
    put, checksum = store.client.put_object, checksum_of(content)
    try:
        put(Bucket=uri.bucket, Key=uri.key, Body=content, ChecksumSHA256=checksum, IfNoneMatch="*")
    except ClientError as error:
        if status_of(error) == 412:
            return False
        if code_of(error) != "NotImplemented":
            raise
        if head(store, uri) is not None:
            return False
        put(Bucket=uri.bucket, Key=uri.key, Body=content, ChecksumSHA256=checksum)
    return True


def _exists(store: Place, place: S3Uri) -> ArtifactError:
    return ArtifactError(
        store.purpose,
        Fault.EXISTS,
        f"{place} is there already at {store.endpoint}, of another run: choose another prefix, or delete what lies there",
    )
