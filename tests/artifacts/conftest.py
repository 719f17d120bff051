"""Fixtures of the artifact tests: one S3 server for all, a bucket for each, and a directory as the other storage."""

import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.uris import DirectoryUri, S3Uri, StorageUri
from finetune_artifacts.digests import digest_of
from finetune_artifacts.directory import DirectoryStorage
from finetune_artifacts.errors import Purpose
from finetune_artifacts.storage import Storage
from tools.testing.s3_server import S3Server, running_s3


@dataclass(frozen=True)
class LocalServer:
    """Offers a directory as ``S3Server`` offers S3, for tests of both."""

    endpoint: str = "this machine"
    buckets: Path = Path("/")

    def store(self, purpose: Purpose = Purpose.OUTPUT, patience_seconds: float = 60) -> Storage:
        """Open the storage; the root of an address is the path of its directory."""
        return DirectoryStorage(purpose)


Server = S3Server | LocalServer


def put(server: Server, uri: StorageUri, content: bytes) -> None:
    """Write an object, also in place of another one."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        server.store().put_file(uri, Path(file.name), digest_of(content))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run an S3 service."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["s3", "directory"])
def server(request: pytest.FixtureRequest) -> Server:
    """Return each of the two storages in turn."""
    return LocalServer() if request.param == "directory" else request.getfixturevalue("s3_server")


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """Create an empty bucket."""
    return s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> StorageUri:
    """Return a prefix in an empty bucket, or in an empty directory if the test's ``server`` is one."""
    local = "server" in request.fixturenames and isinstance(request.getfixturevalue("server"), LocalServer)
    key = "team/job/adapter"
    return DirectoryUri(str(tmp_path / "output"), key) if local else S3Uri(request.getfixturevalue("bucket"), key)
