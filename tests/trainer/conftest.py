"""Fixtures of the trainer's tests: a tiny Llama, a real S3 service, and jobs over both."""

import gc
import importlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.runtime.libraries import library_environment
from tools.testing.preflight_image import make_site
from tools.testing.s3_server import S3Server, running_s3
from tools.testing.tiny_model import make_tiny_model
from tools.testing.trainer_jobs import Workbench

# before any test imports torch; the same number for each run, because sums depend on it in their last bits
os.environ.update(library_environment({"OMP_NUM_THREADS": "1"}))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Yield a running S3 service."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def preflight_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the packages of the preflight's image."""
    return make_site(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def libraries() -> Iterator[None]:
    """torch, TRL and PEFT, imported. The garbage collector leaves out their objects, which it would walk for 0.5 s."""
    importlib.import_module("finetune_trainer.recipe")
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory, libraries: None) -> Path:
    """The directory of a tiny random Llama, which all tests share: ``workbench`` checks that none changes it."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workbench(s3_server: S3Server, base_model: Path, tmp_path: Path) -> Iterator[Callable[[], Workbench]]:
    """Make jobs with a bucket of their own; fail a test that changes the shared model, or writes beside it."""

    def make() -> Workbench:
        bucket = s3_server.create_bucket(f"test-{uuid.uuid4().hex[:12]}")
        return Workbench(s3_server, bucket, base_model, tmp_path / bucket)

    before = list_times(base_model.parent)
    yield make
    assert list_times(base_model.parent) == before, "this test changed the shared model, or wrote beside it"


def list_times(directory: Path) -> dict[Path, int]:
    """List the times at which the files and directories below a directory were changed."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


@pytest.fixture
def bench(workbench: Callable[[], Workbench]) -> Workbench:
    """Return a new workbench."""
    return workbench()


@pytest.fixture
def loads_on_full_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the base fit the GPU for the training, and not as it is served; return where each load is placed."""
    import torch

    from finetune_trainer.models import loading

    genuine, loads = loading.load_base, list[str]()

    def load(*arguments: Any, placement: Any = "gpu", **named: Any) -> Any:
        loads.append(placement)
        if len(loads) > 1 and placement == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB.")
        return genuine(*arguments, placement=placement, **named)

    monkeypatch.setattr(loading, "load_base", load)
    return loads
