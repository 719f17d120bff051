"""Of several attempts at a job only the one that claimed the storage last writes, whenever the others wake."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri, StorageUri
from finetune_artifacts.digests import digest_of
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.fence import FencedStorage, claim_storage
from finetune_artifacts.objects import read_object
from finetune_artifacts.s3 import open_s3
from finetune_artifacts.upload import upload_directory
from tools.testing.faulty_proxy import running_faulty_proxy
from tools.testing.s3_server import S3Server

UID = "11111111-aaaa"
LARGE = b"x" * 17_000_000
"""Sent in two parts."""


def claim(server: S3Server, bucket: str, attempt: int, endpoint: str | None = None, uid: str = UID) -> FencedStorage:
    location = server.location.model_copy(update={"endpoint": endpoint or server.endpoint})
    storage = open_s3(location, server.secret, Purpose.OUTPUT, 20, uid)
    return claim_storage(storage, S3Uri(bucket, f"claims/{uid}.json"), attempt)


def put(storage: FencedStorage, uri: StorageUri, content: bytes, directory: Path) -> None:
    path = directory / f"file-{len(content)}"
    path.write_bytes(content)
    storage.put_file(uri, path, digest_of(content))


def superseded(action: Callable[[], object]) -> str:
    with pytest.raises(ArtifactError) as caught:
        action()
    assert caught.value.fault is Fault.SUPERSEDED
    assert caught.value.reason is Reason.PREEMPTED
    return str(caught.value)


@pytest.mark.parametrize("later", [1, 2], ids=["another pod of the Job", "another attempt"])
def test_whoever_claimed_last_writes_alone(s3_server: S3Server, bucket: str, tmp_path: Path, later: int) -> None:
    uri = S3Uri(bucket, "adapter/x")
    first = claim(s3_server, bucket, 1)
    put(first, uri, b"of the first", tmp_path)
    second = claim(s3_server, bucket, later)
    text = superseded(lambda: put(first, uri, b"of the first, again", tmp_path))
    assert text.startswith("this attempt may not write any more, because another one has taken its place")
    superseded(lambda: first.put_new(S3Uri(bucket, "adapter/new"), b"x"))
    superseded(lambda: first.delete(uri))
    put(second, uri, b"of the second", tmp_path)
    assert read_object(second, uri) == b"of the second"
    second.release_claim()
    assert "its claim was deleted" in superseded(lambda: first.put_new(S3Uri(bucket, "adapter/new"), b"x"))


def test_an_earlier_attempt_claims_nothing_back(s3_server: S3Server, bucket: str) -> None:
    claim(s3_server, bucket, 2)
    assert "a later one has begun" in superseded(lambda: claim(s3_server, bucket, 1))


def test_the_claims_of_two_jobs_are_two(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    first, second = claim(s3_server, bucket, 1), claim(s3_server, bucket, 5, uid="22222222-bbbb")
    put(first, S3Uri(bucket, "adapter/x"), b"x", tmp_path)
    put(second, S3Uri(bucket, "adapter/y"), b"y", tmp_path)


@dataclass
class Frozen:
    """A write that is on its way while another attempt does something."""

    key: str
    action: Callable[[], None]
    is_done: bool = False

    def __call__(self, method: str, path: str) -> None:
        """Do it when the request comes that makes the object."""
        is_write = method == "PUT" or (method == "POST" and "uploadId" in path)
        if is_write and "partNumber" not in path and self.key in path and not self.is_done:
            self.is_done = True
            self.action()


@pytest.mark.parametrize("content", [b"of the first", LARGE], ids=["at once", "in parts"])
@pytest.mark.parametrize("before", [None, b"leftover"], ids=["new", "leftover"])
def test_a_write_that_was_on_its_way_replaces_nothing(
    s3_server: S3Server, bucket: str, tmp_path: Path, content: bytes, before: bytes | None
) -> None:
    uri = S3Uri(bucket, "adapter/x")
    with running_faulty_proxy(s3_server.port) as proxy:
        first = claim(s3_server, bucket, 1, proxy.endpoint)
        if before is not None:
            put(first, uri, before, tmp_path)
        write = partial(put, uri=uri, content=b"of the second", directory=tmp_path)
        proxy.choose_fault = Frozen("adapter/x", lambda: write(claim(s3_server, bucket, 2)))
        superseded(lambda: put(first, uri, content, tmp_path))
    assert read_object(first, uri) == b"of the second"


def test_a_manifest_that_arrives_too_late_is_replaced(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    """The first attempt has looked, and then its manifest arrives before that of the second."""
    uri, directory = S3Uri(bucket, "adapter"), tmp_path / "adapter"
    directory.mkdir()
    (directory / "x").write_bytes(b"of the second")
    manifest = uri.child("manifest.json")
    first = claim(s3_server, bucket, 1)
    second = claim(s3_server, bucket, 2)
    super(FencedStorage, first).put_new(manifest, b"of the first")
    upload_directory(second, uri, directory)
    assert second.head(manifest) is None
    super(FencedStorage, first).put_new(manifest, b"of the first")
    assert second.put_new(manifest, b"of the second")
    assert read_object(second, manifest) == b"of the second"
    assert not second.put_new(manifest, b"of the second"), "its own is there already"


def test_a_manifest_of_another_job_is_never_replaced(s3_server: S3Server, bucket: str) -> None:
    manifest = S3Uri(bucket, "adapter/manifest.json")
    claim(s3_server, bucket, 1, uid="22222222-bbbb").put_new(manifest, b"theirs")
    claimed = claim(s3_server, bucket, 1)
    assert not claimed.put_new(manifest, b"ours")
    assert read_object(claimed, manifest) == b"theirs"


def test_a_service_without_conditional_writes_has_the_look_alone(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    uri = S3Uri(bucket, "adapter/x")
    with running_faulty_proxy(s3_server.port) as proxy:
        proxy.knows_conditions = False
        first = claim(s3_server, bucket, 1, proxy.endpoint)
        for content in (b"of the first", b"again", LARGE):
            put(first, uri, content, tmp_path)
        second = claim(s3_server, bucket, 2, proxy.endpoint)
        superseded(lambda: put(first, uri, b"of the first", tmp_path))
        assert second.put_new(S3Uri(bucket, "adapter/new"), b"x")
