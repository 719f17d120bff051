"""A pod that does not see its GPUs ends before it downloads or trains anything."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from finetune_api.finetunejob import Resources
from finetune_api.reasons import EXIT_CODES, USER_ERRORS, Reason
from finetune_trainer import attempt
from finetune_trainer.models.visible_gpus import require_gpus
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings
from tools.testing.trainer_jobs import Workbench, train


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let PyTorch see a number of GPUs."""

    def see_gpus(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see_gpus


def test_a_pod_without_its_gpus_fetches_nothing_and_does_not_train_on_the_cpu(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(settings: Settings, patience_seconds: float) -> None:
        raise AssertionError("it fetches inputs")

    monkeypatch.setattr(attempt, "fetch_inputs", fetch)
    missing = torch.cuda.device_count() + 1
    settings = replace(bench.settings(resources={"gpusPerNode": missing}), simulated_gpus=False)
    result, _ = train(settings)
    assert result.reason == Reason.GPU_NOT_VISIBLE
    assert f"the pod asked for {missing} nvidia.com/gpu, but PyTorch sees {missing - 1}" in result.message
    assert "podTemplate.runtimeClassName" in result.message
    written = [key for key in bench.objects() if "/claims/" not in key]
    assert not [key for key in written if "adapter" in key or "checkpoint" in key]


@pytest.mark.parametrize(
    ("simulated", "workstation", "gpus", "expected"),
    [
        (False, False, 1, True),
        (True, False, 1, False),
        (False, True, 1, False),
        (False, False, 0, False),
    ],
    ids=["a pod", "simulated GPUs", "a workstation", "a job for CPUs"],
)
def test_only_a_pod_that_asks_for_real_gpus_expects_them(
    bench: Workbench, simulated: bool, workstation: bool, gpus: int, expected: bool
) -> None:
    settings = bench.settings(resources={"gpusPerNode": gpus})
    assert replace(settings, simulated_gpus=simulated, workstation=workstation).expects_gpus is expected


def test_as_many_gpus_as_asked_for_are_enough(see: Callable[[int], None]) -> None:
    see(2)
    require_gpus(Resources(gpus_per_node=2))
    with pytest.raises(Failure, match=r"asked for 4 nvidia\.com/gpu, but PyTorch sees 2"):
        require_gpus(Resources(gpus_per_node=4))


def test_the_message_has_what_decides_whether_a_gpu_is_seen(
    see: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    see(0)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "void")
    with pytest.raises(Failure) as caught:
        require_gpus(Resources(gpus_per_node=1, gpu_resource_name="amd.com/gpu"))
    assert caught.value.field == "spec.resources.gpusPerNode"
    for words in ("1 amd.com/gpu", f"PyTorch {torch.__version__}", "driver:", "NVIDIA_VISIBLE_DEVICES=void"):
        assert words in str(caught.value)


def test_another_node_may_be_sound_so_the_attempt_is_retried() -> None:
    assert Reason.GPU_NOT_VISIBLE not in USER_ERRORS
    assert EXIT_CODES[Reason.GPU_NOT_VISIBLE] == 36
