"""Fixtures of the agent's tests: one S3 service for all, a fake engine, and an agent beside it."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.messages import DesiredVersion
from tests.agent.fake_engine import FakeEngine, write_adapter
from tests.agent.real_vllm import Publisher
from tests.agent.running_agent import RunningAgent, publish
from tools.testing.s3_server import S3Server, running_s3

Make = Callable[..., DesiredVersion]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run an S3 service."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """Create an empty bucket."""
    return s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """Run a fake engine."""
    with FakeEngine() as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, s3_server: S3Server, engine: FakeEngine) -> Iterator[RunningAgent]:
    """Run an agent beside the fake engine."""
    with RunningAgent(tmp_path / "pod", s3_server, engine.port) as running:
        yield running


@pytest.fixture
def make(tmp_path: Path, s3_server: S3Server, bucket: str) -> Make:
    """Return a function that makes an adapter for the fake engine, and puts it into S3."""

    def build(effect: float, **settings: object) -> DesiredVersion:
        name = f"job-{uuid.uuid4().hex[:8]}"
        return publish(s3_server, bucket, name, write_adapter(tmp_path / name, effect, **settings))  # type: ignore[arg-type]

    return build


@pytest.fixture
def version(s3_server: S3Server, bucket: str) -> Publisher:
    """Return a function that puts one of the adapters into S3."""
    return Publisher(s3_server, bucket)
