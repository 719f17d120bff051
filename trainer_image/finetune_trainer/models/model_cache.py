"""Keep models in a directory that all jobs share. Preflights write it, one at a time, and trainers read it.

The directory of a model has a digest of its address and of the versions of its files in its name. It is written as
``.<name>.partial``, from which the next job continues after a kill, and renamed when every file is verified. Its
manifest does not name the job that wrote it, so the same files have the same digest. Nothing is ever removed here.
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from finetune_api.finetunejob import CachedModel
from finetune_api.manifest import CachedFile, ModelManifest
from finetune_api.reasons import Reason
from finetune_api.sizes import format_size
from finetune_artifacts.digests import digest_of, digest_of_file
from finetune_artifacts.ranges import RangeReader, RemoteFile, count_missing_bytes, download_in_ranges
from finetune_trainer.runtime.failures import DISK_FULL_ERRNOS, Failure
from finetune_trainer.runtime.logs import log

FIELD = "spec.model.cache"
MODEL_MANIFEST = "finetune-manifest.json"
"""Manifest of a model in the cache; a model may have a manifest.json of its own."""
LOCKS = ".locks"
POLL_SECONDS = 2.0
SAY_SECONDS = 60.0
"""Seconds between two log lines of a preflight that waits or downloads."""
SAMPLES, SAMPLE_BYTES = 16, 64 * 1024
"""Number of blocks of a file that the quick check reads, and the size of each."""
SPARE_BYTES = 64 * 1024 * 1024
"""Free space that must remain on the volume."""
HASH_THREADS = 2


@dataclass(frozen=True)
class RemoteModel:
    """A model at its source: the hub or S3.

    Attributes:
        uri: Its address, for messages and the manifest.
        endpoint: The service that has it.
        revision: The commit of a hub model.
        files: The files that the trainer loads. Their version is ``sha256:…``, ``git:<sha1>``, or S3's entity tag.
        read: Reads a range of one of them.
    """

    uri: str
    endpoint: str
    revision: str | None
    files: list[RemoteFile]
    read: RangeReader

    @property
    def directory(self) -> str:
        """Return the name of its directory: readable, and different for different content."""
        files = sorted((file.name, file.size, file.version) for file in self.files)
        identity = [self.uri, self.endpoint, self.revision, *files]
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', self.uri)[:80].strip('-.')}-{digest}"

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.size for file in self.files)


def fill(cache: Path, model: RemoteModel, owner: str) -> CachedModel:
    """Download a model into the cache unless it is there, and return where it is.

    Args:
        cache: The directory of the cache.
        model: The model.
        owner: Name of the job, for the log of another job that waits for it.

    Raises:
        Failure: MODEL_CACHE_FAILED for a volume that is full, read-only or without locks, DIGEST_MISMATCH for a file
            that arrives damaged, MODEL_UNSUPPORTED for an unsafe file name, or the reason for which the hub refuses.
        ArtifactError: S3 fails or refuses.
    """
    _refuse_unsafe_names(model)
    try:
        if cached := _find(cache, model):
            return cached
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache, model, owner):
            # Another job may have downloaded it while this one waited.
            return _find(cache, model) or _download(cache, model)
    except OSError as error:
        raise _explain(error, cache, model) from error


def open_model(cache: Path, cached: CachedModel) -> tuple[Path, str | None]:
    """Return the directory and the commit of a model in the cache, after a quick check.

    Raises:
        Failure: MODEL_CACHE_FAILED: it differs from what the preflight recorded.
    """
    directory = cache / cached.directory
    content = _read_manifest(directory)
    manifest, problem = parse_manifest(content), None
    if manifest is None:
        problem = "it is missing"
    elif digest_of(content) != cached.digest:
        problem = f"its manifest has another digest than {cached.digest}, which the preflight recorded"
    else:
        problem = find_damage(directory, manifest)
    if manifest is None or problem:
        raise Failure(
            Reason.MODEL_CACHE_FAILED,
            f"the model in {cached.directory} of the cache cannot be used: {problem}. Was it removed or changed after "
            "the preflight, or is a hostPath not the same directory on every node? Create the job again: its preflight "
            "repairs the model",
            FIELD,
        )
    log.info("the model is read from the cache: %s, %s", cached.directory, format_size(cached.size_bytes))
    return directory, manifest.revision


def _read_manifest(directory: Path) -> bytes:
    path = directory / MODEL_MANIFEST
    return path.read_bytes() if path.is_file() else b""


def parse_manifest(content: bytes) -> ModelManifest | None:
    """Parse the manifest of a model; None if it is invalid."""
    try:
        return ModelManifest.model_validate_json(content)
    except ValidationError:
        return None


def find_damage(directory: Path, manifest: ModelManifest) -> str | None:
    """Find a file that differs from the manifest in its size or in one of a few blocks; None if there is none."""
    for entry in manifest.files:
        path = directory / entry.path
        if not path.is_file():
            return f"{entry.path} is missing"
        if path.stat().st_size != entry.size_bytes:
            return f"{entry.path} has {path.stat().st_size} bytes, the manifest says {entry.size_bytes}"
        if sample_digest(path) != entry.sample_sha256:
            return f"the content of {entry.path} differs from the manifest"
    return None


def sample_digest(path: Path) -> str:
    """Compute ``sha256:<hex>`` over blocks that are spread evenly over a file, including its first and last bytes."""
    last = max(path.stat().st_size - SAMPLE_BYTES, 0)
    starts = sorted({last * number // (SAMPLES - 1) for number in range(SAMPLES)})
    with path.open("rb") as file:
        return digest_of(b"".join(os.pread(file.fileno(), SAMPLE_BYTES, start) for start in starts))


def _find(cache: Path, model: RemoteModel) -> CachedModel | None:
    """Return a model that is complete; None if it must be downloaded."""
    directory = cache / model.directory
    content = _read_manifest(directory)
    manifest = parse_manifest(content)
    if manifest is None:
        return None
    if damage := find_damage(directory, manifest):
        log.warning("the model in %s is damaged: %s; it is downloaded again", directory, damage)
        return None
    log.info("the model is in the cache already: %s, %s", directory.name, format_size(model.size_bytes))
    return CachedModel(
        directory=directory.name, digest=digest_of(content), size_bytes=model.size_bytes, downloaded_bytes=0
    )


@contextmanager
def _lock(cache: Path, model: RemoteModel, owner: str) -> Iterator[None]:
    """Wait until no other job downloads this model. The kernel releases the lock of a process that is killed."""
    path = cache / LOCKS / model.directory
    path.parent.mkdir(exist_ok=True)
    _share(path.parent)
    with path.open("a+", encoding="utf-8") as file:
        _share(path)
        logged_at = None
        while not _try_lock(file.fileno()):
            if logged_at is None or time.monotonic() - logged_at >= SAY_SECONDS:
                logged_at = time.monotonic()
                file.seek(0)
                missing = count_missing_bytes(model.files, _partial(cache, model))
                log.info(
                    "waiting for FineTuneJob %s, which downloads the same model: %s of %s to go",
                    file.read().strip() or "of another preflight",
                    format_size(missing),
                    format_size(model.size_bytes),
                )
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(owner)
        file.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _partial(cache: Path, model: RemoteModel) -> Path:
    return cache / f".{model.directory}.partial"


def _download(cache: Path, model: RemoteModel) -> CachedModel:
    """Download what is missing, verify everything, and give the directory its name."""
    directory, partial = cache / model.directory, _partial(cache, model)
    partial.mkdir(exist_ok=True)
    _share(partial)
    missing = count_missing_bytes(model.files, partial)
    free = shutil.disk_usage(cache).free
    if missing + SPARE_BYTES > free:
        raise _full(cache, missing, free)
    log.info("downloading %s of %s into the cache", format_size(missing), format_size(model.size_bytes))
    entries = _fetch_and_verify(model, model.files, partial)
    content = ModelManifest(uri=model.uri, revision=model.revision, files=entries).model_dump_json(by_alias=True)
    (partial / MODEL_MANIFEST).write_text(content, encoding="utf-8")
    _flush(partial / MODEL_MANIFEST)
    _replace(partial, directory)
    return CachedModel(
        directory=directory.name,
        digest=digest_of(content.encode()),
        size_bytes=model.size_bytes,
        downloaded_bytes=missing,
    )


def _fetch_and_verify(
    model: RemoteModel, files: list[RemoteFile], directory: Path, *, again: bool = True
) -> list[CachedFile]:
    """Download files, and describe them. A file that differs from its source is downloaded once more."""
    logged_at = time.monotonic()

    def log_progress(received: int, total: int) -> None:
        nonlocal logged_at
        if time.monotonic() - logged_at >= SAY_SECONDS:
            logged_at = time.monotonic()
            log.info("%s of %s are in the cache", format_size(received), format_size(total))

    download_in_ranges(files, directory, model.read, log_progress)
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        entries = list(pool.map(lambda file: _describe(file, directory / file.name), files))
    damaged = [file for file, entry in zip(files, entries, strict=True) if not _is_original(file, entry, directory)]
    for file in damaged:
        (directory / file.name).unlink()
    if not damaged:
        return entries
    names = ", ".join(file.name for file in damaged)
    if not again:
        raise Failure(
            Reason.DIGEST_MISMATCH,
            f"the content of {names} of {model.uri} does not have the digest that {model.endpoint} reports: try again "
            "later, or upload the model again",
            "spec.model.uri",
        )
    log.warning("%s arrived damaged and is downloaded once more", names)
    repeated = {entry.path: entry for entry in _fetch_and_verify(model, damaged, directory, again=False)}
    return [repeated.get(entry.path, entry) for entry in entries]


def _is_original(file: RemoteFile, entry: CachedFile, directory: Path) -> bool:
    """Return whether a file has the digest that the hub reports. S3 reports none: its file counts as original."""
    kind, _, digest = file.version.partition(":")
    if kind == "git":
        content = (directory / file.name).read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == digest
    return kind != "sha256" or entry.sha256 == file.version


def _describe(file: RemoteFile, path: Path) -> CachedFile:
    return CachedFile(
        path=file.name, size_bytes=file.size, sha256=digest_of_file(path), sample_sha256=sample_digest(path)
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(partial: Path, directory: Path) -> None:
    """Give the directory its name. A damaged one is moved away first; its readers keep their open files."""
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    partial.rename(directory)
    _flush(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _share(path: Path) -> None:
    """Let the volume's group write too, because jobs may run as different users of it."""
    if path.stat().st_uid == os.getuid():
        path.chmod(path.stat().st_mode | 0o060 | (0o010 if path.is_dir() else 0))


def _refuse_unsafe_names(model: RemoteModel) -> None:
    """Check that no file's name leads out of its directory, or is the cache's own.

    Raises:
        Failure: MODEL_UNSUPPORTED: one does.
    """
    for file in model.files:
        parts = PurePosixPath(file.name).parts
        if file.name.startswith("/") or ".." in parts or file.name == MODEL_MANIFEST:
            message = f"{model.uri} has a file named {file.name!r}, which no model needs: rename it"
            raise Failure(Reason.MODEL_UNSUPPORTED, message, "spec.model.uri")


def _explain(error: OSError, cache: Path, model: RemoteModel) -> Failure | OSError:
    """Return the Failure for an error of the cache's file system."""
    if error.errno in DISK_FULL_ERRNOS:
        return _full(cache, count_missing_bytes(model.files, _partial(cache, model)), shutil.disk_usage(cache).free)
    if isinstance(error, PermissionError) or error.strerror == "Read-only file system":
        return Failure(
            Reason.MODEL_CACHE_FAILED,
            f"the cache cannot be written to as user {os.getuid()} ({error.strerror}): give the volume's directory to "
            "this user or its group, or use a claim that is not read-only",
            FIELD,
        )
    return Failure(
        Reason.MODEL_CACHE_FAILED,
        f"the cache does not work ({error.strerror or error}): it must be a directory on a file system with "
        "locks, such as NFS 4, CephFS or a disk",
        FIELD,
    )


def _full(cache: Path, missing: int, free: int) -> Failure:
    """Return the error of a full cache, with the largest models in it, which a person may remove."""
    models = [entry for entry in cache.iterdir() if entry.is_dir() and entry.name != LOCKS]
    sizes = {
        entry.name: sum(512 * file.stat().st_blocks for file in entry.rglob("*") if file.is_file()) for entry in models
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    content = ", ".join(f"{name} ({format_size(sizes[name])})" for name in largest) or "nothing"
    return Failure(
        Reason.MODEL_CACHE_FAILED,
        f"the cache is full: the model needs {format_size(missing)} more, and {format_size(free)} are free. Enlarge "
        f"the volume, or remove models that no job uses; it has: {content}",
        FIELD,
    )
