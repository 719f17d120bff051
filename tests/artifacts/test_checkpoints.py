"""Checkpoints: only a whole one is ever resumed from, and old ones go."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.manifest import CheckpointManifest, FileEntry, Origin
from finetune_api.uris import S3Uri
from finetune_artifacts.checkpoints import (
    checkpoint_uri,
    list_checkpoints,
    newest_checkpoint,
    prune_checkpoints,
    upload_checkpoint,
)
from finetune_artifacts.errors import ArtifactError
from finetune_artifacts.objects import read_object
from tests.artifacts.conftest import Server, put

MARK = "sha256:aa"


def save(
    server: Server, place: S3Uri, directory: Path, step: int, *, mark: str = MARK, content: str = "weights"
) -> None:
    """Upload a checkpoint of two files."""
    source = directory / f"source-{step}"
    source.mkdir(exist_ok=True)
    (source / "adapter_model.safetensors").write_text(f"{content} of step {step}")
    (source / "optimizer.pt").write_text(f"moments of step {step}")

    def manifest(files: list[FileEntry]) -> CheckpointManifest:
        origin = Origin(namespace="team", name="job", uid="1")
        return CheckpointManifest(
            job=origin, step=step, total_steps=100, fingerprint=mark, created_at="2026-01-01T00:00:00Z", files=files
        )

    upload_checkpoint(server.store(), place, step, source, manifest)


def newest(server: Server, place: S3Uri, directory: Path) -> int | None:
    """The step that a new attempt would continue from; its files must be those of that step."""
    found = newest_checkpoint(server.store(), place, MARK, directory / "resume")
    if found is None:
        return None
    assert (directory / "resume" / "adapter_model.safetensors").read_text() == f"weights of step {found.step}"
    return found.step


def test_the_newest_complete_one_is_found(server: Server, place: S3Uri, tmp_path: Path) -> None:
    assert newest(server, place, tmp_path) is None
    for step in (10, 2, 30):
        save(server, place, tmp_path, step)
    assert newest(server, place, tmp_path) == 30


def in_bucket(server: Server, place: S3Uri, step: int, name: str) -> Path:
    uri = checkpoint_uri(place, step)
    return server.buckets / uri.bucket / uri.key / name


def without_manifest(server: Server, place: S3Uri) -> None:
    in_bucket(server, place, 20, "manifest.json").unlink()


def without_a_file(server: Server, place: S3Uri) -> None:
    in_bucket(server, place, 20, "optimizer.pt").unlink()


def with_a_truncated_file(server: Server, place: S3Uri) -> None:
    put(server, checkpoint_uri(place, 20).child("optimizer.pt"), b"mom")


def with_another_byte(server: Server, place: S3Uri) -> None:
    body = b"moments of step 21"
    put(server, checkpoint_uri(place, 20).child("optimizer.pt"), body)


def with_half_a_manifest(server: Server, place: S3Uri) -> None:
    uri = checkpoint_uri(place, 20).child("manifest.json")
    half = read_object(server.store(), uri)[:100]
    put(server, uri, half)


@pytest.mark.parametrize(
    "harm", [without_manifest, without_a_file, with_a_truncated_file, with_another_byte, with_half_a_manifest]
)
def test_one_that_is_not_whole_is_passed_over(
    server: Server, place: S3Uri, tmp_path: Path, harm: Callable[[Server, S3Uri], None]
) -> None:
    save(server, place, tmp_path, 10)
    save(server, place, tmp_path, 20)
    harm(server, place)
    assert newest(server, place, tmp_path) == 10
    save(server, place, tmp_path, 20)
    assert newest(server, place, tmp_path) == 20, "a later run puts a whole one in its place"


def test_one_of_other_settings_is_passed_over(server: Server, place: S3Uri, tmp_path: Path) -> None:
    save(server, place, tmp_path, 10)
    save(server, place, tmp_path, 20, mark="sha256:bb")
    assert newest(server, place, tmp_path) == 10


def test_only_so_many_stay(server: Server, place: S3Uri, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(server, place, tmp_path, step)
    in_bucket(server, place, 20, "manifest.json").unlink()
    assert prune_checkpoints(server.store(), place, keep=2) == [20, 10]
    assert [stored.step for stored in list_checkpoints(server.store(), place)] == [40, 30]
    assert newest(server, place, tmp_path) == 40


def test_one_that_is_being_uploaded_is_not_pruned(server: Server, place: S3Uri, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(server, place, tmp_path, step)
    in_bucket(server, place, 30, "manifest.json").unlink()
    assert prune_checkpoints(server.store(), place, keep=1) == [10]
    assert [stored.step for stored in list_checkpoints(server.store(), place)] == [30, 20]


def test_an_upload_that_is_given_up_leaves_no_manifest(server: Server, place: S3Uri, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_model.safetensors").write_text("weights")

    def manifest(files: list[FileEntry]) -> CheckpointManifest:
        raise AssertionError("no manifest may be made")

    with pytest.raises(ArtifactError, match="was stopped"):
        upload_checkpoint(server.store(), place, 10, source, manifest, stopped=lambda: True)
    assert newest(server, place, tmp_path) is None
