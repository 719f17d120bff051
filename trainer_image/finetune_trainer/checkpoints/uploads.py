"""Write and upload checkpoints in a thread, so that the training waits neither for the disk nor for the storage."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_api.finetunejob import CheckpointStatus
from finetune_api.manifest import CheckpointManifest, FileEntry, Origin
from finetune_api.timestamps import current_timestamp
from finetune_api.uris import StorageUri
from finetune_artifacts.checkpoints import delete_superseded_runs, prune_checkpoints, upload_checkpoint
from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.storage import Storage
from finetune_trainer.checkpoints.run_fingerprint import RunFingerprint
from finetune_trainer.checkpoints.snapshot import Snapshot
from finetune_trainer.models import device

log = logging.getLogger(__name__)


@dataclass
class Pending:
    """A checkpoint that waits for its upload; ``snapshot`` is what is still to be written to ``directory``."""

    step: int
    total_steps: int
    directory: Path
    snapshot: Snapshot | None


class CheckpointUploader:
    """A thread that writes and uploads the newest checkpoint, and skips one if a newer one comes while it waits."""

    def __init__(
        self,
        store: Storage,
        checkpoints: StorageUri,
        origin: Origin,
        fingerprint: RunFingerprint,
        keep: int,
        scratch: Path,
        on_upload: Callable[[CheckpointStatus], None],
    ) -> None:
        """Start the thread.

        Args:
            store: The storage.
            checkpoints: The URI of the job's checkpoints.
            origin: The job.
            fingerprint: The run's fingerprint.
            keep: How many checkpoints stay in the storage.
            scratch: A directory for checkpoints that wait.
            on_upload: Called in the thread after each upload.
        """
        self.error: BaseException | None = None
        self._store, self._checkpoints, self._origin, self._keep = store, checkpoints, origin, keep
        self._run_uri, self._fingerprint = fingerprint.run_uri(checkpoints), fingerprint.digest
        self._scratch, self._on_upload = scratch, on_upload
        self._pending: Pending | None = None
        self._urgent = False
        self._busy = False
        self._written = True
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint-upload", daemon=True)
        self._thread.start()

    def submit(
        self, take_snapshot: Callable[[], Snapshot], extra: Mapping[str, bytes | Path], *, urgent: bool = False
    ) -> None:
        """Queue a checkpoint; returns at once if its snapshot is a copy, else when its files are written.

        Args:
            take_snapshot: Returns the state of the training. It is called when the one before is written, so that main
                memory holds one copy at a time.
            extra: More files by name: their content, or a path to link.
            urgent: Cancel an upload of an older checkpoint that is under way.
        """
        with self._changed:
            overtaken, self._pending = self._pending, None
            self._changed.wait_for(lambda: self._written or self.error)
        if overtaken:
            shutil.rmtree(overtaken.directory, ignore_errors=True)
        snapshot = take_snapshot()
        directory = self._scratch / f"step-{snapshot.step:08d}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, content in extra.items():
            (directory / name).parent.mkdir(exist_ok=True)
            if isinstance(content, Path):
                os.link(content, directory / name)
            else:
                (directory / name).write_bytes(content)
        if not snapshot.is_copy:
            snapshot.write(directory)
        with self._changed:
            self._pending = Pending(
                snapshot.step, snapshot.total_steps, directory, snapshot if snapshot.is_copy else None
            )
            self._urgent = urgent
            self._changed.notify_all()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until everything is uploaded; return False after ``seconds``. Raises the error of a failed upload."""
        is_done = self.settle(seconds)
        self.check()
        return is_done

    def settle(self, seconds: float | None) -> bool:
        """Wait as ``wait`` does, but raise nothing, for a caller that handles an error already."""
        with self._changed:
            return bool(
                self._changed.wait_for(lambda: self.error or not (self._pending or self._busy), timeout=seconds)
            )

    def check(self) -> None:
        """Raise the error of a failed upload, if there is one."""
        if self.error:
            raise self.error

    def close(self) -> None:
        """End the thread; waiting checkpoints are not uploaded any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=1)
        if device.has_gpu():
            torch.accelerator.empty_host_cache()  # else PyTorch keeps the pinned memory of the copies

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if self._closed or self._pending is None:
                    return
                pending, self._pending, self._urgent, self._busy = self._pending, None, False, True
                self._written = pending.snapshot is None
            error: BaseException | None = None
            try:
                self._write(pending)
                self._upload(pending)
            except BaseException as raised:  # noqa: BLE001 -- the training thread raises it
                error = raised
            shutil.rmtree(pending.directory, ignore_errors=True)
            with self._changed:
                self._busy, self._written = False, True
                # an upload that was given up for a newer checkpoint has not failed
                self.error = None if self._urgent else error
                self._changed.notify_all()
                if self.error:
                    return

    def _write(self, pending: Pending) -> None:
        if pending.snapshot is None:
            return
        pending.snapshot.write(pending.directory)
        with self._changed:
            pending.snapshot, self._written = None, True
            self._changed.notify_all()

    def _upload(self, pending: Pending) -> None:
        start = time.monotonic()

        def manifest(files: list[FileEntry]) -> CheckpointManifest:
            return CheckpointManifest(
                job=self._origin,
                step=pending.step,
                total_steps=pending.total_steps,
                fingerprint=self._fingerprint,
                created_at=current_timestamp(),
                files=files,
            )

        def stopped() -> bool:
            return self._closed or self._urgent

        uri = upload_checkpoint(self._store, self._run_uri, pending.step, pending.directory, manifest, stopped)
        log.info("checkpoint of step %d is in %s (%.1f s)", pending.step, uri, time.monotonic() - start)
        self._on_upload(CheckpointStatus(uri=str(uri), step=pending.step, saved_at=current_timestamp()))
        try:
            prune_checkpoints(self._store, self._run_uri, self._keep)
            for run in delete_superseded_runs(
                self._store, self._checkpoints, self._run_uri, pending.step, self._origin.uid
            ):
                log.info("deleted %s: this run, with other settings, is as far now", run)
        except ArtifactError as error:
            log.warning("old checkpoints could not be deleted: %s", error)
