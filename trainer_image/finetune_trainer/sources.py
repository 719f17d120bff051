"""Where a dataset's bytes come from: S3 or a mounted ConfigMap; read line by line for a look, or fetched whole for training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_api.reasons import Reason
from finetune_api.uris import ConfigMapUri, S3Uri, parse_uri
from finetune_artifacts.download import download_file
from finetune_artifacts.errors import Purpose
from finetune_artifacts.objects import read_lines
from finetune_trainer.failures import Failure
from finetune_trainer.settings import Settings


@dataclass(frozen=True)
class StartedFrom:
    """The adapter that the training goes on from, and the digest that it is pinned by."""

    directory: Path
    digest: str


@dataclass(frozen=True)
class Inputs:
    """The files that one attempt trains with, on the local disk."""

    model: Path
    model_commit: str | None
    dataset: Path
    validation: Path | None
    adapter: StartedFrom | None = None


def open_lines(settings: Settings, uri: str, field: str, patience_seconds: float) -> Iterator[bytes]:
    """The lines of a dataset file, fetched as they are asked for. Raises Failure and ArtifactError."""
    parsed = parse_uri(uri)
    if isinstance(parsed, S3Uri):
        yield from read_lines(settings.store(Purpose.DATASET, patience_seconds), parsed)
    else:
        with local(settings, uri, field).open("rb") as file:
            for line in file:
                yield line.rstrip(b"\r\n")


def fetch(settings: Settings, uri: str, field: str, path: Path, patience_seconds: float) -> Path:
    """A local copy of a dataset file: ``path``, or the mounted file itself. Raises Failure and ArtifactError."""
    parsed = parse_uri(uri)
    if not isinstance(parsed, S3Uri):
        return local(settings, uri, field)
    path.parent.mkdir(parents=True, exist_ok=True)
    download_file(settings.store(Purpose.DATASET, patience_seconds), parsed, path)
    return path


def local(settings: Settings, uri: str, field: str) -> Path:
    """The mounted file of ``configmap://name/key``. Raises Failure(DATASET_NOT_FOUND), which names the keys that are there."""
    parsed = parse_uri(uri)
    if not isinstance(parsed, ConfigMapUri):
        raise Failure(Reason.SPEC_INVALID, f"{uri!r} must be s3://bucket/key or configmap://name/key", field)
    directory = settings.mounts / "configmaps" / parsed.name
    path = directory / parsed.key
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
    raise Failure(Reason.DATASET_NOT_FOUND, f"ConfigMap {parsed.name!r} has no key {parsed.key!r}: {found}", field)
