"""Connect to an S3 service, and repeat requests for a while if it does not answer."""

import functools
import logging
import threading
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
from finetune_api.uris import StorageUri
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.s3_errors import classify_error, explain_error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_SECONDS = 180.0
"""How long requests are repeated while the service does not answer."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
OWNER_METADATA = "finetune-job"
"""Metadata of an object, x-amz-meta-finetune-job: the uid of the FineTuneJob that wrote it."""
_session_lock = threading.Lock()  # a session makes one client at a time
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"


@dataclass(frozen=True)
class S3Connection:
    """An S3 client, with what error messages need. Safe to use from several threads.

    Attributes:
        client: boto3's client.
        endpoint: Address of the service.
        purpose: What the connection is used for.
        patience_seconds: How long requests are repeated while the service does not answer.
        owner: The uid of the job, for the metadata of the objects that it writes; empty: no metadata.
    """

    client: "S3Client"
    endpoint: str
    purpose: Purpose
    patience_seconds: float = PATIENCE_SECONDS
    owner: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """Return the metadata of each object that is written."""
        return {OWNER_METADATA: self.owner} if self.owner else {}

    def call(self, uri: StorageUri, action: Callable[[], T]) -> T:
        """Send one request, and repeat it while the service does not answer.

        Args:
            uri: Address for error messages.
            action: Sends the request with ``client``.

        Raises:
            ArtifactError: For every error of boto3.
        """
        deadline = time.monotonic() + self.patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return action()
            except (ClientError, BotoCoreError, ResponseParserError) as error:
                problem = explain_error(self.purpose, self.endpoint, uri, error)
                seconds_left = deadline - time.monotonic()
                if classify_error(error) is not Fault.UNREACHABLE or seconds_left <= 0:
                    raise problem from error
                log.warning("%s; trying for %.0f s more", problem, seconds_left)
            time.sleep(min(pause, seconds_left))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def create_client(location: S3Location | None, secret: Path | None, purpose: Purpose) -> "S3Client":
    """Create boto3's client. No request is sent yet.

    Args:
        location: Endpoint and region; None: AWS.
        secret: Directory of a mounted Secret; None: the pod's own identity.
        purpose: What the client is used for.

    Raises:
        ArtifactError: The Secret lacks a key.
    """
    endpoint = location.endpoint if location else None
    region = location.region if location else None
    keys = _read_credentials(secret, purpose) if secret else {}
    config = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"mode": "standard", "max_attempts": 3},
        max_pool_connections=16,
        # we send SHA-256 ourselves; other S3 services reject boto3's additional CRC trailers
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if endpoint else {},
    )
    with _session_lock:
        client: S3Client = _session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or ("us-east-1" if endpoint else None),
            aws_access_key_id=keys.get(ACCESS_KEY),
            aws_secret_access_key=keys.get(SECRET_KEY),
            aws_session_token=keys.get(SESSION_TOKEN),
            config=config,
        )
    return client


@functools.cache
def _session() -> boto3.session.Session:
    """Return the session of all clients. A new one would read 2 MB of service descriptions, which takes 0.2 s."""
    return boto3.session.Session()


def secret_directory(name: str) -> Path:
    """Return the directory at which our pods mount the Secret ``name``: one file for each key."""
    return Path(SECRETS_DIRECTORY) / name


def find_missing_keys(secret: Path) -> list[str]:
    """Return which of the two required keys are missing or empty in a mounted Secret."""
    return [key for key in (ACCESS_KEY, SECRET_KEY) if not _read_key(secret / key)]


def _read_credentials(secret: Path, purpose: Purpose) -> dict[str, str]:
    if missing := find_missing_keys(secret):
        cause = "the Secret does not exist" if not secret.is_dir() else "the Secret lacks them"
        raise ArtifactError(purpose, Fault.DENIED, f"Secret {secret.name!r} must have {' and '.join(missing)}: {cause}")
    return {key: value for key in (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN) if (value := _read_key(secret / key))}


def _read_key(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
