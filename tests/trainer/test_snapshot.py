"""A checkpoint is a copy of the training's state, which is written while the training goes on."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from finetune_api.finetunejob import CheckpointStatus
from finetune_api.manifest import Origin
from finetune_api.uris import DirectoryUri
from finetune_artifacts.directory import DirectoryStorage
from finetune_artifacts.errors import Purpose
from finetune_trainer.checkpoints import exact_resume, snapshot
from finetune_trainer.checkpoints.run_fingerprint import RunFingerprint
from finetune_trainer.checkpoints.snapshot import Snapshot, copy_to_host, take_snapshot
from finetune_trainer.checkpoints.uploads import CheckpointUploader
from finetune_trainer.distributed import random_state
from finetune_trainer.models import memory


class Training:
    """A training of one layer by AdamW."""

    def __init__(self) -> None:
        """Begin it."""
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 3)
        self.optimizer = Accelerator(cpu=True).prepare(torch.optim.AdamW(self.model.parameters(), lr=0.1))
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer.optimizer, 1)
        self.steps = 0

    def step(self) -> None:
        self.model(torch.ones(2, 4)).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.steps += 1

    def snapshot(self) -> Snapshot:
        state = TrainerState(global_step=self.steps, max_steps=10)
        return take_snapshot(self.model, self.optimizer, self.scheduler, state, [random_state.current_state()])

    def state(self) -> Any:
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        return copy_to_host((weights, self.optimizer.state_dict(), self.scheduler.state_dict()))


def written(directory: Path) -> Any:
    return (
        load_file(directory / exact_resume.WEIGHTS_FILE),
        torch.load(directory / "optimizer.pt", weights_only=True),
        torch.load(directory / "scheduler.pt", weights_only=True),
    )


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_a_copy_has_the_step_of_its_snapshot_when_it_is_written_later(tmp_path: Path) -> None:
    training = Training()
    training.step()
    taken, state = training.snapshot(), training.state()
    training.step()
    assert taken.is_copy
    taken.write(tmp_path)
    assert equal(written(tmp_path), state)
    assert not equal(training.state(), state), "the training went on"
    assert (tmp_path / "rng_state_0.pth").is_file()
    assert TrainerState.load_from_json(str(tmp_path / "trainer_state.json")).global_step == 1


def test_without_memory_for_a_copy_it_is_the_state_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    training.step()
    size = sum(4 * weight.numel() for weight in training.model.parameters()) * 3 + 2 * 4
    size += random_state.current_state()["cpu"].numel()
    for free, is_copy in ((2 * size, True), (2 * size - 1, False), (None, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        taken = training.snapshot()
        assert taken.is_copy is is_copy
    taken.write(tmp_path)
    assert equal(written(tmp_path), training.state())


def test_a_weight_of_a_copy_shares_no_memory_with_the_model() -> None:
    values = {"a": torch.ones(3), "b": [torch.zeros(2, dtype=torch.bfloat16), 1], "c": (torch.ones(()), "text")}
    copied = copy_to_host(values)
    assert equal(copied, values)
    pointers = {tensor.data_ptr() for tensor in snapshot.tensors_of(values)}
    assert not pointers & {tensor.data_ptr() for tensor in snapshot.tensors_of(copied)}


@pytest.mark.parametrize(("elements", "expected"), [(0, 0), (1, 4), (1024, 4096), (1025, 8192)])
def test_pinned_memory_is_counted_in_powers_of_two(elements: int, expected: int) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    assert snapshot.host_bytes(torch.zeros(elements).as_subclass(OnGpu)) == expected
    assert snapshot.host_bytes(torch.zeros(elements)) == 4 * elements


def test_a_checkpoint_of_version_0_1_is_read(tmp_path: Path) -> None:
    adapted = torch.nn.Linear(2, 2, bias=False)
    model = torch.nn.ModuleDict({"lora_A": torch.nn.ModuleDict({"default": adapted}), "norm": torch.nn.RMSNorm(2)})
    save_file({"lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    save_file({"norm.weight": torch.full((2,), 3.0)}, tmp_path / exact_resume.WEIGHTS_FILE)
    exact_resume.load(model, tmp_path)
    assert torch.equal(adapted.weight, torch.ones(2, 2))
    assert torch.equal(model.get_parameter("norm.weight"), torch.full((2,), 3.0))


class Gated(Snapshot):
    """A snapshot that is written when the test opens the gate."""

    gate: threading.Event

    def write(self, directory: Path) -> None:
        assert self.gate.wait(30)
        super().write(directory)


def gated(taken: Snapshot, step: int) -> Gated:
    copy = Gated(**{**vars(taken), "step": step})
    object.__setattr__(copy, "gate", threading.Event())
    return copy


@pytest.fixture
def uploaded() -> list[int]:
    return []


@pytest.fixture
def uploader(tmp_path: Path, uploaded: list[int]) -> Iterator[CheckpointUploader]:
    def note(checkpoint: CheckpointStatus) -> None:
        uploaded.append(checkpoint.step)

    made = CheckpointUploader(
        DirectoryStorage(Purpose.OUTPUT),
        DirectoryUri(str(tmp_path / "output"), "checkpoints"),
        Origin(namespace="default", name="job", uid="1"),
        RunFingerprint({"a": 1}),
        2,
        tmp_path / "uploads",
        on_upload=note,
    )
    yield made
    made.close()


def test_the_training_goes_on_while_a_copy_is_written(uploader: CheckpointUploader, uploaded: list[int]) -> None:
    first = gated(Training().snapshot(), 1)
    uploader.submit(lambda: first, {})  # returns, though nothing is written yet
    assert not uploader.wait(0.2)
    first.gate.set()
    assert uploader.wait(30)
    assert uploaded == [1]


def test_main_memory_holds_one_copy_at_a_time(uploader: CheckpointUploader, uploaded: list[int]) -> None:
    first, second = (gated(Training().snapshot(), step) for step in (1, 2))
    was_written = []

    def take_second() -> Snapshot:
        was_written.append(first.gate.is_set())
        second.gate.set()
        return second

    uploader.submit(lambda: first, {})
    opens = threading.Timer(0.3, first.gate.set)
    opens.start()
    uploader.submit(take_second, {})
    opens.join()
    assert uploader.wait(30)
    assert was_written == [True]
    assert uploaded == [1, 2]


def test_a_full_disk_ends_the_training_at_its_next_step(uploader: CheckpointUploader, tmp_path: Path) -> None:
    class Full(Snapshot):
        def write(self, directory: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    full = Full(**vars(Training().snapshot()))
    uploader.submit(lambda: full, {})
    uploader.settle(30)
    with pytest.raises(OSError, match="No space left"):
        uploader.check()
    assert list((tmp_path / "uploads").iterdir()) == []


def test_what_is_no_copy_is_written_before_the_training_goes_on(
    uploader: CheckpointUploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 0)
    training = Training()
    training.step()
    state = training.state()
    uploader.submit(training.snapshot, {"extra.json": b"{}"})
    training.step()
    assert uploader.wait(30)
    (directory,) = (tmp_path / "output" / "checkpoints").glob("*/step-00000001")
    assert equal(written(directory), state)
    assert (directory / "extra.json").read_bytes() == b"{}"
