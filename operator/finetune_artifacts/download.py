"""Download files into a temporary directory, verify each against the manifest, then rename the directory.

So a directory appears complete and verified, or not at all.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, AdapterManifest, FileEntry
from finetune_api.uris import StorageUri
from finetune_artifacts.digests import digest_of, digest_of_file
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import ObjectInfo, ProgressCallback, Storage, ignore_progress, missing_object_error

log = logging.getLogger(__name__)
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"}
"""Endings of files that can run code when they are loaded."""


def download_adapter(storage: Storage, uri: StorageUri, digest: str, directory: Path) -> AdapterManifest:
    """Download the adapter below ``uri`` into a directory, with its manifest.json.

    Args:
        storage: Where from.
        uri: Prefix of the adapter's objects.
        digest: ``sha256:<hex>`` of its manifest.
        directory: Appears complete, or not at all. If it exists and its manifest has the digest, it stays as it is.

    Raises:
        ArtifactError: DIGEST_MISMATCH if a byte differs from the manifest, ADAPTER_UNSUPPORTED for pickled weights.
        OSError: If the disk is full, for example.
    """
    if (directory / MANIFEST_NAME).is_file():
        content = (directory / MANIFEST_NAME).read_bytes()
        _check_digest(storage, f"{uri.child(MANIFEST_NAME)} (in {directory})", content, digest)
        return AdapterManifest.model_validate_json(content)
    content = read_object(storage, uri.child(MANIFEST_NAME))
    _check_digest(storage, str(uri.child(MANIFEST_NAME)), content, digest)
    manifest = parse_adapter_manifest(storage, uri, content)
    refuse_unsafe_files(storage, uri, manifest.files, pickles=True)
    download_files(storage, uri, manifest.files, directory, extra={MANIFEST_NAME: content})
    return manifest


def _check_digest(storage: Storage, name: str, content: bytes, expected: str) -> None:
    digest = digest_of(content)
    if digest != expected:
        raise ArtifactError(
            storage.purpose,
            Fault.CORRUPT,
            f"{name} at {storage.endpoint} has {digest}, expected {expected}: "
            "it was changed after it was written, or the digest belongs to another adapter",
        )


def parse_adapter_manifest(storage: Storage, uri: StorageUri, content: bytes) -> AdapterManifest:
    """Parse the manifest of the adapter below ``uri``. Raises ArtifactError if it is invalid."""
    try:
        manifest = AdapterManifest.model_validate_json(content)
    except ValidationError as error:
        message = str(error.errors(include_url=False, include_input=False)[0]["msg"])
        raise _invalid_manifest_error(storage, uri, message) from error
    if not manifest.files:
        raise _invalid_manifest_error(storage, uri, "it names no files")
    return manifest


def _invalid_manifest_error(storage: Storage, uri: StorageUri, problem: str) -> ArtifactError:
    return ArtifactError(
        storage.purpose,
        Fault.CORRUPT,
        f"{uri.child(MANIFEST_NAME)} at {storage.endpoint} is no manifest of an adapter: {problem}",
    )


def refuse_unsafe_files(storage: Storage, uri: StorageUri, entries: Iterable[FileEntry], *, pickles: bool) -> None:
    """Refuse paths that lead out of the directory, and pickled files if ``pickles`` is set. Raises ArtifactError."""
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or {"..", "."} & set(entry.path.split("/")) or "\\" in entry.path:
            raise ArtifactError(
                storage.purpose,
                Fault.UNSAFE,
                f"{uri}: the manifest names {entry.path!r}, which leads out of the directory: refused",
            )
        if entry.path == MANIFEST_NAME:
            raise ArtifactError(storage.purpose, Fault.UNSAFE, f"{uri}: the manifest names itself: refused")
        if pickles and path.suffix.lower() in PICKLES:
            raise ArtifactError(
                storage.purpose,
                Fault.UNSAFE,
                f"{uri}: {entry.path} is a pickle, which can run code when it is loaded: save it as safetensors",
            )


def download_files(
    storage: Storage,
    uri: StorageUri,
    entries: list[FileEntry],
    directory: Path,
    extra: dict[str, bytes] | None = None,
    on_progress: ProgressCallback = ignore_progress,
) -> None:
    """Download the files of a manifest into a directory, which appears when each file is verified.

    Args:
        storage: Where from.
        uri: Prefix of the objects.
        entries: The files, as the manifest names them.
        directory: Replaced if it exists.
        extra: Content of further files, by their names.
        on_progress: Receives the number of bytes.

    Raises:
        ArtifactError: Also for a path that leads out of the directory.
        OSError: If the disk is full, for example.
    """
    refuse_unsafe_files(storage, uri, entries, pickles=False)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    partial.chmod(0o755)
    try:
        infos = {entry.path: _find_object(storage, uri.child(entry.path), entry) for entry in entries}
        storage.download([(info, partial / path) for path, info in infos.items()], on_progress)
        for entry in entries:
            _verify_file(storage, uri, entry, infos[entry.path], partial)
        for name, content in (extra or {}).items():
            (partial / name).write_bytes(content)
        _replace_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _find_object(storage: Storage, uri: StorageUri, entry: FileEntry) -> ObjectInfo:
    info = storage.head(uri)
    if info is None:
        raise ArtifactError(
            storage.purpose, Fault.CORRUPT, f"{uri} at {storage.endpoint} does not exist, but the manifest names it"
        )
    if info.size != entry.size_bytes:
        raise ArtifactError(
            storage.purpose,
            Fault.CORRUPT,
            f"{uri} at {storage.endpoint} has {info.size} bytes, the manifest says {entry.size_bytes}: "
            "it is incomplete, or was changed",
        )
    return info


def _verify_file(storage: Storage, uri: StorageUri, entry: FileEntry, info: ObjectInfo, directory: Path) -> None:
    path = directory / entry.path
    if digest_of_file(path) == entry.sha256:
        return
    log.warning("%s is not as the manifest says; downloading it once more", uri.child(entry.path))
    path.unlink()
    storage.download([(info, path)], ignore_progress)
    digest = digest_of_file(path)
    if digest != entry.sha256:
        raise ArtifactError(
            storage.purpose,
            Fault.CORRUPT,
            f"{uri.child(entry.path)} at {storage.endpoint} has {digest}, the manifest says {entry.sha256}: "
            "it was changed, or is damaged",
        )


def _replace_directory(partial: Path, directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


def download_file(
    storage: Storage, uri: StorageUri, path: Path, on_progress: ProgressCallback = ignore_progress
) -> ObjectInfo:
    """Download one object into a file, which appears complete. Raises ArtifactError."""
    info = storage.head(uri)
    if info is None:
        storage.check_root(uri)
        raise missing_object_error(storage, uri)
    partial = path.with_name(f".{path.name}.partial")
    try:
        storage.download([(info, partial)], on_progress)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return info
