"""Checkpoints in S3, or in a directory: written whole or not at all, the newest whole one found again, old ones removed.

Each run has a directory of its own, called after its fingerprint: two jobs with the same prefix never touch each other's checkpoints.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, CheckpointManifest, FileEntry
from finetune_api.uris import S3Uri
from finetune_artifacts.download import download_files, refuse_unsafe
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import delete_objects, list_objects, read_object
from finetune_artifacts.store import Place
from finetune_artifacts.upload import put_manifest, upload_directory

log = logging.getLogger(__name__)
_STEP = re.compile(r"/step-(\d{8,})/(.+)$")
_RUN = re.compile(r"/(run-[0-9a-f]{12})/step-\d{8,}/.+$")


@dataclass(frozen=True)
class Stored:
    """One checkpoint's directory in S3; ``complete`` says that it has a manifest, not yet that the manifest tells the truth."""

    uri: S3Uri
    step: int
    complete: bool
    objects: tuple[S3Uri, ...]


def run_uri(checkpoints: S3Uri, fingerprint: str) -> S3Uri:
    """``<checkpoints>/run-0123456789ab``: where the checkpoints of one run lie, and none of another's."""
    return checkpoints.child(f"run-{fingerprint.removeprefix('sha256:')[:12]}")


def list_runs(store: Place, checkpoints: S3Uri) -> list[S3Uri]:
    """The directories of all runs that have left something below ``checkpoints``."""
    keys = (item.uri.key for item in list_objects(store, checkpoints))
    names = {match[1] for key in keys if (match := _RUN.search(key))}
    return [checkpoints.child(name) for name in sorted(names)]


def checkpoint_uri(run: S3Uri, step: int) -> S3Uri:
    """``<run>/step-00000010``."""
    return run.child(f"step-{step:08d}")


def list_checkpoints(store: Place, run: S3Uri) -> list[Stored]:
    """Every checkpoint of a run, the newest first, torn ones included."""
    found: dict[int, list[S3Uri]] = {}
    for item in list_objects(store, run):
        if match := _STEP.search(item.uri.key):
            found.setdefault(int(match[1]), []).append(item.uri)
    stored = []
    for step in sorted(found, reverse=True):
        uri = checkpoint_uri(run, step)
        stored.append(Stored(uri, step, uri.child(MANIFEST_NAME) in found[step], tuple(found[step])))
    return stored


def upload_checkpoint(
    store: Place,
    run: S3Uri,
    step: int,
    directory: Path,
    manifest: Callable[[list[FileEntry]], CheckpointManifest],
    stopped: Callable[[], bool] = lambda: False,
) -> S3Uri:
    """Upload ``directory`` as the checkpoint of ``step``, its manifest last. Raises ArtifactError.

    One of the same step that is there is removed first: the run would have resumed from it, were it whole.
    """
    uri = checkpoint_uri(run, step)
    for stored in list_checkpoints(store, run):
        if stored.step == step:
            delete_checkpoint(store, stored)
    put_manifest(store, uri, manifest(upload_directory(store, uri, directory, stopped)))
    return uri


def newest_checkpoint(store: Place, run: S3Uri, fingerprint: str, directory: Path) -> CheckpointManifest | None:
    """Fetch the newest complete checkpoint with this fingerprint into ``directory``; None if there is none.

    Torn ones, ones whose manifest does not tell the truth, and ones of other settings are passed over with a warning.
    Raises ArtifactError if S3 cannot be reached or refuses.
    """
    for stored in list_checkpoints(store, run):
        try:
            manifest = read_manifest(store, stored)
            if manifest.fingerprint != fingerprint:
                log.warning("%s was made with other settings, data or base model: passed over", stored.uri)
                continue
            download_files(store, stored.uri, manifest.files, directory)
        except ArtifactError as error:
            if error.fault not in (Fault.CORRUPT, Fault.NO_OBJECT, Fault.UNSAFE):
                raise
            log.warning("checkpoint of step %d is not whole, taking an older one: %s", stored.step, error)
            continue
        return manifest
    return None


def read_manifest(store: Place, stored: Stored) -> CheckpointManifest:
    """The manifest of a checkpoint. Raises ArtifactError (CORRUPT) for a torn one; whether the files are as it says is not looked at."""
    place = stored.uri.child(MANIFEST_NAME)
    if not stored.complete:
        raise ArtifactError(store.purpose, Fault.CORRUPT, f"{place} is missing: its upload was interrupted")
    try:
        manifest = CheckpointManifest.model_validate_json(read_object(store, place))
    except ValidationError as error:
        raise ArtifactError(store.purpose, Fault.CORRUPT, f"{place} is no manifest of a checkpoint") from error
    if not manifest.files or manifest.step != stored.step:
        raise ArtifactError(store.purpose, Fault.CORRUPT, f"{place} names no files, or another step")
    refuse_unsafe(store, stored.uri, manifest.files, pickles=False)
    return manifest


def prune_checkpoints(store: Place, run: S3Uri, keep: int) -> list[int]:
    """Keep the ``keep`` newest complete checkpoints; remove the others, and torn ones older than the newest complete one.

    Returns the removed steps. Raises ArtifactError.
    """
    stored = list_checkpoints(store, run)
    kept = [item.step for item in stored if item.complete][:keep]
    removed = [item for item in stored if kept and item.step < kept[0] and item.step not in kept]
    for item in removed:
        delete_checkpoint(store, item)
    return [item.step for item in removed]


def delete_checkpoint(store: Place, stored: Stored) -> None:
    """Remove a checkpoint, its manifest first: from then on nobody takes the rest for a whole one."""
    manifest = stored.uri.child(MANIFEST_NAME)
    delete_objects(store, sorted(stored.objects, key=lambda uri: uri != manifest))
