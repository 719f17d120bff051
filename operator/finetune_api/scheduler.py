"""Define ``spec.training.scheduler``: schedules of the learning rate, by their transformers names."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.limits import MAX_COUNT, MAX_NUMBER

Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "warmup_stable_decay",
]  # fmt: skip
SCHEDULES_OF_SETTING: dict[str, tuple[Scheduler, ...]] = {
    "numCycles": ("cosine_with_restarts",),
    "power": ("polynomial",),
    "minLearningRateRatio": ("cosine_with_min_lr", "warmup_stable_decay"),
    "decayRatio": ("warmup_stable_decay",),
}
"""The schedules that read each setting, by its JSON name."""
MIN_LEARNING_RATE_RATIO, DECAY_RATIO = 0.1, 0.1
"""Values for schedules that need these settings, if they are unset."""


class SchedulerArgs(Model):
    """Settings that some of the schedules read."""

    num_cycles: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = Field(
        None, description="cosine_with_restarts: number of times that the rate falls to zero. Unset: 1."
    )
    power: float | None = Field(
        None, description="polynomial: exponent of the curve. Unset: 1, a straight line.", gt=0, le=MAX_NUMBER
    )
    min_learning_rate_ratio: float | None = Field(
        None,
        description="cosine_with_min_lr and warmup_stable_decay: last learning rate, as a fraction of the peak. "
        f"Unset: {MIN_LEARNING_RATE_RATIO} for cosine_with_min_lr, 0 for warmup_stable_decay.",
        ge=0,
        lt=1,
    )
    decay_ratio: float | None = Field(
        None,
        description="warmup_stable_decay: fraction of the steps at the end during which the rate falls. "
        f"Unset: {DECAY_RATIO}.",
        gt=0,
        le=1,
    )

    def find_unused(self, scheduler: str) -> str | None:
        """Return what is wrong with a setting that the schedule does not read, or None."""
        unused = (setting for setting in self.to_json() if scheduler not in SCHEDULES_OF_SETTING[setting])
        return next(map(describe_unused, unused), None)

    def to_kwargs(self, scheduler: str, steps: int) -> dict[str, Any]:
        """Return transformers' ``lr_scheduler_kwargs`` for a schedule over this number of steps."""
        ratio = self.min_learning_rate_ratio
        match scheduler:
            case "cosine_with_restarts":
                return {"num_cycles": self.num_cycles or 1}
            case "polynomial":
                return {"power": self.power or 1.0, "lr_end": 0.0}
            case "cosine_with_min_lr":
                return {"min_lr_rate": MIN_LEARNING_RATE_RATIO if ratio is None else ratio}
            case "warmup_stable_decay":
                decay = max(1, round((self.decay_ratio or DECAY_RATIO) * steps))
                return {"num_decay_steps": decay, "min_lr_ratio": ratio or 0.0}
        return {}


def describe_unused(setting: str) -> str:
    """Return the message for a setting, by its JSON name, that the chosen schedule does not read."""
    users = " and ".join(SCHEDULES_OF_SETTING[setting])
    return f"schedulerArgs.{setting} is read by scheduler {users} only: remove it, or change scheduler"


def cel_rules() -> list[dict[str, str]]:
    """Return the CEL rules of ``spec.training`` about settings that the schedule does not read."""
    return [
        {
            "rule": f"!has(self.schedulerArgs) || !has(self.schedulerArgs.{setting}) || "
            f"self.scheduler in {list(users)}",
            "message": describe_unused(setting),
            "fieldPath": f".schedulerArgs.{setting}",
        }
        for setting, users in SCHEDULES_OF_SETTING.items()
    ]
