"""Download files into a temporary directory, verify them by the manifest, then rename the directory.

So a directory is complete and verified as soon as it exists.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, AdapterManifest, FileEntry, MergedManifest
from finetune_api.uris import StorageUri
from finetune_artifacts.digests import digest_of, digest_of_file
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import ObjectInfo, ProgressCallback, Storage, ignore_progress, missing_object_error

log = logging.getLogger(__name__)
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"}
"""Endings of files that can run code when they are loaded."""
Manifest = TypeVar("Manifest", AdapterManifest, MergedManifest)
MAX_FILES = 10_000
"""Maximum number of files of a directory. Each costs a request, and the largest models have some hundreds."""


def download_adapter(storage: Storage, uri: StorageUri, digest: str, directory: Path) -> AdapterManifest:
    """Download the adapter below ``uri`` into a directory, with its manifest.json. Raises as ``download_merged``."""
    return _download(storage, uri, digest, directory, AdapterManifest)


def download_merged(storage: Storage, uri: StorageUri, digest: str, directory: Path) -> MergedManifest:
    """Download the merged model below ``uri`` into a directory, with its manifest.json.

    Args:
        storage: The storage to download from.
        uri: Prefix of the model's objects.
        digest: ``sha256:<hex>`` of its manifest.
        directory: Directory to create. If it exists and its manifest has the digest, nothing is downloaded.

    Raises:
        ArtifactError: DIGEST_MISMATCH if a byte differs from the manifest, ADAPTER_UNSUPPORTED for pickled weights.
        OSError: The disk is full, for example.
    """
    return _download(storage, uri, digest, directory, MergedManifest)


def _download(storage: Storage, uri: StorageUri, digest: str, directory: Path, kind: type[Manifest]) -> Manifest:
    if (directory / MANIFEST_NAME).is_file():
        content = (directory / MANIFEST_NAME).read_bytes()
        _check_digest(storage, f"{uri.child(MANIFEST_NAME)} (in {directory})", content, digest)
        return kind.model_validate_json(content)
    content = read_object(storage, uri.child(MANIFEST_NAME))
    _check_digest(storage, str(uri.child(MANIFEST_NAME)), content, digest)
    manifest = _parse_manifest(storage, uri, content, kind)
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
    return _parse_manifest(storage, uri, content, AdapterManifest)


def _parse_manifest(storage: Storage, uri: StorageUri, content: bytes, kind: type[Manifest]) -> Manifest:
    try:
        manifest = kind.model_validate_json(content)
    except ValidationError as error:
        message = str(error.errors(include_url=False, include_input=False)[0]["msg"])
        raise _invalid_manifest_error(storage, uri, message, kind) from error
    if not manifest.files:
        raise _invalid_manifest_error(storage, uri, "it lists no files", kind)
    if len(manifest.files) > MAX_FILES:
        text = f"it lists {len(manifest.files)} files, and at most {MAX_FILES} are allowed"
        raise _invalid_manifest_error(storage, uri, text, kind)
    return manifest


def _invalid_manifest_error(
    storage: Storage, uri: StorageUri, problem: str, kind: type[AdapterManifest | MergedManifest]
) -> ArtifactError:
    title = "an adapter" if kind is AdapterManifest else "a merged model"
    return ArtifactError(
        storage.purpose,
        Fault.CORRUPT,
        f"{uri.child(MANIFEST_NAME)} at {storage.endpoint} is not the manifest of {title}: {problem}",
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
    """Download the files of a manifest, and create the directory when all are verified.

    Args:
        storage: The storage to download from.
        uri: Prefix of the objects.
        entries: The files that the manifest lists.
        directory: Directory to create, or to replace if it exists.
        extra: Content of further files, by their names.
        on_progress: Receives the number of bytes that have arrived, and the total.

    Raises:
        ArtifactError: The storage refuses, a file differs from the manifest, or a path leads out of the directory.
        OSError: The disk is full, for example.
    """
    refuse_unsafe_files(storage, uri, entries, pickles=False)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    partial.chmod(0o755)
    try:
        infos = {entry.path: _find_object(storage, uri.child(entry.path), entry) for entry in entries}
        _check_space(storage, uri, sum(info.size for info in infos.values()), partial)
        storage.download([(info, partial / path) for path, info in infos.items()], on_progress)
        for entry in entries:
            _verify_file(storage, uri, entry, infos[entry.path], partial)
        for name, content in (extra or {}).items():
            (partial / name).write_bytes(content)
        _replace_directory(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_space(storage: Storage, uri: StorageUri, size: int, directory: Path) -> None:
    """Check that the disk has room. A full disk makes the kubelet evict pods of the node."""
    free = shutil.disk_usage(directory).free
    if size > free:
        text = f"{uri} has {size:,} bytes, and the disk of {directory.parent} has {free:,} left: free some"
        raise ArtifactError(storage.purpose, Fault.NO_SPACE, text)


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
    log.warning("%s differs from the manifest; downloading it once more", uri.child(entry.path))
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
    """Download one object into a file, which is complete as soon as it exists. Raises ArtifactError."""
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
