"""Checkpoints: only a complete one is resumed from, and old ones are deleted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.manifest import CheckpointManifest, FileEntry, Origin
from finetune_api.uris import StorageUri
from finetune_artifacts.checkpoints import (
    checkpoint_uri,
    download_newest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    upload_checkpoint,
)
from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.objects import read_object
from tests.artifacts.conftest import Server, put

FINGERPRINT = "sha256:aa"


@pytest.fixture
def run(uri: StorageUri) -> StorageUri:
    """Return the prefix of a run's checkpoints."""
    return uri


def save(
    server: Server,
    run: StorageUri,
    directory: Path,
    step: int,
    *,
    fingerprint: str = FINGERPRINT,
    content: str = "weights",
) -> None:
    """Upload a checkpoint of two files."""
    source = directory / f"source-{step}"
    source.mkdir(exist_ok=True)
    (source / "adapter_model.safetensors").write_text(f"{content} of step {step}")
    (source / "optimizer.pt").write_text(f"moments of step {step}")

    def manifest(files: list[FileEntry]) -> CheckpointManifest:
        origin = Origin(namespace="team", name="job", uid="1")
        return CheckpointManifest(
            job=origin,
            step=step,
            total_steps=100,
            fingerprint=fingerprint,
            created_at="2026-01-01T00:00:00Z",
            files=files,
        )

    upload_checkpoint(server.store(), run, step, source, manifest)


def newest(server: Server, run: StorageUri, directory: Path) -> int | None:
    """Return the step that a new attempt would continue from; its files must be those of that step."""
    manifest = download_newest_checkpoint(server.store(), run, FINGERPRINT, directory / "resume")
    if manifest is None:
        return None
    assert (directory / "resume" / "adapter_model.safetensors").read_text() == f"weights of step {manifest.step}"
    return manifest.step


def test_the_newest_complete_checkpoint_is_found(server: Server, run: StorageUri, tmp_path: Path) -> None:
    assert newest(server, run, tmp_path) is None
    for step in (10, 2, 30):
        save(server, run, tmp_path, step)
    assert newest(server, run, tmp_path) == 30


def in_bucket(server: Server, run: StorageUri, step: int, name: str) -> Path:
    uri = checkpoint_uri(run, step)
    return server.buckets / uri.root / uri.key / name


def without_manifest(server: Server, run: StorageUri) -> None:
    in_bucket(server, run, 20, "manifest.json").unlink()


def without_a_file(server: Server, run: StorageUri) -> None:
    in_bucket(server, run, 20, "optimizer.pt").unlink()


def with_a_truncated_file(server: Server, run: StorageUri) -> None:
    put(server, checkpoint_uri(run, 20).child("optimizer.pt"), b"mom")


def with_another_byte(server: Server, run: StorageUri) -> None:
    body = b"moments of step 21"
    put(server, checkpoint_uri(run, 20).child("optimizer.pt"), body)


def with_half_a_manifest(server: Server, run: StorageUri) -> None:
    uri = checkpoint_uri(run, 20).child("manifest.json")
    half = read_object(server.store(), uri)[:100]
    put(server, uri, half)


@pytest.mark.parametrize(
    "damage", [without_manifest, without_a_file, with_a_truncated_file, with_another_byte, with_half_a_manifest]
)
def test_an_incomplete_checkpoint_is_skipped(
    server: Server, run: StorageUri, tmp_path: Path, damage: Callable[[Server, StorageUri], None]
) -> None:
    save(server, run, tmp_path, 10)
    save(server, run, tmp_path, 20)
    damage(server, run)
    assert newest(server, run, tmp_path) == 10
    save(server, run, tmp_path, 20)
    assert newest(server, run, tmp_path) == 20, "a later run uploads a complete one again"


def test_a_checkpoint_of_other_settings_is_skipped(server: Server, run: StorageUri, tmp_path: Path) -> None:
    save(server, run, tmp_path, 10)
    save(server, run, tmp_path, 20, fingerprint="sha256:bb")
    assert newest(server, run, tmp_path) == 10


def test_only_as_many_checkpoints_stay_as_are_kept(server: Server, run: StorageUri, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(server, run, tmp_path, step)
    in_bucket(server, run, 20, "manifest.json").unlink()
    assert prune_checkpoints(server.store(), run, keep=2) == [20, 10]
    assert [stored.step for stored in list_checkpoints(server.store(), run)] == [40, 30]
    assert newest(server, run, tmp_path) == 40


def test_a_checkpoint_that_is_being_uploaded_is_not_pruned(server: Server, run: StorageUri, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(server, run, tmp_path, step)
    in_bucket(server, run, 30, "manifest.json").unlink()
    assert prune_checkpoints(server.store(), run, keep=1) == [10]
    assert [stored.step for stored in list_checkpoints(server.store(), run)] == [30, 20]


def test_an_upload_that_is_given_up_leaves_no_manifest(server: Server, run: StorageUri, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_model.safetensors").write_text("weights")

    def manifest(files: list[FileEntry]) -> CheckpointManifest:
        raise AssertionError("no manifest may be made")

    with pytest.raises(ArtifactError, match="was stopped"):
        upload_checkpoint(server.store(), run, 10, source, manifest, stopped=lambda: True)
    assert newest(server, run, tmp_path) is None
