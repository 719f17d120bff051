"""Find the changes that lower a job's need for memory, and by how much: the reductions, one after another."""

from dataclasses import dataclass
from typing import Any

from finetune_api.base import Model
from finetune_api.estimate.memory import job_memory
from finetune_api.estimate.modules import Architecture
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.reductions import REDUCTIONS, Settings, smallest_batch

WORTHWHILE = 0.97
"""A change after which the job still needs more than this fraction of the memory is not proposed."""


@dataclass(frozen=True)
class Change:
    """One change, on top of those before it in the list."""

    fields: dict[str, Any]
    """Fields of the job with their new values."""
    effect: str
    """What else it changes."""
    bytes: int
    """Memory that the job needs after the change."""


def propose_changes(architecture: Architecture, spec: FineTuneJobSpec) -> list[Change]:
    """List the changes that lower the need for memory, each on top of those before it.

    Raises:
        TargetError: The method names a module that the model does not have.
        NotCountedError: There is no closed form for the method on this model.
    """

    def bytes_of(settings: Settings) -> int:
        changed = spec.model_copy(update={"method": settings.method, "training": settings.training})
        return job_memory(architecture, changed).total

    changes: list[Change] = []
    settings = Settings(spec.method, spec.training, smallest_batch=smallest_batch(spec))
    needed = bytes_of(settings)
    for reduction in REDUCTIONS:
        while reduced := reduction.apply(settings):
            total = bytes_of(reduced)
            if total > WORTHWHILE * needed:
                break
            changes.append(Change(_changed_fields(settings, reduced), reduction.effect, total))
            settings, needed = reduced, total
    return changes


def _changed_fields(before: Settings, after: Settings) -> dict[str, Any]:
    """Return the changed fields by their path in the job; another method as a whole."""
    fields = _find_differences(before.training, after.training, "spec.training")
    old, new = before.method, after.method
    if new.name == old.name:
        return fields | _find_differences(old.config, new.config, f"spec.method.{new.name}")
    block = new.config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return fields | {"spec.method": {new.name: block}}


def _find_differences(before: Model, after: Model, path: str) -> dict[str, Any]:
    """Return the changed fields of ``after`` by their path; a section has only its values that are no defaults."""
    changed = {name for name in type(after).model_fields if getattr(before, name) != getattr(after, name)}
    values = after.model_dump(mode="json", by_alias=True, include=changed, exclude_none=True)
    sections = {
        str(type(after).model_fields[name].alias): section.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name in changed
        if isinstance(section := getattr(after, name), Model)
    }
    return {f"{path}.{name}": value for name, value in (values | sections).items()}
