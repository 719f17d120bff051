"""Find and delete the objects that one FineTuneJob wrote below its prefix, and none of another job.

The metadata of an object names its job. An object of an older version has no such metadata: it belongs to the job of
the manifest that lists it or, without a manifest, to the job that has the prefix for itself.
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
    """The part of an adapter's or a checkpoint's manifest that names the job and its files."""

    job: Origin
    files: list[FileEntry]
    trained: StoredFiles | None = None
    merged: StoredFiles | None = None


@dataclass(frozen=True)
class Deletion:
    """The result of a deletion.

    Attributes:
        deleted: Number of objects that were deleted.
        left: Number of objects that were not deleted.
        error: The first error; None if all objects were deleted.
        keeps_versions: Whether the bucket keeps old versions of the deleted objects.
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
        storage: The storage.
        directories: The prefixes below which jobs write.
        uid: The uid of the FineTuneJob.
        exclusive: Whether the job has the prefix for itself.

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
    default = uid if exclusive else None
    return [uri for uri in uris if (owners.get(str(uri)) or listed.get(str(uri)) or default) == uid]


def delete_all(storage: Storage, uris: list[StorageUri]) -> Deletion:
    """Delete objects, the manifests first, so that the remaining files never look complete. Raises nothing.

    If the storage refuses to delete an object, the others are still deleted. If it does not answer, the rest is left.
    """
    errors: list[ArtifactError] = []
    versions: list[bool] = []
    is_unreachable = threading.Event()

    def delete(uri: StorageUri) -> None:
        if is_unreachable.is_set():
            return
        try:
            versions.append(storage.delete(uri))
        except ArtifactError as error:
            errors.append(error)
            if error.fault is Fault.UNREACHABLE:
                is_unreachable.set()

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
    """Return the uid of the job for each address that a manifest lists; empty if the manifest is not ours."""
    try:
        manifest = AnyManifest.model_validate_json(read_object(storage, uri))
    except ValidationError:
        return {}
    directory = str(uri).removesuffix(f"/{MANIFEST_NAME}")
    groups = [StoredFiles(uri=directory, files=manifest.files), manifest.trained, manifest.merged]
    files = [f"{group.uri}/{file.path}" for group in groups if group is not None for file in group.files]
    return dict.fromkeys([str(uri), *files], manifest.job.uid)
