"""Run ``finetune fetch``: download an adapter or a model from S3, also as an init container."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from finetune_api.base import S3Location
from finetune_api.manifest import MANIFEST_NAME, MergedManifest
from finetune_api.sizes import format_size
from finetune_api.uris import S3Uri, parse_s3_uri
from finetune_artifacts.digests import digest_of
from finetune_artifacts.download import download_adapter, download_merged
from finetune_artifacts.errors import ArtifactError, Purpose
from finetune_artifacts.models import download_model
from finetune_artifacts.objects import read_object
from finetune_artifacts.s3 import S3Storage, open_s3
from finetune_cli.errors import CliError

PATIENCE_SECONDS = 60.0
REPORT_BYTES = 8_000_000
"""Largest report. The kubelet keeps 10 MiB of a container's log."""


@dataclass(frozen=True)
class Source:
    """What to download, from which S3 service, with which credentials."""

    uri: str
    digest: str | None
    endpoint_url: str | None
    region: str | None
    secret_directory: Path | None


def fetch(source: Source, directory: Path, output: str) -> None:
    """Download an adapter or merged model, which have a manifest.json, or another model.

    Raises:
        CliError: The download failed. The directory of an adapter then does not exist.
    """
    try:
        uri = parse_s3_uri(source.uri)
        store = _open(source, Purpose.ADAPTER if source.digest else Purpose.MODEL)
        digest = _fetch(store, uri, source.digest, directory)
    except (ArtifactError, ValueError, OSError) as error:
        raise CliError(str(error)) from error
    total = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if output == "json":
        sys.stdout.write(
            json.dumps({"uri": source.uri, "directory": str(directory), "digest": digest, "sizeBytes": total}) + "\n"
        )
    else:
        sys.stdout.write(f"{source.uri} → {directory} ({format_size(total)}){f', {digest}' if digest else ''}\n")


def read(source: Source) -> None:
    """Write one small object to standard output. ``finetune report`` runs this in a pod. Raises CliError."""
    try:
        content = read_object(_open(source, Purpose.ADAPTER), parse_s3_uri(source.uri), REPORT_BYTES)
        sys.stdout.buffer.write(content)
    except (ArtifactError, ValueError) as error:
        raise CliError(str(error)) from error


def _open(source: Source, purpose: Purpose) -> S3Storage:
    location = S3Location(endpoint=source.endpoint_url, region=source.region)
    return open_s3(location, source.secret_directory, purpose, PATIENCE_SECONDS)


def _fetch(store: S3Storage, uri: S3Uri, digest: str | None, directory: Path) -> str | None:
    """Download, and return the digest of the adapter or merged model; None for a model without a manifest."""
    if digest is None and store.head(uri.child(MANIFEST_NAME)) is not None:
        digest = digest_of(read_object(store, uri.child(MANIFEST_NAME)))
    if digest is not None:
        file = directory / MANIFEST_NAME
        content = file.read_bytes() if file.is_file() else read_object(store, uri.child(MANIFEST_NAME))
        download = download_merged if _is_merged(content) else download_adapter
        download(store, uri, digest, directory)
        return digest
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("")
        download_model(
            store, uri, directory, lambda received, total: progress.update(task, completed=received, total=total)
        )
    return None


def _is_merged(manifest: bytes) -> bool:
    try:
        MergedManifest.model_validate_json(manifest)
    except ValidationError:
        return False
    return True
