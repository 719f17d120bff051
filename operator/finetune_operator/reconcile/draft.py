"""The status that a pass is writing: it begins as the one that is there, and ends as JSON."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_api.conditions import ConditionType
from finetune_api.messages import PreflightResult
from finetune_api.reasons import Reason
from finetune_operator.conditions import Conditions
from finetune_operator.kube.kinds import Object
from finetune_operator.notes import Note


@dataclass
class Draft:
    """The only mutable thing of a plan. ``fields`` are the status without its conditions."""

    conditions: Conditions
    fields: dict[str, Any]
    generation: int
    notes: list[Note] = field(default_factory=list)

    @classmethod
    def of(cls, item: Object, now: datetime) -> "Draft":
        """Begin with the status that the object has."""
        before = item.get("status", {})
        generation = item["metadata"].get("generation", 0)
        fields = {name: value for name, value in before.items() if name != "conditions"}
        return cls(Conditions(before.get("conditions", []), generation, now), fields, generation)

    def phase(self, phase: str, reason: Reason, message: str) -> None:
        """The work goes on: summary for people, and kstatus InProgress."""
        self.fields["phase"] = phase
        self.conditions.progressing(reason, message)

    def fail(self, reason: Reason, message: str, note: str) -> None:
        """The work has failed for good; ``note`` is the reason of the event."""
        self.fields["phase"] = "Failed"
        self.conditions.set(ConditionType.SUCCEEDED, "False", reason, message)
        self.conditions.stalled(reason, message)
        self.notes.append(Note("Warning", note, "Stop", f"{reason}: {message}"))

    def take_preflight(self, result: PreflightResult) -> None:
        """What the preflight found beside problems."""
        if result.estimate is not None:
            self.fields["estimate"] = result.estimate.to_json()
        if result.warnings:
            self.fields["warnings"] = result.warnings

    def as_json(self) -> dict[str, Any]:
        """The whole status; it speaks of the generation that the pass saw."""
        return {**self.fields, "observedGeneration": self.generation, "conditions": self.conditions.as_json()}
