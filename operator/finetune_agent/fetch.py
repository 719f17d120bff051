"""Getting one version of an adapter onto the disk, whole and checked, or not at all. Runs in a thread: boto3 blocks."""

from pathlib import Path

from finetune_agent.compatibility import check_files
from finetune_agent.settings import Settings
from finetune_api.base import S3Location
from finetune_api.manifest import MANIFEST_NAME, GoldenSamples
from finetune_api.messages import DesiredAdapter, DesiredVersion
from finetune_api.uris import parse_s3_uri
from finetune_artifacts.digests import digest_of_file
from finetune_artifacts.download import download_adapter
from finetune_artifacts.errors import Purpose
from finetune_artifacts.store import open_store


def fetch(
    settings: Settings, adapter: DesiredAdapter, version: DesiredVersion, directory: Path, max_lora_rank: int | None
) -> GoldenSamples:
    """Download a version into ``directory``, if it is not there, and check that it can be served.

    Raises ArtifactError, IncompatibleError and OSError (a full disk).
    """
    if not is_whole(directory, version.digest):
        location = S3Location(endpoint=adapter.endpoint, region=adapter.region)
        secret = settings.secrets_directory / adapter.secret if adapter.secret else None
        store = open_store(location, secret, Purpose.ADAPTER, settings.download_patience_seconds)
        download_adapter(store, parse_s3_uri(version.uri), version.digest, directory)
    return check_files(directory, max_lora_rank)


def is_whole(directory: Path, digest: str) -> bool:
    """Whether the version lies there: its directory appears with all its files at once, and is never changed."""
    manifest = directory / MANIFEST_NAME
    return manifest.is_file() and digest_of_file(manifest) == digest
