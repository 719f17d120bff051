"""Set the conditions of one object. No other module sets conditions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from finetune_api.conditions import Condition, ConditionType
from finetune_api.limits import STATUS_MESSAGE_CHARACTERS, truncate
from finetune_api.timestamps import format_timestamp

Status = Literal["True", "False", "Unknown"]
NEVER = "1970-01-01T00:00:00Z"
"""Transition time of the conditions that the CRD gives to a new object."""


def find(conditions: Sequence[dict[str, Any]], kind: ConditionType) -> dict[str, Any] | None:
    """Find the condition of a type."""
    return next((condition for condition in conditions if condition["type"] == kind), None)


def find_in(resource: dict[str, Any], kind: ConditionType) -> dict[str, Any] | None:
    """Find the condition of a type in the status of an object."""
    return find((resource.get("status") or {}).get("conditions") or [], kind)


def describe_accepted(text: str, unknown: Sequence[str]) -> str:
    """Add to ``text``, which says that a spec is accepted, the fields that this version does not know."""
    if not unknown:
        return text
    return (
        f"{text} This version of the operator does not know {', '.join(unknown)} and ignores it: update the operator, "
        "or remove it."
    )


class Conditions:
    """The conditions of one object during a pass.

    Conditions that the pass does not set stay as they are, also those of types that only a newer version knows.
    """

    def __init__(self, before: Sequence[dict[str, Any]], generation: int, now: datetime) -> None:
        """Copy the conditions that the object has."""
        self._conditions = {condition["type"]: dict(condition) for condition in before}
        self._generation = generation
        self._now = now

    def set(self, kind: ConditionType, status: Status, reason: str, message: str) -> None:
        """Set a condition. Its transition time changes only with its status."""
        before = self._conditions.get(kind)
        transition_time = before["lastTransitionTime"] if before is not None and before["status"] == status else NEVER
        self._conditions[kind] = Condition(
            type=kind,
            status=status,
            observed_generation=self._generation,
            last_transition_time=format_timestamp(self._now) if transition_time == NEVER else transition_time,
            reason=reason,
            message=truncate(message, STATUS_MESSAGE_CHARACTERS),
        ).to_json()

    def set_progressing(self, reason: str, message: str) -> None:
        """Set what kstatus calls InProgress: Ready is Unknown and Reconciling is True."""
        self.set(ConditionType.READY, "Unknown", reason, message)
        self.set(ConditionType.RECONCILING, "True", reason, message)
        self.remove(ConditionType.STALLED)

    def set_ready(self, reason: str, message: str) -> None:
        """Set what kstatus calls Current: Ready is True, without Reconciling and Stalled."""
        self.set(ConditionType.READY, "True", reason, message)
        self.remove(ConditionType.RECONCILING)
        self.remove(ConditionType.STALLED)

    def set_stalled(self, reason: str, message: str) -> None:
        """Set what kstatus calls Failed: nothing happens until a person changes something."""
        self.set(ConditionType.READY, "False", reason, message)
        self.set(ConditionType.STALLED, "True", reason, message)
        self.remove(ConditionType.RECONCILING)

    def set_idle(self, reason: str, message: str) -> None:
        """Set that nothing is done although nothing is wrong: Ready is False, without Reconciling and Stalled."""
        self.set(ConditionType.READY, "False", reason, message)
        self.remove(ConditionType.RECONCILING)
        self.remove(ConditionType.STALLED)

    def has(self, kind: ConditionType) -> bool:
        """Return whether the object has a condition of this type."""
        return kind in self._conditions

    def remove(self, kind: ConditionType) -> None:
        """Remove a condition, if it is there."""
        self._conditions.pop(kind, None)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the conditions in the order of ``ConditionType``, then those of unknown types."""
        order = list(ConditionType)
        ordered = [self._conditions[kind] for kind in order if kind in self._conditions]
        return ordered + [condition for kind, condition in self._conditions.items() if kind not in order]
