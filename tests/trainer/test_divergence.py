"""When a finite loss has diverged: not for noise, spikes, short rows or an untrained model; and that the run stops."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune_api.reasons import EXIT_CODES, Reason
from finetune_trainer.attempt import exit_code
from finetune_trainer.training import callback
from finetune_trainer.training.divergence import BAD_LOSSES_IN_A_ROW, ZEROS_AT_THE_BEGIN, DivergenceWatch, GradientWatch
from tools.testing.trainer_jobs import Workbench, train, train_until

LLAMA = 128_256
NOISE = [0.3 * math.sin(17.0 * number) for number in range(200)]


def falling(start: float, end: float, steps: int = 60) -> list[float]:
    """Return a usual loss: fast at first, then slowly, with noise."""
    return [end + (start - end) * math.exp(-number / 10) + NOISE[number] * end for number in range(steps)]


@pytest.mark.parametrize(
    ("losses", "vocabulary", "at"),
    [
        (falling(2.4, 1.3), LLAMA, None),
        (falling(11.8, 0.4), LLAMA, None),
        (falling(0.9, 0.01), LLAMA, None),
        (falling(5.9, 5.6), 350, None),
        ([0.02, *([2.4, 0.1, 3.1, 1.9, 4.0] * 20)], LLAMA, None),
        ([*falling(2.4, 1.3), *[11.0] * (BAD_LOSSES_IN_A_ROW - 1), *falling(2.4, 1.3)], LLAMA, None),
        ([*falling(0.9, 0.01), *[1.0] * 40], LLAMA, None),
        ([*falling(2.4, 1.3), *[7.5] * 40], LLAMA, 60 + BAD_LOSSES_IN_A_ROW),
        ([*falling(2.4, 1.3), *range(2, 40)], LLAMA, 60 + 5 + BAD_LOSSES_IN_A_ROW),
        ([2.1, *[9.0] * 40], LLAMA, 1 + BAD_LOSSES_IN_A_ROW),
        ([*falling(11.8, 0.4), *[11.7] * 40], LLAMA, 60 + BAD_LOSSES_IN_A_ROW),
        ([*falling(5.9, 3.0), *[30.0] * 40], 350, 60 + BAD_LOSSES_IN_A_ROW),
    ],
    ids=[
        "a usual run",
        "from a random model to a good one",
        "learnt by heart",
        "a random model that learns little",
        "batches of one row, the first an easy one",
        "a spike that passes",
        "by heart, then other rows",
        "up to what the frequencies of tokens give",
        "up and up",
        "at once",
        "back to guessing",
        "a small vocabulary",
    ],
)
def test_only_a_loss_that_stays_up_has_diverged(losses: list[float], vocabulary: int, at: int | None) -> None:
    watch, detected = DivergenceWatch(vocabulary), None
    for number, loss in enumerate(losses, start=1):
        watch.add_loss(loss)
        if watch.diverged and detected is None:
            detected = number
    assert detected == at


def test_an_attempt_that_continues_judges_as_the_one_before(tmp_path: Path) -> None:
    losses = [*falling(2.4, 1.3), *[7.5] * 3]
    before, after = DivergenceWatch(LLAMA), DivergenceWatch(LLAMA)
    for loss in losses:
        before.add_loss(loss)
    history: list[dict[str, Any]] = [{"loss": loss, "step": step} for step, loss in enumerate(losses)]
    after.replay_history([{"eval_loss": 1.0, "step": 0}, *history, {"train_runtime": 3.0, "step": 62}])
    assert after == before
    assert after.last_loss_was_bad
    assert not after.diverged


def exploding(bench: Workbench, **training: Any) -> dict[str, Any]:
    """Return a job whose loss goes up to a large number, and stays there."""
    settings = {"maxSteps": 30, "perDeviceBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 48}
    hot = {"learningRate": 3.0, "warmupRatio": 0.5, "maxGradNorm": 1e9, "scheduler": "constant_with_warmup"}
    return {"training": settings | hot | training, "checkpoint": {"everySteps": 1}, "method": {"full": {}}}


def test_a_run_that_explodes_stops_and_keeps_the_good_checkpoints(workbench: Callable[[], Workbench]) -> None:
    uninterrupted, interrupted = workbench(), workbench()
    result, run = train(uninterrupted.settings(**exploding(uninterrupted)))
    assert (result.reason, exit_code(result)) == (Reason.LOSS_DIVERGED, EXIT_CODES[Reason.LOSS_DIVERGED])
    assert "spec.training.learningRate: at step " in result.message
    assert "than to its best" in result.message
    assert run.progress is not None
    assert result.checkpoint is not None
    assert result.checkpoint.step <= run.progress.step - (BAD_LOSSES_IN_A_ROW - 1)
    stored = {key.split("/step-")[1][:8] for key in uninterrupted.objects() if "/step-" in key}
    assert int(max(stored)) == result.checkpoint.step, "no checkpoint of bad weights took its place"

    stopped = train_until(interrupted.settings(**exploding(interrupted)), run.progress.step - 2)
    assert stopped.reason is Reason.PREEMPTED
    resumed, again = train(interrupted.settings(**exploding(interrupted)))
    assert resumed.reason is Reason.LOSS_DIVERGED
    assert again.progress is not None
    assert again.progress.step == run.progress.step, "what went before is not forgotten"


def test_without_the_criterion_it_would_burn_on(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "check_convergence", lambda *_: None)
    result, run = train(bench.settings(**exploding(bench)))
    assert run.progress is not None
    assert run.progress.step == 30, result.message


@pytest.mark.parametrize(
    ("norms", "dead"),
    [
        ([0.0] * ZEROS_AT_THE_BEGIN, True),
        ([0.0] * (ZEROS_AT_THE_BEGIN - 1), False),
        ([0.3, *[0.0] * 50], False),
        ([*[0.0] * 5, 1e-9, *[0.0] * 50], False),
        ([math.inf, *[0.0] * 50], False),
        ([None] * 50, False),
    ],
    ids=["never a gradient", "too early to say", "known by heart", "a late one", "an overflow in fp16", "not measured"],
)
def test_only_a_run_that_never_had_a_gradient_is_dead(norms: list[float | None], dead: bool) -> None:
    watch = GradientWatch()
    for norm in norms:
        watch.add_norm(norm)
    assert watch.is_dead == dead
    resumed = GradientWatch()
    resumed.replay_history([{"loss": 1.0, "grad_norm": norm} for norm in norms])
    assert resumed == watch


def test_a_training_that_learns_nothing_is_ended(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = transformers.Trainer.training_step

    def step(self: Any, model: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        loss = genuine(self, model, *arguments, **named)
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.zero_()  # as if the loss did not depend on it
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", step)
    result, _ = train(bench.settings(training={"maxSteps": 30, "maxLength": 48}))
    assert result.reason == Reason.MODEL_UNSUPPORTED
    assert f"up to step {ZEROS_AT_THE_BEGIN} every logged gradient was exactly 0" in result.message
