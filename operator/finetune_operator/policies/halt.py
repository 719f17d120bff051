"""Decide whether a job may have no pod now, because it is suspended or its time is over. Pure."""

from dataclasses import dataclass

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reasons import Reason


@dataclass(frozen=True)
class Halt:
    """Why no pod may run now: ``Suspended`` or ``DeadlineExceeded``."""

    reason: Reason
    message: str


def find_halt(spec: FineTuneJobSpec, active_seconds: float, is_suspending: bool) -> Halt | None:
    """Find why no pod may run now; None if one may.

    Args:
        spec: The spec.
        active_seconds: For how many seconds trainers ran until now.
        is_suspending: A run is being stopped for a suspension, which may be over by now.
    """
    limit = spec.active_deadline_seconds
    if limit is not None and active_seconds >= limit:
        text = f"The trainers may run for {limit} s (spec.activeDeadlineSeconds), which are over."
        return Halt(Reason.DEADLINE_EXCEEDED, text)
    if spec.suspend or is_suspending:
        return Halt(Reason.SUSPENDED, "The job was suspended (spec.suspend).")
    return None
