"""Fixtures of the S3 tests: one server for all of them, a bucket of its own for each."""

import uuid
from collections.abc import Iterator

import pytest

from finetune_api.uris import S3Uri
from tests.s3 import S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 service."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """An empty bucket."""
    return s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def place(bucket: str) -> S3Uri:
    """A prefix in an empty bucket."""
    return S3Uri(bucket, "team/job/adapter")
