"""Faults that only a directory can have: a process that dies in the middle of a write, and a disk that is full."""

import os
import resource
import signal
from pathlib import Path

import pytest

from finetune_api.reasons import Reason
from finetune_api.uris import DirectoryUri
from finetune_artifacts import directory
from finetune_artifacts.directory import DirectoryStorage
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.objects import delete_objects, read_object
from finetune_artifacts.upload import upload_directory

STORAGE = DirectoryStorage(Purpose.OUTPUT)


def source(directory: Path, size: int) -> Path:
    directory.mkdir()
    (directory / "weights.safetensors").write_bytes(os.urandom(size))
    return directory


def test_a_process_that_dies_while_it_writes_leaves_nothing_that_counts(tmp_path: Path) -> None:
    uri = DirectoryUri(str(tmp_path / "output"), "adapter")
    child = os.fork()
    if child == 0:
        directory._flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        upload_directory(STORAGE, uri, source(tmp_path / "source", 1000))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert STORAGE.list_objects(DirectoryUri(uri.root, "")) == []
    upload_directory(STORAGE, uri, tmp_path / "source")
    assert [str(info.uri) for info in STORAGE.list_objects(uri)] == [
        str(tmp_path / "output/adapter/weights.safetensors")
    ]


def test_a_full_disk_is_an_upload_that_failed(tmp_path: Path) -> None:
    uri = DirectoryUri(str(tmp_path / "output"), "adapter")
    files = source(tmp_path / "source", 2_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(ArtifactError) as caught:
            upload_directory(STORAGE, uri, files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (caught.value.fault, caught.value.reason) == (Fault.NO_SPACE, Reason.UPLOAD_FAILED)
    assert str(tmp_path / "output/adapter/weights.safetensors") in caught.value.message
    assert STORAGE.list_objects(uri) == []


def test_deleted_files_leave_no_empty_directories(tmp_path: Path) -> None:
    uri = DirectoryUri(str(tmp_path / "output"), "checkpoints/step-00000001")
    upload_directory(STORAGE, uri, source(tmp_path / "source", 10))
    delete_objects(STORAGE, [uri.child("weights.safetensors"), uri.child("nothing")])
    assert not (tmp_path / "output" / "checkpoints").exists()


def test_a_missing_file_is_named_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_object(STORAGE, DirectoryUri(str(tmp_path), "adapter/manifest.json"))
    assert caught.value.fault is Fault.NO_OBJECT
    assert f"{tmp_path}/adapter/manifest.json does not exist" in caught.value.message
