"""A training loop without progress is ended, and an evaluation stops when the pod ends."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.messages import TrainerResult
from finetune_api.reasons import Reason
from finetune_trainer.attempt import run_attempt
from finetune_trainer.evaluation import likelihood
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.session.progress import Reporter
from finetune_trainer.session.run import Run
from finetune_trainer.training import watchdog
from finetune_trainer.training.watchdog import Watchdog
from tools.testing.trainer_jobs import AtStep, Workbench, alone, never, train


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set limits of a second in place of minutes."""
    for name, seconds in {
        "MIN_SECONDS": 1.0,
        "WARM_UP_SECONDS": 30.0,
        "TICK_SECONDS": 0.05,
        "ANSWER_SECONDS": 1.0,
    }.items():
        monkeypatch.setattr(watchdog, name, seconds)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_step_may_take_twenty_times_the_median_and_at_least_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    watched = Watchdog(lambda _: None, lambda _: None)
    assert watched.allowed_seconds() == 3600, "the first steps compile"
    for seconds in (900.0, 800.0, 40.0, 50.0, 60.0):
        clock.now += seconds
        watched.step()
    assert watched.allowed_seconds() == 20 * 50
    for _ in range(60):
        clock.now += 2.0
        watched.step()
    assert watched.allowed_seconds() == 600


def test_rows_of_an_evaluation_do_not_count_as_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(watchdog, "time", clock)
    watched = Watchdog(lambda _: None, lambda _: None)
    for _ in range(4):
        for _ in range(100):
            clock.now += 30.0
            watched.beat()
        clock.now += 40.0
        watched.step()
    assert watched.allowed_seconds() == 20 * 40


def test_a_loop_that_hangs_ends_the_attempt_and_the_log_shows_where(
    bench: Workbench, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    released, outcomes = threading.Event(), list[TrainerResult]()

    def hang_here() -> None:
        assert released.wait(60)

    def abandon(outcome: TrainerResult) -> None:
        outcomes.append(outcome)
        released.set()

    run, interruption = Run(), Interruption(60, never)
    run_attempt(bench.settings(), run, interruption, AtStep(4, hang_here), abandon)
    (outcome,) = outcomes
    assert outcome.reason == Reason.STALLED
    assert "after 4 steps of this attempt, and the training does not answer" in outcome.message
    assert "hang_here" in caplog.text, "the stack of the main thread"


def test_a_loop_that_answers_saves_a_checkpoint_from_which_the_next_attempt_continues(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()

    class Stalling(Watchdog):
        """Stalls at the fourth step."""

        def step(self) -> None:
            super().step()
            if self._steps == 4:
                self._ask_to_stop("no progress for 600 s after 4 steps of this attempt")
                waiting.set()

    monkeypatch.setattr("finetune_trainer.training.fit.Watchdog", Stalling)
    result, _ = train(bench.settings())
    assert waiting.is_set()
    assert result.reason == Reason.STALLED
    assert "no progress for 600 s" in result.message
    assert "the checkpoint of step 4 is saved" in result.message
    monkeypatch.undo()
    again, _ = train(bench.settings())
    assert (again.reason, again.resumed_from_step) == ("Succeeded", 4)


def test_a_process_that_was_stopped_for_long_has_not_stalled(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    clock, stop_requests = Clock(), list[str]()
    monkeypatch.setattr(watchdog, "time", clock)
    watched = Watchdog(stop_requests.append, lambda _: None)
    watched.start()
    clock.now += 100_000
    watched.beat()
    assert not watched._closed.wait(0.3)
    watched.close()
    assert not stop_requests


@pytest.mark.parametrize("step", [2, 6], ids=["in the middle", "at the last step"])
def test_an_evaluation_is_stopped_when_the_pod_ends_and_repeated_later(
    workbench: Callable[[], Workbench], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    spec = {
        "evaluation": {"everySteps": 2, "samples": 0},
        "training": uninterrupted.job()["spec"]["training"] | {"earlyStopping": {"patience": 2}},
    }
    expected, _ = train(uninterrupted.settings(**spec))
    assert expected.reason == "Succeeded", expected.message

    run, rows = Run(), list[int]()
    interruption = Interruption(60, never)
    forward = likelihood._forward

    def batch(model: Any, texts: list[list[int]]) -> Any:
        if run.progress and interruption._deferred and run.progress.step == step - 1:
            rows.append(len(texts))
            if len(rows) == 2:
                interruption.request()
        return forward(model, texts)

    monkeypatch.setattr(likelihood, "_forward", batch)
    result = run_attempt(interrupted.settings(**spec), run, interruption, Reporter(None, Path()), alone)
    assert result.reason == Reason.PREEMPTED
    assert f"the checkpoint of step {step} is saved" in result.message
    assert len(rows) == 2, "the other batches were not measured"
    monkeypatch.undo()
    again, _ = train(interrupted.settings(**spec))
    assert (again.reason, again.resumed_from_step) == ("Succeeded", step)
    assert interrupted.weights() == uninterrupted.weights()
    assert again.evaluation == expected.evaluation
    losses = [line.count(b"eval_loss") for line in interrupted.read("team/job/adapter/metrics.jsonl").splitlines()]
    assert sum(losses) == 3, "each step is evaluated once"
