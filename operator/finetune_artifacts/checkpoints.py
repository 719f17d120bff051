"""Store checkpoints completely or not at all, find the newest complete one, and delete old ones.

Each run has a directory of its own, named after its fingerprint: two jobs with the same prefix never touch each other's
checkpoints.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, CheckpointManifest, FileEntry
from finetune_api.uris import StorageUri
from finetune_artifacts.download import download_files, refuse_unsafe_files
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import delete_objects, read_object
from finetune_artifacts.ownership import delete_all, find_objects_of
from finetune_artifacts.storage import Storage
from finetune_artifacts.upload import put_manifest, upload_directory

log = logging.getLogger(__name__)
_STEP = re.compile(r"/step-(\d{8,})/(.+)$")
_RUN = re.compile(r"/(run-[0-9a-f]{12})/step-\d{8,}/.+$")


@dataclass(frozen=True)
class StoredCheckpoint:
    """One checkpoint in a storage.

    Attributes:
        uri: Prefix of its objects.
        step: Its step.
        complete: Whether it has a manifest, which is not checked yet.
        objects: All objects below the prefix.
    """

    uri: StorageUri
    step: int
    complete: bool
    objects: tuple[StorageUri, ...]


def run_uri(checkpoints: StorageUri, fingerprint: str) -> StorageUri:
    """Return the prefix of one run's checkpoints: ``<checkpoints>/run-0123456789ab``."""
    return checkpoints.child(f"run-{fingerprint.removeprefix('sha256:')[:12]}")


def list_runs(storage: Storage, checkpoints: StorageUri) -> list[StorageUri]:
    """Return the prefixes of all runs that have a checkpoint below ``checkpoints``."""
    keys = (info.uri.key for info in storage.list_objects(checkpoints))
    names = {match[1] for key in keys if (match := _RUN.search(key))}
    return [checkpoints.child(name) for name in sorted(names)]


def checkpoint_uri(run: StorageUri, step: int) -> StorageUri:
    """Return the prefix of one checkpoint: ``<run>/step-00000010``."""
    return run.child(f"step-{step:08d}")


def list_checkpoints(storage: Storage, run: StorageUri) -> list[StoredCheckpoint]:
    """Return every checkpoint of a run, the newest first, incomplete ones included."""
    objects: dict[int, list[StorageUri]] = {}
    for info in storage.list_objects(run):
        if match := _STEP.search(info.uri.key):
            objects.setdefault(int(match[1]), []).append(info.uri)
    checkpoints = []
    for step in sorted(objects, reverse=True):
        uri = checkpoint_uri(run, step)
        complete = uri.child(MANIFEST_NAME) in objects[step]
        checkpoints.append(StoredCheckpoint(uri, step, complete, tuple(objects[step])))
    return checkpoints


def upload_checkpoint(
    storage: Storage,
    run: StorageUri,
    step: int,
    directory: Path,
    build_manifest: Callable[[list[FileEntry]], CheckpointManifest],
    stopped: Callable[[], bool] = lambda: False,
) -> StorageUri:
    """Upload a directory as the checkpoint of ``step``, its manifest last, and return its prefix.

    An older checkpoint of the same step is deleted first: if it were complete, the run would have resumed from it.

    Args:
        storage: The storage to upload to.
        run: Prefix of the run.
        step: The step.
        directory: The checkpoint's files.
        build_manifest: Builds the manifest from the entries of the files.
        stopped: Called before each file; returns whether to end the upload.

    Raises:
        ArtifactError: The storage refuses or does not answer, or ``stopped()`` is true.
    """
    uri = checkpoint_uri(run, step)
    for checkpoint in list_checkpoints(storage, run):
        if checkpoint.step == step:
            delete_checkpoint(storage, checkpoint)
    put_manifest(storage, uri, build_manifest(upload_directory(storage, uri, directory, stopped)))
    return uri


def download_newest_checkpoint(
    storage: Storage, run: StorageUri, fingerprint: str, directory: Path
) -> CheckpointManifest | None:
    """Download the newest complete checkpoint with this fingerprint; return its manifest, or None.

    Incomplete and damaged checkpoints, and those of other settings, are skipped with a warning.

    Raises:
        ArtifactError: The storage refuses or does not answer.
    """
    for checkpoint in list_checkpoints(storage, run):
        try:
            manifest = read_checkpoint_manifest(storage, checkpoint)
            if manifest.fingerprint != fingerprint:
                log.warning("%s was saved with other settings, data or base model: skipped", checkpoint.uri)
                continue
            download_files(storage, checkpoint.uri, manifest.files, directory)
        except ArtifactError as error:
            if error.fault not in (Fault.CORRUPT, Fault.NO_OBJECT, Fault.UNSAFE):
                raise
            log.warning("the checkpoint of step %d is incomplete, trying an older one: %s", checkpoint.step, error)
            continue
        return manifest
    return None


def read_checkpoint_manifest(storage: Storage, checkpoint: StoredCheckpoint) -> CheckpointManifest:
    """Read the manifest of a checkpoint, without checking the files that it lists.

    Raises:
        ArtifactError: CORRUPT if the checkpoint is incomplete or its manifest invalid.
    """
    uri = checkpoint.uri.child(MANIFEST_NAME)
    if not checkpoint.complete:
        raise ArtifactError(storage.purpose, Fault.CORRUPT, f"{uri} is missing: its upload was interrupted")
    try:
        manifest = CheckpointManifest.model_validate_json(read_object(storage, uri))
    except ValidationError as error:
        raise ArtifactError(storage.purpose, Fault.CORRUPT, f"{uri} is not the manifest of a checkpoint") from error
    if not manifest.files or manifest.step != checkpoint.step:
        raise ArtifactError(storage.purpose, Fault.CORRUPT, f"{uri} lists no files, or has another step")
    refuse_unsafe_files(storage, checkpoint.uri, manifest.files, pickles=False)
    return manifest


def prune_checkpoints(storage: Storage, run: StorageUri, keep: int) -> list[int]:
    """Delete all but the ``keep`` newest complete checkpoints, and return the deleted steps.

    Incomplete checkpoints are deleted too if they are older than the newest complete one. Raises ArtifactError.
    """
    checkpoints = list_checkpoints(storage, run)
    kept_steps = [checkpoint.step for checkpoint in checkpoints if checkpoint.complete][:keep]
    old = [checkpoint for checkpoint in checkpoints if kept_steps and checkpoint.step < kept_steps[0]]
    deleted = [checkpoint for checkpoint in old if checkpoint.step not in kept_steps]
    for checkpoint in deleted:
        delete_checkpoint(storage, checkpoint)
    return [checkpoint.step for checkpoint in deleted]


def delete_superseded_runs(
    storage: Storage, checkpoints: StorageUri, run: StorageUri, step: int, uid: str
) -> list[StorageUri]:
    """Delete the checkpoints of a job's other runs that have not passed ``step``; return their prefixes.

    A run is superseded by one with other settings, data or precision. A run with more steps is kept, because an
    attempt may still resume from it, for example on a node with the other precision. Other jobs' checkpoints stay.

    Args:
        storage: The storage.
        checkpoints: Prefix of the runs.
        run: The run that continues.
        step: The step of its newest complete checkpoint.
        uid: The uid of the job.

    Raises:
        ArtifactError: The storage refuses or does not answer.
    """
    superseded = []
    for candidate in list_runs(storage, checkpoints):
        stored = list_checkpoints(storage, candidate)
        newest = next((checkpoint for checkpoint in stored if checkpoint.complete), None)
        if candidate == run or (newest is not None and (newest.step > step or _read_uid(storage, newest) != uid)):
            continue
        if objects := find_objects_of(storage, [candidate], uid, exclusive=False):
            deletion = delete_all(storage, objects)
            if deletion.error is not None:
                raise deletion.error
            superseded.append(candidate)
    return superseded


def _read_uid(storage: Storage, checkpoint: StoredCheckpoint) -> str | None:
    """Read the uid of the job that wrote a checkpoint; None if its manifest is damaged."""
    try:
        return read_checkpoint_manifest(storage, checkpoint).job.uid
    except ArtifactError as error:
        if error.fault in (Fault.CORRUPT, Fault.NO_OBJECT, Fault.UNSAFE):
            return None
        raise


def delete_checkpoint(storage: Storage, checkpoint: StoredCheckpoint) -> None:
    """Delete a checkpoint, its manifest first: without it the rest is incomplete."""
    manifest = checkpoint.uri.child(MANIFEST_NAME)
    delete_objects(storage, sorted(checkpoint.objects, key=lambda uri: uri != manifest))
