"""List and open the files of a dataset, or download them for the training.

They are on the hub, in S3, on a claim, in a ConfigMap, or on the workstation.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from finetune_api.dataset import DatasetSource
from finetune_api.reasons import Reason
from finetune_api.uris import ConfigMapUri, FileUri, HfUri, PvcUri, S3Uri, parse_uri
from finetune_artifacts.download import download_file
from finetune_artifacts.errors import Purpose
from finetune_artifacts.objects import open_object
from finetune_artifacts.storage import missing_object_error
from finetune_trainer.data import directories
from finetune_trainer.hub import client, dataset_files
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings

CARD_BYTES = 1024 * 1024
"""How much of a dataset card is read at most."""


@dataclass(frozen=True)
class SplitSource:
    """The source of the training or the held-out rows, and the fields of the spec that name it."""

    uri: str
    split: str
    uri_field: str
    split_field: str
    held_out: bool = False


@dataclass(frozen=True)
class DataFile:
    """A file that can be opened or downloaded.

    Attributes:
        name: Its path in the dataset, for messages.
        open: Opens the file where it is.
        download: Returns a local copy below a directory, or the file itself if it is local.
        plain_text: The spec says that it is text: what only looks like another kind of file is read as plain text.
    """

    name: str
    open: Callable[[], BinaryIO]
    download: Callable[[Path], Path]
    plain_text: bool = False


@dataclass(frozen=True)
class LocalData:
    """The local files of a split, and its address for messages.

    ``names`` are the files' paths in the dataset, if they are not their names. ``plain_text`` is that of DataFile.
    """

    uri: str
    files: tuple[Path, ...]
    names: tuple[str, ...] = ()
    plain_text: bool = False


@dataclass(frozen=True)
class DownloadedAdapter:
    """The starting adapter: its directory, its digest, and the commit of the base it was trained on."""

    directory: Path
    digest: str
    base_revision: str | None


@dataclass(frozen=True)
class Inputs:
    """The local files that an attempt trains with."""

    model: Path
    model_commit: str | None
    dataset: LocalData
    validation: LocalData | None
    adapter: DownloadedAdapter | None = None
    forgetting_text: LocalData | None = None
    """The text on which forgetting is measured."""


def find_splits(source: DatasetSource) -> tuple[SplitSource, SplitSource | None]:
    """Return the source of the training rows and, if they have one of their own, of the held-out rows."""
    train = SplitSource(source.uri, source.split or "train", "spec.dataset.uri", "spec.dataset.split")
    held_out = source.validation
    if held_out is None or held_out.fraction is not None:
        return train, None
    return train, SplitSource(
        held_out.uri or source.uri,
        held_out.split or "train",
        "spec.dataset.validation.uri",
        "spec.dataset.validation.split",
        held_out=True,
    )


def list_files(
    settings: Settings, split: SplitSource, patience_seconds: float, note: Callable[[str], None] = log.info
) -> list[DataFile]:
    """List the files of a split in the order in which they are read.

    Args:
        settings: The attempt's settings.
        split: The split.
        patience_seconds: How long requests to S3 are repeated while it does not answer.
        note: Receives a text that names the files in a directory that are not read, if there are any.

    Raises:
        Failure: There are no such files.
        ArtifactError: S3 fails or refuses.
    """
    plain_text = settings.job.spec.dataset.format == "text"
    return [replace(file, plain_text=plain_text) for file in _list_files(settings, split, patience_seconds, note)]


def _list_files(
    settings: Settings, split: SplitSource, patience_seconds: float, note: Callable[[str], None]
) -> list[DataFile]:
    parsed = parse_uri(split.uri)
    match parsed:
        case HfUri():
            return _list_hub_files(settings, parsed, split)
        case S3Uri():
            return _list_s3_files(settings, parsed, split, patience_seconds, note)
        case ConfigMapUri():
            path = _find_config_map_file(settings, parsed, split.uri_field)
            return [_local_file(path, path.name)]
        case PvcUri():
            claim = (settings.mounts / "claims" / parsed.claim).resolve()
            path = (claim / parsed.path).resolve()
            if not path.is_relative_to(claim):
                raise Failure(Reason.SPEC_INVALID, f"{split.uri!r} leads out of the claim", split.uri_field)
            return _list_directory(path, split, note)
        case FileUri():
            return _list_directory(Path(parsed.path).expanduser(), split, note)


def download(settings: Settings, split: SplitSource, directory: Path, patience_seconds: float) -> LocalData:
    """Download the files of a split below ``directory``; local files are used where they are.

    Raises:
        Failure: There are no such files.
        ArtifactError: S3 fails or refuses.
    """
    files = list_files(settings, split, patience_seconds)
    return LocalData(
        split.uri,
        tuple(file.download(directory / f"{number:05d}") for number, file in enumerate(files)),
        tuple(file.name for file in files),
        plain_text=any(file.plain_text for file in files),
    )


def list_local_files(data: LocalData) -> list[DataFile]:
    """Return downloaded files, ready to be opened."""
    names = data.names or tuple(path.name for path in data.files)
    return [
        replace(_local_file(path, name), plain_text=data.plain_text)
        for path, name in zip(data.files, names, strict=True)
    ]


def _local_file(path: Path, name: str) -> DataFile:
    return DataFile(name, lambda: path.open("rb"), lambda _directory: path)


def _list_directory(path: Path, split: SplitSource, note: Callable[[str], None]) -> list[DataFile]:
    """List a file, or all data files in a directory and its subdirectories."""
    if path.is_file():
        return [_local_file(path, path.name)]
    names = [entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file()]
    card = path / "README.md"
    selected = directories.select_files(
        names,
        split.uri,
        split.split,
        split.uri_field,
        lambda: card.read_bytes()[:CARD_BYTES].decode(errors="replace"),
        held_out=split.held_out,
    )
    if selected:
        _note_left_out(split.uri, names, selected, note)
        return [_local_file(path / name, name) for name in selected]
    nearest = path if path.is_dir() else path.parent
    entries = sorted(entry.name for entry in nearest.iterdir())[:20] if nearest.is_dir() else []
    content = f"{nearest.name or nearest} has: {', '.join(entries)}" if entries else "nothing exists there"
    raise Failure(
        Reason.DATASET_NOT_FOUND,
        f"{split.uri} is neither a file nor a directory of data files: {content}",
        split.uri_field,
    )


def _list_s3_files(
    settings: Settings, uri: S3Uri, split: SplitSource, patience_seconds: float, note: Callable[[str], None]
) -> list[DataFile]:
    """List an object, or all data objects below a prefix."""
    store = settings.store(Purpose.DATASET, patience_seconds)
    info = store.head(uri)
    if info:
        objects_found = {uri.key.rsplit("/", 1)[-1]: info}
    else:
        objects = {item.uri.key.removeprefix(uri.key).lstrip("/"): item for item in store.list_objects(uri)}
        selected = directories.select_files(
            objects,
            split.uri,
            split.split,
            split.uri_field,
            lambda: store.read(objects["README.md"].uri, CARD_BYTES).decode(errors="replace"),
            held_out=split.held_out,
        )
        objects_found = {name: objects[name] for name in selected}
        _note_left_out(split.uri, objects, selected, note)
    if not objects_found:
        store.check_root(uri)
        raise missing_object_error(store, uri)

    def download_object(uri: S3Uri, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / uri.key.rsplit("/", 1)[-1]
        download_file(store, uri, path)
        return path

    return [
        DataFile(
            name,
            lambda item=item: open_object(store, item),  # type: ignore[misc]
            lambda directory, item=item: download_object(item.uri, directory),  # type: ignore[misc]
        )
        for name, item in objects_found.items()
    ]


def _list_hub_files(settings: Settings, uri: HfUri, split: SplitSource) -> list[DataFile]:
    source = settings.job.spec.dataset
    is_own_repo = uri.repo == source.uri.partition("://")[2].strip("/")
    api = client.open_client(
        settings.hub_endpoint, settings.secret(source.secret_ref), client.DATASET, signed_in=settings.workstation
    )
    dataset = dataset_files.resolve_dataset(api, uri.repo, source.revision if is_own_repo else None)
    names = dataset_files.list_split_files(
        dataset, source.name if is_own_repo else None, split.split, split.split_field
    )
    _note_left_out(split.uri, dataset.files, names, log.info)
    return [
        DataFile(
            name,
            lambda name=name: dataset_files.open_file(api, dataset, name),  # type: ignore[misc]
            lambda directory, name=name: dataset_files.download_file(api, dataset, name, directory),  # type: ignore[misc]
        )
        for name in names
    ]


def _note_left_out(uri: str, names: Iterable[str], selected: list[str], note: Callable[[str], None]) -> None:
    """Note which data files of a dataset are not read."""
    left_out = [name for name in dataset_files.list_data_files(names) if name not in set(selected)]
    if left_out:
        more = f" and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        note(
            f"{uri}: {len(selected)} of {len(selected) + len(left_out)} data files are read; left out by their names: "
            f"{', '.join(left_out[:10])}{more}"
        )


def _find_config_map_file(settings: Settings, uri: ConfigMapUri, field: str) -> Path:
    """Return the mounted file of a key.

    Raises:
        Failure: DATASET_NOT_FOUND with the keys that exist.
    """
    directory = settings.mounts / "configmaps" / uri.name
    path = directory / uri.key
    if path.is_file():
        return path
    keys = (
        sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        if directory.is_dir()
        else []
    )
    content = (
        f"its keys are: {', '.join(keys[:20])}"
        if keys
        else "there is no ConfigMap of this name in the job's namespace, or it has no such key"
    )
    raise Failure(Reason.DATASET_NOT_FOUND, f"ConfigMap {uri.name!r} has no key {uri.key!r}: {content}", field)
