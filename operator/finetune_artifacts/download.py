"""Files down from S3, or out of a directory: each verified against the manifest in a temporary directory, which is renamed only when it is whole."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from finetune_api.manifest import MANIFEST_NAME, AdapterManifest, FileEntry
from finetune_api.uris import S3Uri
from finetune_artifacts import directory as disk
from finetune_artifacts.digests import digest_of, digest_of_file
from finetune_artifacts.directory import Directory
from finetune_artifacts.errors import ArtifactError, Fault
from finetune_artifacts.objects import ObjectInfo, check_bucket, head, list_objects, missing, read_object
from finetune_artifacts.store import Place, Store, call

log = logging.getLogger(__name__)
CHUNK_BYTES = 32 * 1024 * 1024
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"}
"""Endings of files that can run code when they are loaded."""
MODEL_FILES = {".json", ".jsonl", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken"}
"""Endings of the files of a model directory that the trainer reads; anything else is not fetched."""
CODE = ".py"
"""Ending of the code that a model may bring, which is fetched only where it is trusted."""

Report = Callable[[int, int], None]
"""Told now and then how many bytes of how many are there."""


def _silent(_done: int, _total: int) -> None:
    return


def download_adapter(store: Place, uri: S3Uri, digest: str, directory: Path) -> AdapterManifest:
    """Fetch the adapter below ``uri`` whose manifest has the sha256 ``digest`` into ``directory``, with its manifest.json.

    ``directory`` appears at once and whole, or not at all; one that is there already is taken as it is, if its manifest has the
    digest. Raises ArtifactError: DIGEST_MISMATCH for any byte that is not as promised, ADAPTER_UNSUPPORTED for pickled weights.
    """
    if (directory / MANIFEST_NAME).is_file():
        content = (directory / MANIFEST_NAME).read_bytes()
        _check_digest(store, S3Uri(uri.bucket, f"{uri.key}/{MANIFEST_NAME} (in {directory})"), content, digest)
        return AdapterManifest.model_validate_json(content)
    content = read_object(store, uri.child(MANIFEST_NAME))
    _check_digest(store, uri.child(MANIFEST_NAME), content, digest)
    manifest = parse_adapter_manifest(store, uri, content)
    refuse_unsafe(store, uri, manifest.files, pickles=True)
    download_files(store, uri, manifest.files, directory, extra={MANIFEST_NAME: content})
    return manifest


def _check_digest(store: Place, place: S3Uri, content: bytes, digest: str) -> None:
    found = digest_of(content)
    if found != digest:
        raise ArtifactError(
            store.purpose,
            Fault.CORRUPT,
            f"{place} at {store.endpoint} has {found}, expected {digest}: it was changed after it was made, or the digest belongs to another adapter",
        )


def parse_adapter_manifest(store: Place, uri: S3Uri, content: bytes) -> AdapterManifest:
    """Parse the bytes of an adapter's manifest. Raises ArtifactError if they are none."""
    try:
        manifest = AdapterManifest.model_validate_json(content)
    except ValidationError as error:
        raise _no_manifest(store, uri, str(error.errors(include_url=False, include_input=False)[0]["msg"])) from error
    if not manifest.files:
        raise _no_manifest(store, uri, "it names no files")
    return manifest


def _no_manifest(store: Place, uri: S3Uri, why: str) -> ArtifactError:
    return ArtifactError(
        store.purpose,
        Fault.CORRUPT,
        f"{uri.child(MANIFEST_NAME)} at {store.endpoint} is no manifest of an adapter: {why}",
    )


def refuse_unsafe(store: Place, uri: S3Uri, entries: Iterable[FileEntry], *, pickles: bool) -> None:
    """Raise ArtifactError for paths that lead out of the directory and, where ``pickles`` is to be refused, for pickled files."""
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or {"..", "."} & set(entry.path.split("/")) or "\\" in entry.path:
            raise ArtifactError(
                store.purpose,
                Fault.UNSAFE,
                f"{uri}: the manifest names {entry.path!r}, which leads out of the directory: refused",
            )
        if entry.path == MANIFEST_NAME:
            raise ArtifactError(store.purpose, Fault.UNSAFE, f"{uri}: the manifest names itself: refused")
        if pickles and path.suffix.lower() in PICKLES:
            raise ArtifactError(
                store.purpose,
                Fault.UNSAFE,
                f"{uri}: {entry.path} is a pickle, which can run code when it is loaded: save it as safetensors",
            )


def download_files(
    store: Place,
    uri: S3Uri,
    entries: list[FileEntry],
    directory: Path,
    extra: dict[str, bytes] | None = None,
    report: Report = _silent,
) -> None:
    """Fetch the files of a manifest into a directory that appears only when each is verified; ``extra`` is written beside them.

    Raises ArtifactError, also for a path that leads out of the directory, and OSError when the local disk is full.
    """
    refuse_unsafe(store, uri, entries, pickles=False)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    partial.chmod(0o755)
    try:
        found = {entry.path: _expect(store, uri.child(entry.path), entry) for entry in entries}
        _fetch(store, [(info, partial / path) for path, info in found.items()], report)
        for entry in entries:
            _verify(store, uri, entry, found[entry.path], partial)
        for name, content in (extra or {}).items():
            (partial / name).write_bytes(content)
        _replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _expect(store: Place, uri: S3Uri, entry: FileEntry) -> ObjectInfo:
    info = head(store, uri)
    if info is None:
        raise ArtifactError(
            store.purpose, Fault.CORRUPT, f"{uri} at {store.endpoint} is not there, though the manifest names it"
        )
    if info.size != entry.size_bytes:
        raise ArtifactError(
            store.purpose,
            Fault.CORRUPT,
            f"{uri} at {store.endpoint} has {info.size} bytes, the manifest says {entry.size_bytes}: it is torn or was changed",
        )
    return info


def _verify(store: Place, uri: S3Uri, entry: FileEntry, info: ObjectInfo, directory: Path) -> None:
    path = directory / entry.path
    if digest_of_file(path) == entry.sha256:
        return
    log.warning("%s did not arrive as the manifest says; fetching it once more", uri.child(entry.path))
    path.unlink()
    _fetch(store, [(info, path)], _silent)
    found = digest_of_file(path)
    if found != entry.sha256:
        raise ArtifactError(
            store.purpose,
            Fault.CORRUPT,
            f"{uri.child(entry.path)} at {store.endpoint} has {found}, the manifest says {entry.sha256}: it was changed or is damaged",
        )


def _replace(partial: Path, directory: Path) -> None:
    """Put the finished directory in its place; an older one there, which was not whole, goes."""
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


def download_file(store: Place, uri: S3Uri, path: Path, report: Report = _silent) -> ObjectInfo:
    """Fetch one object into ``path``, through a temporary file beside it. Raises ArtifactError."""
    info = head(store, uri)
    if info is None:
        check_bucket(store, uri.bucket)
        raise missing(store, uri)
    partial = path.with_name(f".{path.name}.partial")
    try:
        _fetch(store, [(info, partial)], report)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return info


def download_model(store: Place, uri: S3Uri, directory: Path, report: Report = _silent, *, code: bool = False) -> None:
    """Fetch the files of a model's directory (configuration, tokenizer, safetensors; with ``code`` its Python files) that has no manifest. Raises ArtifactError."""
    found = list_model_files(store, uri, code=code)
    directory.mkdir(parents=True, exist_ok=True)
    start = len(uri.key) + 1 if uri.key else 0
    _fetch(store, [(info, directory / info.uri.key[start:]) for info in found], report)


def list_model_files(store: Place, uri: S3Uri, *, code: bool = False) -> list[ObjectInfo]:
    """The objects directly below ``uri`` that belong to a model. Raises ArtifactError: MODEL_NOT_FOUND, MODEL_UNSUPPORTED for pickles only."""
    start = len(uri.key) + 1 if uri.key else 0
    objects = {info.uri.key[start:]: info for info in list_objects(store, uri)}
    if "config.json" not in objects:
        raise missing(store, uri.child("config.json"))
    wanted = MODEL_FILES | {CODE} if code else MODEL_FILES
    names = [name for name in objects if "/" not in name and PurePosixPath(name).suffix in wanted]
    if not any(name.endswith(".safetensors") for name in names):
        raise ArtifactError(
            store.purpose,
            Fault.UNSAFE,
            f"{uri} has no *.safetensors file; found: {', '.join(sorted(objects)[:10])}: save the model with save_pretrained, which writes safetensors",
        )
    return [objects[name] for name in names]


def _fetch(store: Place, wanted: list[tuple[ObjectInfo, Path]], report: Report) -> None:
    """Fetch objects piece by piece, eight pieces at once; a piece that breaks off is fetched again."""
    total, done = sum(info.size for info, _ in wanted), 0
    if isinstance(store, Directory):
        for info, path in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            done += disk.fetch(store, info.uri, path)
            report(done, total)
        return
    pieces: list[tuple[ObjectInfo, Path, int]] = []
    for info, path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(info.size)
        pieces += [(info, path, start) for start in range(0, info.size, CHUNK_BYTES)]
    with ThreadPoolExecutor(8, thread_name_prefix="download") as pool:
        futures = [pool.submit(_fetch_piece, store, *piece) for piece in pieces]
        try:
            for future in futures:
                done += future.result()
                report(done, total)
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _fetch_piece(store: Store, info: ObjectInfo, path: Path, start: int) -> int:
    end = min(start + CHUNK_BYTES, info.size)

    def get() -> int:
        body = store.client.get_object(
            Bucket=info.uri.bucket, Key=info.uri.key, Range=f"bytes={start}-{end - 1}", IfMatch=info.etag
        )["Body"]
        position = start
        with path.open("r+b") as file:
            for block in body.iter_chunks(1024 * 1024):
                os.pwrite(file.fileno(), block, position)
                position += len(block)
        return position - start

    got = call(store, info.uri, get)
    if got != end - start:
        raise ArtifactError(
            store.purpose,
            Fault.CORRUPT,
            f"{info.uri} at {store.endpoint} ended after {start + got} of {info.size} bytes: it is torn",
        )
    return got
