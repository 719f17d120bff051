"""A connection to one S3 service with one set of credentials, patient with a service that is away for a while."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from finetune_api.base import S3Location
from finetune_api.messages import SECRETS_DIRECTORY
from finetune_api.uris import S3Uri
from finetune_artifacts.directory import Directory
from finetune_artifacts.errors import ArtifactError, Fault, Purpose, explain, fault_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 180.0
"""How long a service that does not answer only costs time."""
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


@dataclass(frozen=True)
class Store:
    """An S3 client, with what error messages need to know of it. Safe to use from several threads."""

    client: "S3Client"
    endpoint: str
    purpose: Purpose
    patience_seconds: float = PATIENCE_SECONDS


Place = Store | Directory
"""Where files are kept under the protocol of this package: in S3, or on a workstation in a directory."""


def secret_directory(name: str) -> Path:
    """Where a pod of ours finds the Secret ``name``: a file for each key."""
    return Path(SECRETS_DIRECTORY) / name


def open_store(
    location: S3Location | None,
    secret: Path | None,
    purpose: Purpose,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Store:
    """Connect to the S3 service at ``location`` (None: AWS) with the keys in the directory ``secret`` (None: the pod's own identity).

    Nothing is sent yet. Raises ArtifactError if the Secret lacks a key.
    """
    endpoint = location.endpoint if location else None
    region = location.region if location else None
    keys = _credentials(secret, purpose) if secret else {}
    client: S3Client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region or ("us-east-1" if endpoint else None),
        aws_access_key_id=keys.get(ACCESS_KEY),
        aws_secret_access_key=keys.get(SECRET_KEY),
        aws_session_token=keys.get(SESSION_TOKEN),
        config=Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=16,
            # we send SHA-256 ourselves; other S3 services stumble over boto3's additional CRC trailers
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else {},
        ),
    )
    return Store(client, endpoint or client.meta.endpoint_url, purpose, patience_seconds)


def missing_keys(secret: Path) -> list[str]:
    """Which of the two keys that S3 needs the Secret's directory lacks, or has empty."""
    return [key for key in (ACCESS_KEY, SECRET_KEY) if not _read(secret / key)]


def _credentials(secret: Path, purpose: Purpose) -> dict[str, str]:
    if missing := missing_keys(secret):
        found = "the Secret is not there" if not secret.is_dir() else "the Secret lacks them"
        raise ArtifactError(purpose, Fault.DENIED, f"Secret {secret.name!r} must have {' and '.join(missing)}: {found}")
    return {key: value for key in (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN) if (value := _read(secret / key))}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def call(store: Store, uri: S3Uri, action: Callable[[], T]) -> T:
    """Run one S3 call, again and again while the service does not answer, for ``store.patience_seconds``.

    Raises ArtifactError for every error of boto3.
    """
    deadline = time.monotonic() + store.patience_seconds
    delay = 0.5
    while True:
        try:
            return action()
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            problem = explain(store.purpose, store.endpoint, uri, error)
            left = deadline - time.monotonic()
            if fault_of(error) is not Fault.UNREACHABLE or left <= 0:
                raise problem from error
            log.warning("%s; trying for %.0f s more", problem, left)
        time.sleep(min(delay, left))
        delay = min(delay * 2, 8.0)
