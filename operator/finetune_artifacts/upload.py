"""Upload directories: each file is verified, and the manifest is written last.

So an incomplete directory has no manifest, and no reader mistakes it for a complete one.
"""

import json
from collections.abc import Callable
from pathlib import Path

from finetune_api.base import Model
from finetune_api.manifest import MANIFEST_NAME, FileEntry
from finetune_api.uris import StorageUri
from finetune_artifacts.digests import digest_of, digest_of_file
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import read_object
from finetune_artifacts.storage import Storage


def upload_directory(
    storage: Storage, uri: StorageUri, directory: Path, stopped: Callable[[], bool] = lambda: False
) -> list[FileEntry]:
    """Upload every file of a directory, and return their entries for the manifest.

    Args:
        storage: The storage to upload to.
        uri: Prefix of the objects.
        directory: The files.
        stopped: Called before each file; returns whether to end the upload.

    Raises:
        ArtifactError: The storage refuses, ``stopped()`` is true, or ``uri`` has a manifest already: nothing below a
            manifest is ever changed. The manifest of a superseded attempt is deleted instead.
    """
    entries = [describe_file(directory, path) for path in _list_files(directory)]
    for entry in entries:
        if stopped():
            raise ArtifactError(storage.purpose, Fault.OTHER, f"the upload to {uri} was stopped")
        manifest = storage.head(uri.child(MANIFEST_NAME))
        if manifest is not None:
            if not storage.is_superseded(manifest):
                raise _exists_error(storage, manifest.uri)
            storage.delete(manifest.uri)
        storage.put_file(uri.child(entry.path), directory / entry.path, entry.sha256)
    return entries


def describe_file(directory: Path, path: Path) -> FileEntry:
    """Return the manifest's entry for one file of a directory."""
    relative = path.relative_to(directory).as_posix()
    return FileEntry(path=relative, size_bytes=path.stat().st_size, sha256=digest_of_file(path))


def _list_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def manifest_bytes(manifest: Model) -> bytes:
    """Return the bytes of a manifest's file. Their sha256 is the digest of the directory."""
    return (json.dumps(manifest.to_json(), indent=2, sort_keys=True) + "\n").encode()


def put_manifest(storage: Storage, uri: StorageUri, manifest: Model) -> str:
    """Write ``manifest.json`` below ``uri`` unless there is one, and return its digest.

    An equal manifest that exists already is no error: an earlier request wrote it, and its answer was lost.

    Raises:
        ArtifactError: ``Fault.EXISTS``: another manifest exists.
    """
    content, manifest_uri = manifest_bytes(manifest), uri.child(MANIFEST_NAME)
    if not storage.put_new(manifest_uri, content) and read_object(storage, manifest_uri) != content:
        raise _exists_error(storage, manifest_uri)
    return digest_of(content)


def _exists_error(storage: Storage, uri: StorageUri) -> ArtifactError:
    return ArtifactError(
        storage.purpose,
        Fault.EXISTS,
        f"{uri} exists already at {storage.endpoint}, from another run: choose another prefix, or delete it",
    )
