"""Find and delete what one FineTuneJob wrote below its prefix, and nothing of another job.

An object tells in its metadata who wrote it. Of one that does not, because an older version wrote it, the manifest that
lists it tells. If there is none, it belongs to the job that has the prefix for itself.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.base import Lenient
from finetune_api.manifest import MANIFEST_NAME, FileEntry, Origin, StoredFiles
from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import Storage

THREADS = 16


class AnyManifest(Lenient):
    """The part of an adapter's or a checkpoint's manifest that tells whose its files are."""

    job: Origin
    files: list[FileEntry]
    trained: StoredFiles | None = None
    merged: StoredFiles | None = None


@dataclass(frozen=True)
class Deletion:
    """How a deletion went.

    Attributes:
        deleted: How many objects were deleted.
        left: How many were not.
        error: Why they were not; None if all are deleted.
        keeps_versions: The bucket keeps old versions of the deleted objects.
    """

    deleted: int
    left: int
    error: ArtifactError | None
    keeps_versions: bool


def find_objects_of(
    storage: Storage, directories: Iterable[StorageUri], uid: str, *, exclusive: bool
) -> list[StorageUri]:
    """Find the objects below these directories that a job wrote.

    Args:
        storage: Where.
        directories: The prefixes below which jobs write.
        uid: The uid of the FineTuneJob.
        exclusive: The job has the prefix for itself.

    Raises:
        ArtifactError: The storage refuses or does not answer.
    """
    uris = [info.uri for directory in directories for info in storage.list_objects(directory)]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="head") as pool:
        infos = list(pool.map(storage.head, uris))
    owners = {str(info.uri): info.owner for info in infos if info is not None}
    listed: dict[str, str] = {}
    for uri in uris:
        if _is_manifest(uri) and owners.get(str(uri)) is None:
            listed |= _read_owners(storage, uri)
    otherwise = uid if exclusive else None
    return [uri for uri in uris if (owners.get(str(uri)) or listed.get(str(uri)) or otherwise) == uid]


def delete_all(storage: Storage, uris: list[StorageUri]) -> Deletion:
    """Delete objects, the manifests first, so that nobody takes what is left for complete; raises nothing.

    An object that the storage refuses to delete does not keep the others. If the storage does not answer, the rest is
    left.
    """
    errors: list[ArtifactError] = []
    versions: list[bool] = []
    is_away = threading.Event()

    def delete(uri: StorageUri) -> None:
        if is_away.is_set():
            return
        try:
            versions.append(storage.delete(uri))
        except ArtifactError as error:
            errors.append(error)
            if error.fault is Fault.UNREACHABLE:
                is_away.set()

    with ThreadPoolExecutor(THREADS, thread_name_prefix="delete") as pool:
        for is_first in (True, False):
            list(pool.map(delete, [uri for uri in uris if _is_manifest(uri) is is_first]))
    return Deletion(
        deleted=len(versions),
        left=len(uris) - len(versions),
        error=errors[0] if errors else None,
        keeps_versions=any(versions),
    )


def _is_manifest(uri: StorageUri) -> bool:
    return uri.key.endswith(f"/{MANIFEST_NAME}")


def _read_owners(storage: Storage, uri: StorageUri) -> dict[str, str]:
    """Read the uid of the job that wrote a manifest and its files, by their addresses; empty if it is none of ours."""
    try:
        manifest = AnyManifest.model_validate_json(read_object(storage, uri))
    except ValidationError:
        return {}
    directory = str(uri).removesuffix(f"/{MANIFEST_NAME}")
    groups = [StoredFiles(uri=directory, files=manifest.files), manifest.trained, manifest.merged]
    files = [f"{group.uri}/{file.path}" for group in groups if group is not None for file in group.files]
    return dict.fromkeys([str(uri), *files], manifest.job.uid)
