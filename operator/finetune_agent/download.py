"""Download one version of an adapter, completely and checked, or not at all. Runs in a thread, because boto3 blocks."""

from pathlib import Path

from finetune_agent.compatibility import check_adapter
from finetune_agent.settings import Settings
from finetune_api.base import S3Location
from finetune_api.manifest import MANIFEST_NAME, GoldenSamples
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.uris import parse_s3_uri
from finetune_artifacts.digests import digest_of_file
from finetune_artifacts.download import download_adapter
from finetune_artifacts.errors import Purpose
from finetune_artifacts.s3 import open_s3
from finetune_engines.base import Engine


def download_version(
    settings: Settings,
    adapter: DesiredAdapter,
    version: DesiredVersion,
    directory: Path,
    engine: Engine,
    max_rank: int | None,
) -> GoldenSamples:
    """Download a version into ``directory`` unless it is there, and check that the engine can serve it.

    Raises:
        ArtifactError: If the download fails.
        IncompatibleError: If the engine cannot serve the adapter.
        OSError: If the disk is full, for example.
    """
    if not is_complete(directory, version.digest):
        location = S3Location(endpoint=adapter.endpoint, region=adapter.region)
        secret = settings.secrets_directory / adapter.secret if adapter.secret else None
        storage = open_s3(location, secret, Purpose.ADAPTER, settings.download_patience_seconds)
        download_adapter(storage, parse_s3_uri(version.uri), version.digest, directory)
    return check_adapter(directory, engine, max_rank)


def is_complete(directory: Path, digest: str) -> bool:
    """Return whether a directory holds the version: it appears with all files at once, and never changes."""
    manifest = directory / MANIFEST_NAME
    return manifest.is_file() and digest_of_file(manifest) == digest
