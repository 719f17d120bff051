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
from finetune_artifacts.objects import open_object
from finetune_artifacts.storage import missing_object_error
from finetune_trainer.hub import client, dataset_files
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings


@dataclass(frozen=True)
class Part:
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
    fetch: Callable[[Path], Path]


@dataclass(frozen=True)
class Data:
    """The local files of a part, and its address for messages."""

    uri: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class StartedFrom:
    """The adapter that the training goes on from, the digest that it is pinned by, and the commit of the base that it was made for."""

    directory: Path
    digest: str
    base_revision: str | None


@dataclass(frozen=True)
class Inputs:
    """The files that one attempt trains with, on the local disk."""

    model: Path
    model_commit: str | None
    dataset: Data
    validation: Data | None
    adapter: StartedFrom | None = None
    general: Data | None = None
    """The text on which forgetting is measured."""


def parts(source: DatasetSource) -> tuple[Part, Part | None]:
    """The rows to train on and, where they have an address or a split of their own, the held-out ones."""
    train = Part(source.uri, source.split or "train", "spec.dataset.uri", "spec.dataset.split")
    held_out = source.validation
    if held_out is None or held_out.fraction is not None:
        return train, None
    return train, Part(
        held_out.uri or source.uri,
        held_out.split or "train",
        "spec.dataset.validation.uri",
        "spec.dataset.validation.split",
    )


def files(settings: Settings, part: Part, patience_seconds: float) -> list[DataFile]:
    """The files of a part, in the order in which they are read. Raises Failure and ArtifactError."""
    parsed = parse_uri(part.uri)
    match parsed:
        case HfUri():
            return _on_the_hub(settings, parsed, part)
        case S3Uri():
            return _in_s3(settings, parsed, patience_seconds)
        case ConfigMapUri():
            return [_local(_of_config_map(settings, parsed, part.uri_field))]
        case PvcUri():
            claim = (settings.mounts / "claims" / parsed.claim).resolve()
            path = (claim / parsed.path).resolve()
            if not path.is_relative_to(claim):
                raise Failure(Reason.SPEC_INVALID, f"{part.uri!r} leads out of the claim", part.uri_field)
            return _below(path, part)
        case FileUri():
            return _below(Path(parsed.path).expanduser(), part)


def fetch(settings: Settings, part: Part, directory: Path, patience_seconds: float) -> Data:
    """Local copies of a part's files below ``directory``; those that are local are taken where they are. Raises Failure and ArtifactError."""
    found = files(settings, part, patience_seconds)
    return Data(part.uri, tuple(file.fetch(directory / f"{number:05d}") for number, file in enumerate(found)))


def local_files(data: Data) -> list[DataFile]:
    """The fetched files, to be read."""
    return [_local(path) for path in data.files]


def _local(path: Path) -> DataFile:
    return DataFile(path.name, lambda: path.open("rb"), lambda _directory: path)


def _below(path: Path, part: Part) -> list[DataFile]:
    """A file, or all files of data in a directory and those below it."""
    if path.is_file():
        return [_local(path)]
    found = sorted(entry for entry in path.rglob("*") if entry.is_file() and dataset_files.is_data(entry.name))
    if found:
        return [_local(entry) for entry in found]
    nearest = path if path.is_dir() else path.parent
    there = sorted(entry.name for entry in nearest.iterdir())[:20] if nearest.is_dir() else []
    what = f"{nearest.name or nearest} has: {', '.join(there)}" if there else "there is nothing at its place"
    raise Failure(
        Reason.DATASET_NOT_FOUND, f"{part.uri} is no file, and no directory of data files: {what}", part.uri_field
    )


def _in_s3(settings: Settings, uri: S3Uri, patience_seconds: float) -> list[DataFile]:
    """An object, or all objects of data below a prefix."""
    store = settings.store(Purpose.DATASET, patience_seconds)
    info = store.head(uri)
    found = [info] if info else [item for item in store.list_objects(uri) if dataset_files.is_data(item.uri.key)]
    if not found:
        store.check_root(uri)
        raise missing_object_error(store, uri)

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


def _on_the_hub(settings: Settings, uri: HfUri, part: Part) -> list[DataFile]:
    source = settings.job.spec.dataset
    own = uri.repo == source.uri.partition("://")[2].strip("/")
    api = client.client(
        settings.hub_endpoint, settings.secret(source.secret_ref), client.DATASET, signed_in=settings.workstation
    )
    dataset = dataset_files.resolve(api, uri.repo, source.revision if own else None)
    names = dataset_files.split_files(dataset, source.name if own else None, part.split, part.split_field)
    return [
        DataFile(
            name,
            lambda name=name: dataset_files.open_file(api, dataset, name),  # type: ignore[misc]
            lambda directory, name=name: dataset_files.fetch(api, dataset, name, directory),  # type: ignore[misc]
        )
        for name in names
    ]


def _of_config_map(settings: Settings, uri: ConfigMapUri, field: str) -> Path:
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
