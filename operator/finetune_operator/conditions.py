"""The only place that sets conditions: it keeps transition times, truncates messages and removes what is present only while True."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from finetune_api.conditions import ConditionType
from finetune_api.reasons import Reason

Status = Literal["True", "False", "Unknown"]
MESSAGE_CHARACTERS = 4096
NEVER = "1970-01-01T00:00:00Z"
"""The transition time of the conditions that the CRD gives to a new object."""


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str) -> datetime:
    """The moment that an RFC 3339 text of Kubernetes or of a pod of ours stands for."""
    return datetime.fromisoformat(text)


def find(conditions: Sequence[dict[str, Any]], kind: ConditionType) -> dict[str, Any] | None:
    """The condition of this type, as JSON."""
    return next((item for item in conditions if item["type"] == kind), None)


class Conditions:
    """The conditions of one object during a pass: begin with those that it has, set what is known now, write ``as_json``."""

    def __init__(self, before: Sequence[dict[str, Any]], generation: int, now: datetime) -> None:
        self._items = {item["type"]: dict(item) for item in before}
        self._generation = generation
        self._now = now

    def set(self, kind: ConditionType, status: Status, reason: Reason, message: str) -> None:
        """Set a condition; its transition time changes only with its status."""
        before = self._items.get(kind)
        kept = before["lastTransitionTime"] if before is not None and before["status"] == status else NEVER
        self._items[kind] = {
            "type": str(kind),
            "status": status,
            "observedGeneration": self._generation,
            "lastTransitionTime": timestamp(self._now) if kept == NEVER else kept,
            "reason": str(reason),
            "message": truncate(message, MESSAGE_CHARACTERS),
        }

    def progressing(self, reason: Reason, message: str) -> None:
        """kstatus InProgress: Ready is Unknown and Reconciling is there."""
        self.set(ConditionType.READY, "Unknown", reason, message)
        self.set(ConditionType.RECONCILING, "True", reason, message)
        self._items.pop(ConditionType.STALLED, None)

    def ready(self, reason: Reason, message: str) -> None:
        """kstatus Current: Ready alone."""
        self.set(ConditionType.READY, "True", reason, message)
        self._items.pop(ConditionType.RECONCILING, None)
        self._items.pop(ConditionType.STALLED, None)

    def stalled(self, reason: Reason, message: str) -> None:
        """kstatus Failed: only a person can mend it."""
        self.set(ConditionType.READY, "False", reason, message)
        self.set(ConditionType.STALLED, "True", reason, message)
        self._items.pop(ConditionType.RECONCILING, None)

    def drop(self, kind: ConditionType) -> None:
        """Remove a condition that says nothing now."""
        self._items.pop(kind, None)

    def as_json(self) -> list[dict[str, Any]]:
        """The conditions in the order of ``ConditionType``; those of the current generation say so."""
        order = list(ConditionType)
        known = [self._items[kind] for kind in order if kind in self._items]
        return known + [item for name, item in self._items.items() if name not in order]


def truncate(text: str, characters: int) -> str:
    """The text, cut with an ellipsis where it is longer."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def sentence(text: str) -> str:
    """The text with a full stop, so that another sentence may follow."""
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
