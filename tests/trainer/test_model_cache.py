"""The model cache: one download for all jobs, killed and continued, waited for, verified; with real processes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RANGE_BYTES = 1_000_000
"""Length of a range in these tests."""
SIZE = 3 * RANGE_BYTES + 12_345
FILLER = """
import json, os, resource, sys, time
from pathlib import Path
from finetune_artifacts import ranges
from finetune_artifacts.ranges import RemoteFile
from finetune_trainer.models import model_cache
from finetune_trainer.runtime import logs
from finetune_trainer.runtime.failures import Failure

source, cache, owner, limit = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
logs.configure()
model_cache.POLL_SECONDS, ranges.RANGE_BYTES = 0.1, int(sys.argv[5])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def read(file, start, length):
    # the gate holds back everything but the first range of the weights
    while file.name == "model.safetensors" and start and (source / "gate").exists():
        time.sleep(0.05)
    with (source / "reads").open("a") as log:
        log.write(f"{owner} {file.name} {start}\\n")
    with (source / file.name).open("rb") as content:
        content.seek(start)
        return content.read(length)

versions = json.loads((source / "versions").read_text())
files = [RemoteFile(name, (source / name).stat().st_size, version) for name, version in versions.items()]
model = model_cache.RemoteModel("hf://acme/tiny", "http://hub", "c0ffee", files, read)
try:
    print(model_cache.fill(cache, model, owner).model_dump_json(), flush=True)
except Failure as failure:
    print(failure.reason, failure.field, failure.message, flush=True)
"""


class Source:
    """A model of some ranges, and processes that put it into a cache."""

    def __init__(self, directory: Path) -> None:
        """Write a model, and create an empty cache."""
        self.directory, self.cache = directory / "source", directory / "cache"
        self.directory.mkdir()
        self.cache.mkdir()
        self.write(b"weights")
        self.running: list[subprocess.Popen[str]] = []

    def write(self, seed: bytes, digest: str | None = None) -> None:
        """Write a model whose content depends on the seed; ``digest`` is what its source says of the weights."""
        block = hashlib.sha256(seed).digest() * (SIZE // 32 + 1)
        self.weights = block[:SIZE]
        (self.directory / "model.safetensors").write_bytes(self.weights)
        (self.directory / "config.json").write_bytes(b"{}")
        sha = digest or hashlib.sha256(self.weights).hexdigest()
        blob = hashlib.sha1(b"blob 2\0{}").hexdigest()
        (self.directory / "versions").write_text(
            f'{{"model.safetensors": "sha256:{sha}", "config.json": "git:{blob}"}}'
        )

    @property
    def gate(self) -> Path:
        """While this file exists, only the first range of the weights is sent."""
        return self.directory / "gate"

    def start(self, owner: str, limit: int = 0) -> "subprocess.Popen[str]":
        """Start a process that puts the model into the cache for a job."""
        arguments = [self.directory, self.cache, owner, limit, RANGE_BYTES]
        command = [sys.executable, "-c", FILLER, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.running.append(process)
        return process

    def fill(self, owner: str, limit: int = 0) -> str:
        """Return what such a process says until its end."""
        return self.start(owner, limit).communicate(timeout=60)[0]

    def reads(self, owner: str) -> list[str]:
        """List what was downloaded for a job."""
        lines = (self.directory / "reads").read_text().splitlines() if (self.directory / "reads").exists() else []
        return sorted(line.removeprefix(f"{owner} ") for line in lines if line.startswith(f"{owner} "))

    def await_reads(self, owner: str, count: int) -> None:
        """Wait until that many ranges were sent for a job, and are noted as there."""
        deadline = time.monotonic() + 30
        while sum(len(journal.read_text().splitlines()) - 1 for journal in self.cache.rglob("*.ranges")) < count:
            assert time.monotonic() < deadline, self.reads(owner)
            time.sleep(0.05)
        assert len(self.reads(owner)) == count

    def models(self) -> list[Path]:
        """List the complete models of the cache."""
        return [entry for entry in self.cache.iterdir() if not entry.name.startswith(".")]


@pytest.fixture
def source(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Yield a model, and a cache that is empty."""
    new_source = Source(tmp_path)
    yield new_source
    for process in new_source.running:
        process.kill()
        process.wait()


def test_a_model_is_downloaded_once_for_all_jobs(source: Source) -> None:
    assert f'"downloaded_bytes":{SIZE + 2}' in source.fill("team/first")
    second = source.fill("team/second")
    assert '"downloaded_bytes":0' in second
    assert "the model is in the cache already" in second
    assert source.reads("team/second") == []
    (model,) = source.models()
    assert (model / "model.safetensors").read_bytes() == source.weights
    assert [entry.name for entry in source.cache.iterdir() if entry.name.endswith((".partial", ".old"))] == []


def test_a_killed_download_continues_where_it_was(source: Source) -> None:
    source.gate.touch()
    killed = source.start("team/killed")
    source.await_reads("team/killed", 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert source.models() == []
    source.gate.unlink()
    assert f'"downloaded_bytes":{SIZE - RANGE_BYTES}' in source.fill("team/next")
    assert source.reads("team/next") == [f"model.safetensors {RANGE_BYTES * number}" for number in (1, 2, 3)]
    (model,) = source.models()
    assert (model / "model.safetensors").read_bytes() == source.weights


def test_two_jobs_download_once_and_the_second_says_for_whom_it_waits(source: Source) -> None:
    source.gate.touch()
    first = source.start("team/first")
    source.await_reads("team/first", 2)
    second = source.start("team/second")
    assert second.stdout is not None
    line = second.stdout.readline()
    assert "waiting for FineTuneJob team/first, which downloads the same model: 2.0 MB of 3.0 MB to go" in line
    source.gate.unlink()
    assert first.wait(30) == second.wait(30) == 0
    assert '"downloaded_bytes":0' in second.stdout.read()
    assert source.reads("team/second") == []


def test_the_lock_of_a_killed_job_is_taken_over_with_what_it_had(source: Source) -> None:
    source.gate.touch()
    first = source.start("team/first")
    source.await_reads("team/first", 2)
    second = source.start("team/second")
    assert second.stdout is not None
    assert "waiting for FineTuneJob team/first" in second.stdout.readline()
    os.kill(first.pid, signal.SIGKILL)
    source.gate.unlink()
    assert second.wait(30) == 0
    assert f'"downloaded_bytes":{SIZE - RANGE_BYTES}' in second.stdout.read()
    assert len(source.reads("team/second")) == 3


def test_a_range_that_was_not_recorded_is_downloaded_again(source: Source) -> None:
    source.gate.touch()
    killed = source.start("team/killed")
    source.await_reads("team/killed", 2)
    killed.kill()
    killed.wait()
    source.gate.unlink()
    (journal,) = source.cache.rglob("model.safetensors.ranges")
    journal.write_text(journal.read_text() + str(RANGE_BYTES))  # the line has no end: it was being written
    source.fill("team/next")
    assert len(source.reads("team/next")) == 3
    (model,) = source.models()
    assert (model / "model.safetensors").read_bytes() == source.weights


def test_what_differs_from_the_digest_of_the_source_is_never_a_model(source: Source) -> None:
    source.write(b"weights", digest="0" * 64)
    log = source.fill("team/job")
    assert "model.safetensors arrived damaged and is downloaded once more" in log
    assert "DigestMismatch spec.model.uri the content of model.safetensors of hf://acme/tiny does not have the" in log
    assert source.models() == []


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_model_that_was_damaged_in_the_cache_is_downloaded_again(source: Source, damage: str) -> None:
    source.fill("team/first")
    (model,) = source.models()
    weights = model / "model.safetensors"
    if damage == "cut":
        os.truncate(weights, SIZE - 1)
    elif damage == "changed":
        weights.write_bytes(bytes(SIZE))
    else:
        weights.unlink()
    assert "it is downloaded again" in source.fill("team/second")
    assert weights.read_bytes() == source.weights


def test_a_full_cache_says_what_is_in_it(source: Source) -> None:
    log = source.fill("team/job", limit=RANGE_BYTES)
    assert "ModelCacheFailed spec.model.cache the cache is full: the model needs 3.0 MB more, and" in log
    assert "Enlarge the volume, or remove models that no job uses; it has:" in log
    assert source.models() == []
    assert '"downloaded_bytes"' in source.fill("team/job")


def test_a_model_that_could_not_fit_is_refused_before_its_first_byte(source: Source) -> None:
    with (source.directory / "model.safetensors").open("r+b") as file:
        file.truncate(2**43)  # a file with a hole
    log = source.fill("team/job")
    assert "the cache is full: the model needs 8.8 TB more, and" in log
    assert source.reads("team/job") == []


def test_a_cache_that_is_no_directory_says_what_it_needs(source: Source) -> None:
    source.cache.rmdir()
    source.cache.write_text("")
    log = source.fill("team/job")
    assert "ModelCacheFailed spec.model.cache the cache does not work (File exists): it must be a directory" in log
