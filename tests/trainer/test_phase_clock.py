"""What the GPUs' time was used for: each second counts once, and the message about it stays within its limit."""

import threading
import time

import pytest

from finetune_api.finetunejob import Usage
from finetune_api.limits import TERMINATION_MESSAGE_BYTES
from finetune_api.messages import TrainerResult
from finetune_trainer.runtime import result
from finetune_trainer.runtime.phase_clock import PhaseClock

pytestmark = pytest.mark.unit


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time that the clock reads."""
    moment = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def test_each_second_counts_once_in_the_innermost_phase(now: list[float]) -> None:
    clock = PhaseClock()
    now[0] += 1
    with clock.spend("train"):
        now[0] += 10
        with clock.spend("evaluate"):
            now[0] += 3
        now[0] += 20
    now[0] += 2
    assert clock.measure_usage(2) == Usage(gpu_seconds=72, phases={"train": 60, "evaluate": 6, "other": 6})
    assert clock.measure_usage(0) == Usage(gpu_seconds=0, phases={"train": 30, "evaluate": 3, "other": 3})


def test_a_phase_that_runs_counts_so_far_and_one_that_fails_is_left(now: list[float]) -> None:
    clock = PhaseClock()
    with clock.spend("train"):
        now[0] += 5
        assert clock.measure_usage(1).phases == {"train": 5, "other": 0}
    with pytest.raises(RuntimeError), clock.spend("verify"):
        now[0] += 7
        raise RuntimeError
    now[0] += 1
    assert clock.measure_usage(1).phases == {"train": 5, "verify": 7, "other": 1}


def test_what_another_thread_does_counts_as_what_the_main_thread_waits_for(now: list[float]) -> None:
    clock = PhaseClock()

    def load() -> None:
        with clock.spend("load"):
            now[0] += 4

    with clock.spend("tokenize"):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    assert clock.measure_usage(1).phases == {"tokenize": 4, "other": 0}


def test_usages_add_up() -> None:
    first = Usage(gpu_seconds=1.1, phases={"train": 0.7, "other": 0.4})
    assert first.plus(Usage(gpu_seconds=2.2, phases={"import": 0.2, "train": 2})) == Usage(
        gpu_seconds=3.3, phases={"train": 2.7, "other": 0.4, "import": 0.2}
    )


def test_a_long_message_stays_complete_and_the_usage_is_dropped_before_the_evaluation() -> None:
    phases = dict.fromkeys(("import", "fetch", "tokenize", "load", "hash", "train", "checkpoint", "verify"), 12345.6)
    usage = Usage(gpu_seconds=98765.4, phases=phases)
    short = TrainerResult(reason="Succeeded", usage=usage)
    assert TrainerResult.model_validate_json(result.encode(short)) == short
    crowded = short.model_copy(update={"warnings": ["é" * 4000] * 30, "message": "é" * 4000})
    encoded = result.encode(crowded)
    assert len(encoded) <= TERMINATION_MESSAGE_BYTES
    assert TrainerResult.model_validate_json(encoded).usage == usage, "texts are cut before it is dropped"
