"""Schedules of the learning rate: what transformers makes of the spec's settings."""

from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from finetune_api.finetunejob import Training
from finetune_api.scheduler import Scheduler, SchedulerArgs

STEPS, WARMUP = 20, 4


def rates(name: str, **args: Any) -> list[float]:
    """Return the learning rate of each step, as a fraction of the peak."""
    training = Training.model_validate({"scheduler": name, "schedulerArgs": args})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=WARMUP,
        num_training_steps=STEPS,
        scheduler_specific_kwargs=(training.scheduler_args or SchedulerArgs()).to_kwargs(name, STEPS),
    )
    lasting = []
    for _ in range(STEPS):
        lasting.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [*lasting, scheduler.get_last_lr()[0]]


@pytest.mark.parametrize("name", get_args(Scheduler))
def test_each_schedule_never_rises_above_its_peak(name: str) -> None:
    assert 0 < max(rates(name)) <= 1


@pytest.mark.parametrize(
    ("name", "args", "last"),
    [
        ("linear", {}, 0.0),
        ("cosine_with_min_lr", {}, 0.1),
        ("cosine_with_min_lr", {"minLearningRateRatio": 0.25}, 0.25),
        ("cosine_with_min_lr", {"minLearningRateRatio": 0}, 0.0),
        ("warmup_stable_decay", {}, 0.0),
        ("warmup_stable_decay", {"minLearningRateRatio": 0.3}, 0.3),
        ("polynomial", {"power": 2}, 0.0),
    ],
)
def test_the_last_rate_is_what_the_settings_say(name: str, args: dict[str, Any], last: float) -> None:
    assert rates(name, **args)[-1] == pytest.approx(last, abs=1e-9)


def test_the_settings_shape_the_curve() -> None:
    assert rates("warmup_stable_decay", decayRatio=0.5)[9:12] == pytest.approx([1.0, 1.0, 0.97553], abs=1e-4)
    assert rates("polynomial", power=2)[12] == pytest.approx(0.25)
    assert rates("cosine_with_restarts", numCycles=2)[12] == pytest.approx(1.0)


def test_a_setting_that_the_schedule_does_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedulerArgs\.power is read by scheduler polynomial only"):
        Training.model_validate({"schedulerArgs": {"power": 2}})
