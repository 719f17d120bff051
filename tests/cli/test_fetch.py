"""``finetune fetch``: downloads from a real S3 service."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.manifest import AdapterManifest, Origin
from finetune_api.uris import S3Uri
from finetune_artifacts.upload import put_manifest, upload_directory
from tests.agent.fake_merged_engine import publish_merged, write_merged
from tests.cli.run import finetune
from tools.testing.s3_server import S3Server, running_s3

pytestmark = pytest.mark.cluster  # the S3 server is one of the dev cluster's programs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run an S3 service."""
    with running_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def location(server: S3Server) -> S3Uri:
    """Return a prefix in an empty bucket."""
    return S3Uri(server.create_bucket(f"cli-{uuid.uuid4().hex[:12]}"), "a")


@pytest.fixture
def adapter(server: S3Server, location: S3Uri, tmp_path: Path) -> str:
    """Put an adapter there, and return its digest."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_model.safetensors").write_bytes(b"weights")
    (source / "adapter_config.json").write_text("{}")
    store = server.store()
    files = upload_directory(store, location, source)
    origin = Origin(namespace="team", name="job", uid="1")
    manifest = AdapterManifest(
        job=origin, created_at="2026-01-01T00:00:00Z", base_model="b", peft_type="LORA", files=files
    )
    return put_manifest(store, location, manifest)


def options(server: S3Server) -> list[str]:
    return ["--endpoint-url", server.endpoint, "--region", "us-east-1", "--secret-directory", str(server.secret)]


def test_an_adapter_arrives_with_its_digest(server: S3Server, location: S3Uri, adapter: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    fetched = finetune("fetch", str(location), str(target), "--digest", adapter, "--output", "json", *options(server))
    assert fetched.code == 0, fetched.err
    assert json.loads(fetched.out)["digest"] == adapter
    assert (target / "adapter_model.safetensors").read_bytes() == b"weights"


def test_a_merged_model_arrives_with_its_digest(server: S3Server, location: S3Uri, tmp_path: Path) -> None:
    version = publish_merged(server, location.bucket, write_merged(tmp_path / "model", 0.5))
    target = tmp_path / "target"
    fetched = finetune("fetch", version.uri, str(target), "--output", "json", *options(server))
    assert fetched.code == 0, fetched.err
    assert json.loads(fetched.out)["digest"] == version.digest
    assert (target / "config.json").read_text() == "{}"


def test_what_is_there_already_needs_no_storage(
    server: S3Server, location: S3Uri, adapter: str, tmp_path: Path
) -> None:
    command = ["fetch", str(location), str(tmp_path / "target"), "--digest", adapter, *options(server)]
    assert finetune(*command).code == 0
    for file in filter(Path.is_file, (server.buckets / location.bucket).rglob("*.*")):
        file.unlink()
    again = finetune(*command)
    assert again.code == 0, again.err


def test_a_digest_that_was_not_given_is_reported(
    server: S3Server, location: S3Uri, adapter: str, tmp_path: Path
) -> None:
    fetched = finetune("fetch", str(location), str(tmp_path / "target"), *options(server))
    assert fetched.code == 0, fetched.err
    assert adapter in fetched.out


def test_an_adapter_with_another_digest_leaves_nothing(
    server: S3Server, location: S3Uri, adapter: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    other_digest = "sha256:" + "0" * 64
    refused = finetune("fetch", str(location), str(target), "--digest", other_digest, *options(server))
    assert refused.code == 1
    assert adapter in refused.err
    assert other_digest in refused.err
    assert not target.exists()


def test_a_model_arrives(server: S3Server, location: S3Uri, tmp_path: Path) -> None:
    store = server.store()
    for name in ("config.json", "model.safetensors"):
        store.client.put_object(Bucket=location.bucket, Key=f"{location.key}/{name}", Body=name.encode())
    target = tmp_path / "model"
    fetched = finetune("fetch", str(location), str(target), *options(server))
    assert fetched.code == 0, fetched.err
    assert (target / "model.safetensors").read_text() == "model.safetensors"


def test_credentials_come_from_the_environment_too(
    server: S3Server, location: S3Uri, adapter: str, tmp_path: Path
) -> None:
    environment = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": (server.secret / "AWS_ACCESS_KEY_ID").read_text(),
        "AWS_SECRET_ACCESS_KEY": (server.secret / "AWS_SECRET_ACCESS_KEY").read_text(),
    }
    assert finetune("fetch", str(location), str(tmp_path / "target"), environment=environment).code == 0


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://no-such-bucket-here/a", "no-such-bucket-here"),
        ("hf://org/name", "must have the form s3://bucket/key"),
    ],
)
def test_what_is_not_there_is_named(server: S3Server, tmp_path: Path, uri: str, message: str) -> None:
    refused = finetune("fetch", uri, str(tmp_path / "target"), *options(server))
    assert refused.code == 1
    assert message in refused.err


def test_one_object_is_printed_as_it_is(server: S3Server, location: S3Uri, adapter: str) -> None:
    printed = finetune("read", f"{location}/adapter_model.safetensors", *options(server))
    assert (printed.code, printed.out) == (0, "weights")
    assert "does not exist" in finetune("read", f"{location}/nothing.html", *options(server)).err
