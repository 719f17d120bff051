"""List the events of a FineTuneJob: one for each change of a condition that a person cares about. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason
from finetune_operator.conditions import find
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.kinds import Object

HINDRANCES = frozenset(
    {
        Reason.NODE_LOST,
        Reason.POD_REFUSED,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.CONTAINER_NOT_STARTED,
    }
)
"""Reasons for which a pod does not run while its run has not ended."""


def list_change_events(before: Object, after: Object) -> Iterator[EventRecord]:
    """List the events about what changed between two states of a status.

    The end of an attempt or of the job has an event of its own, with what follows.
    """
    number = _find_number(after)
    for kind in (
        ConditionType.ACCEPTED,
        ConditionType.PREFLIGHT_PASSED,
        ConditionType.RUNNING,
        ConditionType.SUSPENDED,
        ConditionType.MERGED,
    ):
        old, new = _find_state(before, kind), find(after.get("conditions", []), kind)
        # after a pause of the operator, another attempt may be running
        is_next = kind is ConditionType.RUNNING and number != _find_number(before)
        if new is None or (old == (new["status"], new["reason"]) and not is_next):
            continue
        if kind is ConditionType.RUNNING and _find_state(after, ConditionType.SUSPENDED)[0] == "True":
            continue
        event = _choose_event(kind, new["status"], new["reason"])
        if event is not None:
            importance, reason, action = event
            attempt = number if kind is ConditionType.RUNNING else None
            yield EventRecord(importance, reason, action, new["message"], key=str(number), attempt=attempt)


def _find_number(status: Object) -> int:
    """Find the number of the newest attempt or, before the first, that of the preflight, negated."""
    preflights, attempts = status.get("preflights") or (), status.get("attempts") or ()
    return int(attempts[-1]["number"] if attempts else -preflights[-1]["number"] if preflights else 0)


def _choose_event(
    kind: ConditionType, status: str, reason: str
) -> tuple[Literal["Normal", "Warning"], str, str] | None:
    """Choose type, reason and action of the event about a condition; None if it is not worth one."""
    match kind, status:
        case ConditionType.ACCEPTED, "True":
            return "Normal", "Accepted", "Check"
        case ConditionType.ACCEPTED, "False":
            return "Warning", reason, "Check"
        case ConditionType.PREFLIGHT_PASSED, "True":
            return "Normal", "PreflightPassed", "Check"
        case ConditionType.RUNNING, "True":
            return "Normal", "AttemptStarted", "Train"
        case ConditionType.MERGED, "True":
            return "Normal", reason, "Merge"
        case ConditionType.MERGED, "False":
            return "Warning", Reason.MERGE_FAILED, "Merge"
        case ConditionType.SUSPENDED, _ if reason != Reason.SUSPENDING:
            return "Normal", reason, "Suspend"
        case ((ConditionType.PREFLIGHT_PASSED | ConditionType.RUNNING), _) if reason == Reason.SUSPENDED:
            return "Warning", "JobSuspended", "Wait"
        case ((ConditionType.PREFLIGHT_PASSED | ConditionType.RUNNING), _) if reason in HINDRANCES:
            return "Warning", reason, "Wait"
    return None


def _find_state(status: Object, kind: ConditionType) -> tuple[Any, Any]:
    conditions: Sequence[Object] = status.get("conditions") or ()
    condition = find(conditions, kind)
    return (None, None) if condition is None else (condition["status"], condition["reason"])
