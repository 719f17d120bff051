"""Where a dataset's files are: the hub, S3, a claim, a ConfigMap or the workstation; looked at in place, or fetched for training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from finetune_api.dataset import DatasetSource
from finetune_api.reasons import Reason
from finetune_api.uris import ConfigMapUri, FileUri, HfUri, PvcUri, S3Uri, parse_uri
from finetune_artifacts.download import download_file
from finetune_artifacts.errors import Purpose
from finetune_artifacts.objects import check_bucket, head, list_objects, missing, open_object
from finetune_trainer.hub import client, dataset_files
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings


@dataclass(frozen=True)
class SplitSource:
    """The rows to train on, or those held out: their address, and the spec's fields that say so."""

    uri: str
    split: str
    uri_field: str
    split_field: str


@dataclass(frozen=True)
class DataFile:
    """One file: its name for messages, how it is opened where it is, and how it becomes a local one (below a directory, if it is none)."""

    name: str
    open: Callable[[], BinaryIO]
    download: Callable[[Path], Path]


@dataclass(frozen=True)
class LocalData:
    """The local files of a part, and its address for messages."""

    uri: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class DownloadedAdapter:
    """The adapter that the training goes on from, the digest that it is pinned by, and the commit of the base that it was made for."""

    directory: Path
    digest: str
    base_revision: str | None


@dataclass(frozen=True)
class Inputs:
    """The files that one attempt trains with, on the local disk."""

    model: Path
    model_commit: str | None
    dataset: LocalData
    validation: LocalData | None
    adapter: DownloadedAdapter | None = None
    forgetting_text: LocalData | None = None
    """The text on which forgetting is measured."""


def find_splits(source: DatasetSource) -> tuple[SplitSource, SplitSource | None]:
    """The rows to train on and, where they have an address or a split of their own, the held-out ones."""
    train = SplitSource(source.uri, source.split or "train", "spec.dataset.uri", "spec.dataset.split")
    held_out = source.validation
    if held_out is None or held_out.fraction is not None:
        return train, None
    return train, SplitSource(
        held_out.uri or source.uri,
        held_out.split or "train",
        "spec.dataset.validation.uri",
        "spec.dataset.validation.split",
    )


def list_files(settings: Settings, part: SplitSource, patience_seconds: float) -> list[DataFile]:
    """The files of a part, in the order in which they are read. Raises Failure and ArtifactError."""
    parsed = parse_uri(part.uri)
    match parsed:
        case HfUri():
            return _list_hub_files(settings, parsed, part)
        case S3Uri():
            return _list_s3_files(settings, parsed, patience_seconds)
        case ConfigMapUri():
            return [_local_file(_find_config_map_file(settings, parsed, part.uri_field))]
        case PvcUri():
            claim = (settings.mounts / "claims" / parsed.claim).resolve()
            path = (claim / parsed.path).resolve()
            if not path.is_relative_to(claim):
                raise Failure(Reason.SPEC_INVALID, f"{part.uri!r} leads out of the claim", part.uri_field)
            return _list_directory(path, part)
        case FileUri():
            return _list_directory(Path(parsed.path).expanduser(), part)


def download(settings: Settings, part: SplitSource, directory: Path, patience_seconds: float) -> LocalData:
    """Local copies of a part's files below ``directory``; those that are local are taken where they are. Raises Failure and ArtifactError."""
    found = list_files(settings, part, patience_seconds)
    return LocalData(part.uri, tuple(file.download(directory / f"{number:05d}") for number, file in enumerate(found)))


def list_local_files(data: LocalData) -> list[DataFile]:
    """The fetched files, to be read."""
    return [_local_file(path) for path in data.files]


def _local_file(path: Path) -> DataFile:
    return DataFile(path.name, lambda: path.open("rb"), lambda _directory: path)


def _list_directory(path: Path, part: SplitSource) -> list[DataFile]:
    """A file, or all files of data in a directory and those below it."""
    if path.is_file():
        return [_local_file(path)]
    found = sorted(entry for entry in path.rglob("*") if entry.is_file() and dataset_files.is_data_file(entry.name))
    if found:
        return [_local_file(entry) for entry in found]
    nearest = path if path.is_dir() else path.parent
    there = sorted(entry.name for entry in nearest.iterdir())[:20] if nearest.is_dir() else []
    what = f"{nearest.name or nearest} has: {', '.join(there)}" if there else "there is nothing at its place"
    raise Failure(
        Reason.DATASET_NOT_FOUND, f"{part.uri} is no file, and no directory of data files: {what}", part.uri_field
    )


def _list_s3_files(settings: Settings, uri: S3Uri, patience_seconds: float) -> list[DataFile]:
    """An object, or all objects of data below a prefix."""
    store = settings.store(Purpose.DATASET, patience_seconds)
    info = head(store, uri)
    found = [info] if info else [item for item in list_objects(store, uri) if dataset_files.is_data_file(item.uri.key)]
    if not found:
        check_bucket(store, uri.bucket)
        raise missing(store, uri)

    def fetched(place: S3Uri, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / place.key.rsplit("/", 1)[-1]
        download_file(store, place, path)
        return path

    return [
        DataFile(
            item.uri.key.rsplit("/", 1)[-1],
            lambda item=item: open_object(store, item),  # type: ignore[misc]
            lambda directory, item=item: fetched(item.uri, directory),  # type: ignore[misc]
        )
        for item in found
    ]


def _list_hub_files(settings: Settings, uri: HfUri, part: SplitSource) -> list[DataFile]:
    source = settings.job.spec.dataset
    own = uri.repo == source.uri.partition("://")[2].strip("/")
    api = client.open_client(
        settings.hub_endpoint, settings.secret(source.secret_ref), client.DATASET, signed_in=settings.workstation
    )
    dataset = dataset_files.resolve_dataset(api, uri.repo, source.revision if own else None)
    names = dataset_files.list_split_files(dataset, source.name if own else None, part.split, part.split_field)
    return [
        DataFile(
            name,
            lambda name=name: dataset_files.open_file(api, dataset, name),  # type: ignore[misc]
            lambda directory, name=name: dataset_files.download_file(api, dataset, name, directory),  # type: ignore[misc]
        )
        for name in names
    ]


def _find_config_map_file(settings: Settings, uri: ConfigMapUri, field: str) -> Path:
    """The mounted file of a key. Raises Failure(DATASET_NOT_FOUND), which names the keys that are there."""
    directory = settings.mounts / "configmaps" / uri.name
    path = directory / uri.key
    if path.is_file():
        return path
    keys = (
        sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        if directory.is_dir()
        else []
    )
    found = (
        f"its keys are: {', '.join(keys[:20])}"
        if keys
        else "there is no ConfigMap of this name in the job's namespace, or it has no such key"
    )
    raise Failure(Reason.DATASET_NOT_FOUND, f"ConfigMap {uri.name!r} has no key {uri.key!r}: {found}", field)
