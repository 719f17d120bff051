"""Fixtures of the artifact tests: an S3 server for all of them, a bucket of its own for each, and a directory that stands in for both."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.uris import S3Uri
from finetune_artifacts.directory import Directory, LocalUri
from finetune_artifacts.errors import Purpose
from tools.testing.s3_server import S3Server, running_s3


@dataclass(frozen=True)
class LocalServer:
    """What a test of both backends asks an ``S3Server`` for, of a directory: a ``LocalUri`` has the whole path in it."""

    endpoint: str = "this machine"
    buckets: Path = Path("/")

    def store(self, purpose: Purpose = Purpose.OUTPUT, patience_seconds: float = 60) -> Directory:
        return Directory(purpose)


Server = S3Server | LocalServer


def put(server: Server, uri: S3Uri, content: bytes) -> None:
    """Put bytes at an address, past the protocol."""
    if isinstance(server, S3Server):
        server.store().client.put_object(Bucket=uri.bucket, Key=uri.key, Body=content)
    else:
        Path(str(uri)).parent.mkdir(parents=True, exist_ok=True)
        Path(str(uri)).write_bytes(content)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 service."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["s3", "directory"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the two places where files can be kept."""
    return LocalServer() if request.param == "directory" else request.getfixturevalue("s3_server")


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """An empty bucket."""
    return s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> S3Uri:
    """A prefix in an empty bucket, or in an empty directory where the test's ``server`` is one."""
    local = "server" in request.fixturenames and isinstance(request.getfixturevalue("server"), LocalServer)
    key = "team/job/adapter"
    return LocalUri(str(tmp_path / "output"), key) if local else S3Uri(request.getfixturevalue("bucket"), key)
