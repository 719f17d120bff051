"""What a job wrote is found and deleted, and nothing of another job that shares its prefix."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.manifest import CheckpointManifest, FileEntry, Origin
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri, StorageUri
from finetune_artifacts.checkpoints import upload_checkpoint
from finetune_artifacts.digests import digest_of
from finetune_artifacts.errors import Purpose
from finetune_artifacts.ownership import delete_all, find_objects_of
from finetune_artifacts.s3 import S3Storage, open_s3
from tools.testing.s3_server import S3Server

OURS, THEIRS = "11111111-aaaa", "22222222-bbbb"
PREFIX = "team/job"


def storage_of(server: S3Server, uid: str, patience: float = 20) -> S3Storage:
    return open_s3(server.location, server.secret, Purpose.OUTPUT, patience, uid)


def write(server: S3Server, uid: str, uri: StorageUri, directory: Path, content: bytes = b"x") -> None:
    file = directory / "file"
    file.write_bytes(content)
    storage_of(server, uid).put_file(uri, file, digest_of(content))


def keys(server: S3Server, bucket: str) -> list[str]:
    return [info.uri.key for info in server.store().list_objects(S3Uri(bucket, ""))]


def find(server: S3Server, bucket: str, *, exclusive: bool = False) -> list[StorageUri]:
    directories = [S3Uri(bucket, f"{PREFIX}/{name}") for name in ("adapter", "checkpoints")]
    return find_objects_of(server.store(), directories, OURS, exclusive=exclusive)


def test_each_object_of_ours_on_several_pages_goes_and_none_of_theirs(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    prefix = S3Uri(bucket, PREFIX)
    own_storage, other_storage = storage_of(s3_server, OURS), storage_of(s3_server, THEIRS)
    for number in range(1200):
        (own_storage if number % 2 else other_storage).put_new(
            prefix.child(f"checkpoints/run-a/step-{number:08d}/x"), b"x"
        )
    write(s3_server, OURS, prefix.child("adapter/large"), tmp_path, b"x" * 17_000_000)
    write(s3_server, OURS, prefix.child("unknown/x"), tmp_path)
    uris = find(s3_server, bucket)
    assert len(uris) == 601
    deletion = delete_all(s3_server.store(), uris)
    assert (deletion.deleted, deletion.left, deletion.error, deletion.keeps_versions) == (601, 0, None, False)
    remaining_keys = keys(s3_server, bucket)
    assert len(remaining_keys) == 601
    assert {int(key[-10:-2]) % 2 for key in remaining_keys if "checkpoints" in key} == {0}
    assert f"{PREFIX}/unknown/x" in remaining_keys, "no training writes there"
    assert find(s3_server, bucket) == []


def test_an_object_that_another_job_overwrote_is_theirs(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    uri = S3Uri(bucket, f"{PREFIX}/adapter/x")
    write(s3_server, OURS, uri, tmp_path)
    write(s3_server, THEIRS, uri, tmp_path)
    assert find(s3_server, bucket, exclusive=True) == []


def test_objects_of_older_versions_belong_to_the_job_of_their_manifest(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    checkpoints = S3Uri(bucket, f"{PREFIX}/checkpoints")
    old = s3_server.store()
    for name, uid in (("run-a", OURS), ("run-b", THEIRS)):

        def manifest(files: list[FileEntry], uid: str = uid) -> CheckpointManifest:
            origin = Origin(namespace="team", name="job", uid=uid)
            return CheckpointManifest(
                job=origin,
                step=1,
                total_steps=2,
                fingerprint="sha256:aa",
                created_at="2026-01-01T00:00:00Z",
                files=files,
            )

        directory = tmp_path / name
        directory.mkdir()
        (directory / "weights").write_text(name)
        upload_checkpoint(old, checkpoints.child(name), 1, directory, manifest)
    old.put_new(checkpoints.child("run-c/step-00000001/weights"), b"without a manifest")
    own_keys = [f"{PREFIX}/checkpoints/run-a/step-00000001/{name}" for name in ("manifest.json", "weights")]
    assert [uri.key for uri in find(s3_server, bucket)] == own_keys
    exclusive_keys = [uri.key for uri in find(s3_server, bucket, exclusive=True)]
    assert exclusive_keys == [*own_keys, f"{PREFIX}/checkpoints/run-c/step-00000001/weights"]


def test_what_the_service_does_not_delete_is_counted(s3_server: S3Server, tmp_path: Path) -> None:
    client, bucket = s3_server.store().client, "with-locks"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    prefix = S3Uri(bucket, PREFIX)
    for name in ("adapter/a", "adapter/b", "adapter/manifest.json"):
        write(s3_server, OURS, prefix.child(name), tmp_path)
    client.put_object_legal_hold(Bucket=bucket, Key=f"{PREFIX}/adapter/a", LegalHold={"Status": "ON"})
    deletion = delete_all(s3_server.store(), find(s3_server, bucket))
    assert (deletion.deleted, deletion.left) == (2, 1)
    assert deletion.error is not None
    assert deletion.error.reason == Reason.OUTPUT_ACCESS_DENIED
    assert keys(s3_server, bucket) == [f"{PREFIX}/adapter/a"]


@pytest.fixture
def versioning(tmp_path: Path) -> Iterator[S3Server]:
    """Yield an S3 service whose buckets can keep old versions."""
    with S3Server(tmp_path / "versioning", versions=True) as server:
        yield server


def test_old_versions_that_stay_are_reported(versioning: S3Server, tmp_path: Path) -> None:
    bucket = versioning.create_bucket("versions")
    versioning.store().client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    write(versioning, OURS, S3Uri(bucket, f"{PREFIX}/adapter/x"), tmp_path)
    deletion = delete_all(versioning.store(), find(versioning, bucket))
    assert (deletion.deleted, deletion.left, deletion.keeps_versions) == (1, 0, True)
    assert keys(versioning, bucket) == []


def test_a_service_that_does_not_answer_leaves_the_rest(versioning: S3Server, tmp_path: Path) -> None:
    bucket = versioning.create_bucket("away")
    for number in range(40):
        write(versioning, OURS, S3Uri(bucket, f"{PREFIX}/adapter/{number}"), tmp_path)
    uris = find(versioning, bucket)
    versioning.stop()
    deletion = delete_all(storage_of(versioning, "", 0.5), uris)
    assert (deletion.deleted, deletion.left) == (0, 40)
    assert deletion.error is not None
